"""The preset ``own``: what it needs to be told, and what it chooses where nothing is given."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ima_dist.config.errors import ConfigError
from ima_dist.config.forms import is_source
from ima_dist.config.numbers import level_text
from ima_dist.config.schema import EXTERNAL, Config
from ima_dist.config.sources import SOURCES, guess_source
from ima_dist.config.values import as_flags, as_option

OWN = "own"
# Settings that no preset can know; they identify the data and the question that is asked of them.
ALWAYS = ("name", "data.source", "model.factory", "eps_max", "eval.noise")
FACTORY = "ima_dist.models:default_network"
_EXAMPLES = {"name": "mydata", "eps_max": "8/255", "eval.noise": "0,4/255,8/255"}
_EPOCHS = 60
# Eight grey levels, the usual level for natural images; in a window, the same share of it.
_EPS = 8 / 255
_LEVELS = (0.0, 2 / 255, 4 / 255, 8 / 255)
# Images of files are large as a rule, and few.
_BATCHES = dict.fromkeys(("folder", "list", "dicom", "nifti"), 32)


def own_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options by dotted name of a run on one's own data, with those that are ``given`` and those that we choose.

    Raises ConfigError if there is nothing to choose from.
    """
    given = {name: value for name, value in given.items() if value is not None}
    place, source = given.get("data.dir"), given.get("data.source")
    if source is None and place is None:
        raise ConfigError(
            f"The preset {OWN} needs --data.dir DIR, with your data in one of the forms "
            f"{', '.join(SOURCES)}, or a function of your own (--data.source mine:load)."
        )
    if source is not None:
        try:
            is_source(str(source))
        except ValueError as error:  # it says more than what is then missing
            raise ConfigError(f"--data.source must {error}, not {source!r}.") from None
    chosen: dict[str, Any] = {"preset": OWN, "epochs": _EPOCHS, "eval.order": "stratified", "model.factory": FACTORY}
    if source is None:
        source = chosen["data.source"] = guess_source(str(place))
    if source in SOURCES:
        if source in _BATCHES:
            chosen["batch_size"] = _BATCHES[source]
        if place is not None:
            chosen["name"] = _name(str(place))
        if given.get("norm", "linf") == "linf":
            chosen |= _levels(given.get("data.window"))
        if given.get("method") == EXTERNAL:
            chosen.pop("eps_max", None)  # it follows from the noise levels
    found = {**chosen, **given}
    spared = ("name", "eps_max") if given.get("method") == EXTERNAL else ()
    needed = {name: text for name, text in _EXAMPLES.items() if name not in spared}
    missing = [f"{as_option(name)} (such as {text})" for name, text in needed.items() if found.get(name) is None]
    if missing:
        raise ConfigError(f"The preset {OWN} needs {', '.join(missing)}.")
    return found


def chosen_text(config: Config, given: Iterable[str]) -> str:
    """One line about what was chosen for a run on one's own data; "" if everything was ``given``."""
    names = (*ALWAYS, "model.mean", "model.std", "epochs", "batch_size")
    values: dict[str, Any] = {
        "name": config.name,
        "data.source": config.data.source,
        "model.factory": config.model.factory,
        "eps_max": level_text(config.eps_max),
        "eval.noise": [level_text(level) for level in config.eval.noise],
        "model.mean": config.model.mean,
        "model.std": config.model.std,
        "epochs": config.epochs,
        "batch_size": config.batch_size,
    }
    left = {name: values[name] for name in names if name not in set(given) and values[name] not in ((), None)}
    if not left:
        return ""
    words = as_flags(left)
    about = {
        FACTORY: " (ResNet-18 with instance norm for images, a small MLP for tables and for at most 8×8 pixels)",
    }
    pairs = [f"{flag} {value}{about.get(value, '')}" for flag, value in zip(words[::2], words[1::2], strict=True)]
    units = f", in units of the window {_text(config.data.window)}" if config.data.window else ""
    return f"Chosen, since not given: {', '.join(pairs)}{units}."


def check_chosen(config: Config, given: Iterable[str], inputs: Mapping[str, Any]) -> None:
    """Raise ConfigError if the noise levels were chosen for images, and the data are numbers in other units.

    inputs: the range of the data, as ``training.door.input_range`` returns it.
    """
    chosen = {"eps_max", "eval.noise"} - set(given)
    if not chosen or config.preset != OWN or config.data.source not in SOURCES:
        return
    low, high = inputs["low"], inputs["high"]
    if inputs["box"] is None and not 0 <= low <= high <= 1:
        raise ConfigError(
            f"These data lie between {low:g} and {high:g}, without fixed limits, so no noise levels can be chosen: "
            "give --eps-max and --eval.noise in their units (or as shares of their range, with --eps-unit range)."
        )


def _text(window: tuple[float, ...]) -> str:
    return " to ".join(f"{value:g}" for value in window)


def _levels(window: Any) -> dict[str, Any]:
    """Noise levels, and how the network normalises, for images from 0 to 1 or in a window of other units."""
    try:
        low, high = (float(value) for value in window or (0.0, 1.0))
    except (TypeError, ValueError):
        return {}  # the configuration says what is wrong with it
    levels: dict[str, Any] = {"eps_max": _EPS * (high - low), "eval.noise": [v * (high - low) for v in _LEVELS]}
    if window and low < high:
        levels |= {"model.mean": ((low + high) / 2,), "model.std": ((high - low) / 2,)}
    return levels


def _name(place: str) -> str:
    """A name for the data in this directory or file."""
    path = Path(place).expanduser().absolute()
    name = path.stem if path.is_file() else path.name
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).lstrip("._-") or "data"
