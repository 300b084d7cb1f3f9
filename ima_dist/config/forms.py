"""The forms of single options. Each check returns its value, or raises ValueError, which continues "--option must"."""

import hashlib
import re
from pathlib import Path
from typing import Any

from pydantic import model_validator

from ima_dist.config.augmentations import steps_of
from ima_dist.config.errors import ConfigError, did_you_mean
from ima_dist.config.sources import SOURCES


def is_reference(value: str) -> str:
    """``value`` if it has the form pkg.module:function; else ValueError."""
    module, _, function = value.partition(":")
    if module == "__main__":
        raise ValueError(
            "name a function of a module that every process can import, not of __main__: put it into a file, such as "
            f"mine.py, and name it mine:{function or 'load'}"
        )
    if all(part.isidentifier() for part in module.split(".")) and function.isidentifier() and module[-3:] != ".py":
        return value
    # People also write the path of the file, or a dot in place of the colon.
    path = value.removeprefix("./").replace("/", ".").replace(".py:", ":")
    guess = path if ":" in path else ":".join(path.rsplit(".", 1))
    close = bool(re.fullmatch(r"[\w.]+\w:\w+", guess)) and not guess.endswith(":py")
    raise ValueError("have the form pkg.module:function" + f", such as {guess}" * close)


def is_source(value: str) -> str:
    if value in SOURCES:
        return value
    try:
        return is_reference(value)
    except ValueError as error:
        raise ValueError(f"be one of {', '.join(SOURCES)}, or {error}{did_you_mean(value, SOURCES)}") from None


def is_channels(value: int) -> int:
    if value not in (1, 3):
        raise ValueError("be 1 (grey) or 3 (RGB)")
    return value


def is_window(value: tuple[float, ...]) -> tuple[float, ...]:
    if value and (len(value) != 2 or value[0] >= value[1]):
        raise ValueError("be two numbers in ascending order, such as -1350,150")
    return value


def is_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", value):
        raise ValueError("consist of letters, digits, dots, dashes and underscores")
    return value


def absolute_if_file(value: str) -> str:
    return str(Path(value).absolute()) if Path(value).is_file() else value


def adding_checksum(name: str) -> Any:
    """A validator that adds the checksum of the file that the option names, which is what a result depends on.

    ``groups`` may also be something else than a file; ``weights`` may not.
    """
    option, checksum = {"groups": "data.groups", "weights": "model.weights"}[name], f"{name}_sha256"

    def add(values: Any) -> Any:
        given = values.get(name) if isinstance(values, dict) else None
        if not given or values.get(checksum):
            return values
        path = Path(str(given)).absolute()
        if name == "groups" and not path.is_file():
            return values
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise ConfigError(f"--{option} {path} cannot be read ({error.strerror}): check the path.") from None
        return {**values, name: str(path), checksum: found}

    return model_validator(mode="before")(add)


def is_worker_count(value: Any) -> Any:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        if value is not None and value < 1:
            raise ValueError("be at least 1")
    elif not isinstance(value, str) or not 1 <= whole_range(value)[0] <= whole_range(value)[1]:
        raise ValueError("be a whole number, or a range such as 1-4")
    return value


def whole_range(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)-(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def is_augmentation(value: str) -> str:
    """``value`` if it names steps or a function for ``--data.augment``; else ValueError."""
    return value if steps_of(value) is not None else is_reference(value)
