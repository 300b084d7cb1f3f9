"""``python -m ima_dist.data``: find data sets; make and check prepared copies, which runs map into memory."""

import argparse
import sys

from ima_dist.cli.entry import guarded, say, shown
from ima_dist.cli.parser import OneLineParser
from ima_dist.config.errors import EXIT_DONE, ConfigError, complain
from ima_dist.config.own import OWN
from ima_dist.config.sources import SOURCES
from ima_dist.data import prepare


def main(argv: list[str] | None = None) -> int:
    """Exit status as for ``ima_dist.train``."""
    return guarded(_main, sys.argv[1:] if argv is None else argv)


def _main(argv: list[str]) -> int:
    parser = OneLineParser(prog="python -m ima_dist.data", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    names = ", ".join(prepare.PUBLISHED)
    make = commands.add_parser("prepare", help="make the prepared copy of a data set", allow_abbrev=False)
    make.add_argument("name", metavar="NAME", help=f"{names}; or own, for your own data")
    make.add_argument(
        "--source",
        metavar="DIR|download",
        help="directory with the published files, or with your own; or download, to fetch those that are missing",
    )
    make.add_argument("--form", metavar="|".join(SOURCES), help="of your own data (default: guessed)")
    make.add_argument(
        "--to", metavar="DIR", help="where to put it (default: ~/.cache/ima_dist/prepared/NAME, but for your own data)"
    )
    make.add_argument(
        "--hide-names",
        action="store_true",
        help="of your own data: numbers in the place of names of files and groups, which may identify persons",
    )
    make.set_defaults(run=_prepare)
    check = commands.add_parser("verify", help="check every byte of a prepared copy", allow_abbrev=False)
    check.add_argument("what", metavar="NAME|DIR", help=f"a prepared directory, or one of {names}")
    check.set_defaults(run=_verify)
    find = commands.add_parser("find", help="look for a data set where a run does", allow_abbrev=False)
    find.add_argument("name", metavar="NAME", help=names)
    find.add_argument("--dir", metavar="DIR", help="as --data.dir of a run")
    find.add_argument("--download", action="store_true", help="fetch missing files")
    find.set_defaults(run=_find)
    arguments = parser.parse_args(argv)
    return int(arguments.run(arguments))


def _prepare(arguments: argparse.Namespace) -> int:
    if arguments.name == OWN:
        return _prepare_own(arguments)
    prepare.by_name(arguments.name)
    if arguments.form:
        raise ConfigError(f"--form is for your own data (prepare {OWN}), not for {arguments.name}.")
    if arguments.hide_names:
        raise ConfigError(f"--hide-names is for your own data (prepare {OWN}), not for {arguments.name}.")
    if not arguments.source:
        raise ConfigError(
            "Name the directory of the published files with --source DIR, or fetch them with --source download."
        )
    done = prepare.prepare(arguments.name, arguments.source, arguments.to)
    if done.unknown:
        names = ", ".join(done.unknown)
        complain(f"warning: {names}: not the published files, by checksum; used anyway.")
    if done.already:
        say(f"{arguments.name} has already been prepared in {shown(done.directory)} from the same files.")
    else:
        say(f"{arguments.name}: {_content(done.manifest)} prepared in {shown(done.directory)}.")
    return EXIT_DONE


def _prepare_own(arguments: argparse.Namespace) -> int:
    from ima_dist.data.sources.prepare import prepare as prepare_own

    if not arguments.source or not arguments.to:
        raise ConfigError("Name your data with --source DIR, and a new directory for the copy with --to DIR.")
    directory, manifest, already = prepare_own(arguments.source, arguments.form, arguments.to, arguments.hide_names)
    words = "have already been prepared" if already else f"{_content(manifest)} prepared"
    say(f"{'The same data' if already else 'Own data:'} {words} in {shown(directory)}.")
    return EXIT_DONE


def _find(arguments: argparse.Namespace) -> int:
    place = prepare.find(arguments.name, arguments.dir, arguments.download)
    say(f"{arguments.name} is in {shown(place.absolute())}.")
    return EXIT_DONE


def _verify(arguments: argparse.Namespace) -> int:
    directory, manifest = prepare.verify(arguments.what)
    say(f"{shown(directory.absolute())} is whole: {manifest['name']}, {_content(manifest)}.")
    return EXIT_DONE


def _content(manifest: dict[str, dict[str, dict[str, int]]]) -> str:
    parts = manifest["parts"].values()
    return f"{sum(p['rows'] for p in parts)} images ({sum(p['bytes'] for p in parts) / 1e6:.1f} MB)"


if __name__ == "__main__":
    sys.exit(main())
