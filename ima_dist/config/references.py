"""Finding the function that a ``pkg.module:function`` option names."""

import importlib
from collections.abc import Callable
from typing import Any

from ima_dist.config.errors import ConfigError, did_you_mean, first_line
from ima_dist.config.sources import SOURCES

# Their networks are found by name alone.
_LIBRARIES = ("torchvision", "timm")


def resolve_reference(reference: str, option: str) -> Callable[..., Any]:
    """The function called ``reference`` ("pkg.module:function", or a built-in source), as given to ``--<option>``.

    Raises ConfigError if the text has another form, if the module does not exist or fails on import (the
    original exception stays chained), or if it has no such function.
    """
    if option == "data.source":
        reference = SOURCES.get(reference, reference)
    module_name, _, name = reference.partition(":")
    if module_name in _LIBRARIES:
        found: Callable[..., Any] = importlib.import_module("ima_dist.models.libraries").factory(module_name, name)
        return found
    if not module_name or not name.isidentifier():
        raise ConfigError(f"--{option} must have the form pkg.module:function, not {reference!r}.")
    try:
        module = importlib.import_module(module_name)
    except Exception as e:
        # Another module that is missing is an import inside the user's module, not a slip in the option.
        if isinstance(e, ModuleNotFoundError) and e.name and f"{module_name}.".startswith(f"{e.name}."):
            raise ConfigError(
                f"--{option} {reference}: there is no module {e.name!r}; check the spelling, and that its "
                "directory is the current one or in PYTHONPATH."
            ) from e
        raise ConfigError(
            f"--{option} {reference}: importing {module_name} failed, correct it: {first_line(e)}."
        ) from e
    function = getattr(module, name, None)
    if not callable(function):
        known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise ConfigError(f"--{option} {reference}: {module_name} has no function {name!r}{did_you_mean(name, known)}.")
    return function
