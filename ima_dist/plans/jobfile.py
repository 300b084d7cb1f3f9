"""Job files: the rows of one of the paper's tables, and where their runs lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ima_dist.config.errors import ConfigError, did_you_mean
from ima_dist.config.presets import make_config
from ima_dist.config.schema import Config


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


_KEYS = ("title", "table", "preset", "options", "rows", "epochs", "then", "scales")


def read_yaml(path: Path | str, content: str) -> dict[str, Any]:
    """The mapping in a YAML file that should hold ``content``. Raises ConfigError naming the file."""
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror or error}): check the path.") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path} is not valid YAML ({' '.join(str(error).split())}): correct it.") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping with {content}.")
    return tree


def read_job(path: Path | str, scale: str | None = None, options: dict[str, Any] | None = None) -> Job:
    """The job in a file, with its ``scale`` (a name in the file's ``scales``) and then ``options`` on top.

    A scale's ``epochs`` also shrinks the epochs of Tables 16 to 21 in proportion, so that each stays the
    same share of the run; its ``then`` replaces entries of every further evaluation.
    Raises ConfigError naming the file and the entry.
    """
    tree = read_yaml(path, "title, preset and rows")
    if "sweep" in tree:
        raise ConfigError(f"{path} is a sweep file: give it to python -m ima_dist.sweep.")
    for key in tree:
        if key not in _KEYS:
            raise ConfigError(f"{path} has an unknown entry {key!r}{did_you_mean(key, _KEYS)}.")
    for key in ("title", "preset", "rows"):
        if not tree.get(key):
            raise ConfigError(f"{path} lacks the entry {key!r}.")
    scales = tree.get("scales") or {}
    if scale is not None and scale not in scales:
        raise ConfigError(f"{path} has no scale {scale!r}: it has {', '.join(scales) or 'none'}.")
    reduced = {**(scales[scale] if scale else {}), **(options or {})}
    again = reduced.pop("then", {})
    rows, full = {}, {}
    for name, own in tree["rows"].items():
        try:
            given = {**(tree.get("options") or {}), **(own or {})}
            full[name] = make_config(tree["preset"], given)
            rows[str(name)] = make_config(tree["preset"], {**given, **reduced})
        except ConfigError as error:
            raise ConfigError(f"In {path}, row {name}: {error}") from None
    share = max(c.epochs for c in rows.values()) / max(c.epochs for c in full.values())
    epochs = tuple(sorted({max(1, round(e * share)) for e in tree.get("epochs") or ()}))
    then = tuple({f"eval.{k}": v for k, v in {**entry, **again}.items()} for entry in tree.get("then") or ())
    return Job(str(tree["title"]), tree.get("table"), rows, epochs, then, scale)


def run_path(root: Path, config: Config) -> Path:
    """Where the run of a configuration lies; rows of several tables share it."""
    return root / f"{config.preset}-{config.method}-{config.norm}-seed{config.seed}-{config.fingerprint()[:8]}"
