"""``python -m ima_dist.predict RUN_OR_EXPORT FOLDER --to CSV``: classify the images of a folder.

The CSV file has a row for each image (PNG, JPEG, TIFF, BMP, WebP) in the folder and its subfolders: file, class, and
the probability of each class.
"""

import csv
import io
import sys

from ima_dist.cli.entry import absolute_output, existing, guarded, say, shown
from ima_dist.cli.parser import OneLineParser
from ima_dist.cli.running import see_users_modules
from ima_dist.config.errors import EXIT_DONE, ConfigError, printable
from ima_dist.results.text import harmless
from ima_dist.results.tradeoff import RULES
from ima_dist.rundir.files import why_unwritable, write_text_atomic


def main(argv: list[str] | None = None) -> int:
    """Exit status as for ``ima_dist.train``."""
    return guarded(_main, sys.argv[1:] if argv is None else argv)


def _main(argv: list[str]) -> int:
    parser = OneLineParser(prog="python -m ima_dist.predict", description=__doc__, allow_abbrev=False)
    parser.add_argument("classifier", metavar="RUN_OR_EXPORT", help="directory of a run, or of ima_dist.export")
    parser.add_argument("folder", metavar="FOLDER", help="a folder with images, also in subfolders")
    parser.add_argument("--to", required=True, metavar="CSV", help="a file that does not exist yet")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--epoch", type=int, metavar="N", help="of a run, the weights after N epochs (default: the last)"
    )
    which.add_argument("--select", metavar="RULE", help=f"of a run, {RULES}: the epoch that this rule selects")
    parser.add_argument("--device", choices=("cpu", "cuda", "auto"), default="auto", help="where to compute")
    arguments = parser.parse_args(argv)
    to, folder = absolute_output(arguments.to), existing(arguments.folder)
    if to.exists():
        raise ConfigError(f"{to} exists: give another --to, or delete it.")
    if reason := why_unwritable(to):
        raise ConfigError(f"{to} cannot be written ({reason}): give another --to.")
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder: give one with images.")

    import torch

    from ima_dist.classifier.loading import load

    see_users_modules()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda was given, but torch finds no CUDA device: use --device cpu or auto.")
    device = "cpu" if arguments.device == "cpu" or not torch.cuda.is_available() else "cuda"
    classifier = load(existing(arguments.classifier), arguments.epoch, arguments.select, device)
    files = classifier.files(folder)
    labels, probabilities = classifier.predict(files)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["file", "class", *(f"p({name})" for name in classifier.class_names)])
    for file, label, shares in zip(files, labels, probabilities, strict=True):
        name = printable(file.relative_to(folder).as_posix())
        rows.writerow([harmless(name), harmless(classifier.class_names[label]), *(f"{share:.6g}" for share in shares)])
    write_text_atomic(to, text.getvalue())
    say(f"{len(files)} image{'s' * (len(files) != 1)} classified: {shown(to)}")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
