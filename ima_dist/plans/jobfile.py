"""Job files: the rows of one of the paper's tables, and where their runs lie."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from annotated_types import Len
from pydantic import Field, Strict

from ima_dist.config.checked import Checked, validated
from ima_dist.config.errors import ConfigError, did_you_mean
from ima_dist.config.presets import make_config
from ima_dist.config.schema import Config

PACKAGED = Path(__file__).parents[1] / "jobs"
Options = dict[Any, Any]


@dataclass(frozen=True)
class Job:
    """A job file, checked.

    title: what the table shows. table: its number in the paper, or None. rows: name, as in the paper's
    tables -> configuration. epochs: further epochs to evaluate (Tables 16 to 21). then: evaluations with
    other settings of all rows, as options of ima_dist.evaluate. scale: the name of the reduction, or None.
    """

    title: str
    table: int | None
    rows: dict[str, Config]
    epochs: tuple[int, ...] = ()
    then: tuple[dict[str, Any], ...] = ()
    scale: str | None = None


class Written(Checked):
    """The entries that job and sweep files share."""

    title: str
    preset: str
    options: Options = Field({})
    scales: dict[Any, Options | None] = Field({})

    def scaled(self, scale: str | None) -> Options:
        """The entries of a scale. Raises ConfigError if there is none of that name."""
        if scale is not None and scale not in self.scales:
            names = ", ".join(map(str, self.scales)) or "none"
            raise ConfigError(f"there is no scale {scale!r}{did_you_mean(scale, self.scales)}: the file has {names}.")
        return dict(self.scales.get(scale) or {})


class WrittenJob(Written):
    rows: Annotated[dict[Any, Options | None], Len(1)]
    table: int | None = None
    epochs: Annotated[tuple[int, ...], Strict(False)] = ()
    then: list[Options] = Field([])


def find_file(name: Path | str) -> Path:
    """The job or sweep file ``name``; for a bare name such as table02 that is no file here, the packaged one.

    Raises ConfigError if there is neither.
    """
    path = Path(name)
    if path.is_file() or path.name != str(name):
        return path
    for place in (Path(), PACKAGED):
        for file in (place / path.name, place / f"{path.name}.yaml"):
            if file.is_file():
                return file
    known = sorted(file.stem for file in PACKAGED.glob("*.yaml"))
    hint = did_you_mean(path.stem, known) or f", which are {', '.join(known)}"
    raise ConfigError(f"There is no file {name} here, nor among the job files of ima_dist{hint}.")


def parsed(path: Path | str, parse: Callable[[str], Any], form: str) -> Any:
    """The content of a file in YAML or TOML. Raises ConfigError naming the file."""
    try:
        return parse(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror or error}): check the path.") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path} is not valid {form} ({' '.join(str(error).split())}): correct it.") from None


def read_yaml(path: Path | str, content: str) -> dict[str, Any]:
    """The mapping in a YAML file that should hold ``content``. Raises ConfigError naming the file."""
    tree = parsed(path, yaml.safe_load, "YAML")
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping with {content}.")
    return {str(key): value for key, value in tree.items() if value is not None}


def read_job(path: Path | str, scale: str | None = None, options: dict[str, Any] | None = None) -> Job:
    """The job in a file, with its ``scale`` (a name in the file's ``scales``) and then ``options`` on top.

    A scale's ``epochs`` also shrinks the epochs of Tables 16 to 21 in proportion, so that each stays the
    same share of the run; its ``then`` replaces entries of every further evaluation.
    Raises ConfigError naming the file and the entry.
    """
    path = find_file(path)
    tree = read_yaml(path, "title, preset and rows")
    if "sweep" in tree:
        raise ConfigError(f"{path} is a sweep file: give it to python -m ima_dist.sweep.")
    try:
        return _job(validated(WrittenJob, tree, "the file"), scale, options or {})
    except ConfigError as error:
        raise ConfigError(f"In {path}: {error}") from None


def _job(file: WrittenJob, scale: str | None, options: dict[str, Any]) -> Job:
    reduced = {**file.scaled(scale), **options}
    again = reduced.pop("then", {})
    rows, full = {}, {}
    for name, own in file.rows.items():
        try:
            given = {**file.options, **(own or {})}
            full[name] = make_config(file.preset, given)
            rows[str(name)] = make_config(file.preset, {**given, **reduced})
        except ConfigError as error:
            raise ConfigError(f"row {name}: {error}") from None
    share = max(c.epochs for c in rows.values()) / max(c.epochs for c in full.values())
    epochs = tuple(sorted({max(1, round(e * share)) for e in file.epochs}))
    then = tuple({f"eval.{k}": v for k, v in {**entry, **again}.items()} for entry in file.then)
    return Job(file.title, file.table, rows, epochs, then, scale)


def run_path(root: Path, config: Config) -> Path:
    """Where the run of a configuration lies; rows of several tables share it."""
    return (
        root
        / f"{config.name or config.preset}-{config.method}-{config.norm}-seed{config.seed}-{config.fingerprint()[:8]}"
    )
