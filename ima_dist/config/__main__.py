"""``python -m ima_dist.config > docs/settings.md``: the settings of the presets, and where they come from."""

from collections.abc import Iterable, Iterator
from typing import Any

from ima_dist.config.choices import CHOICES, Setting
from ima_dist.config.presets import PRESET_NORMS, PRESETS, make_config
from ima_dist.config.provenance import OPTIONS, holds
from ima_dist.config.schema import METHODS, NORMS, ONLY_NORM, Config
from ima_dist.config.values import option_values

_HEAD = """# Settings: the paper's and ours

Made by `python -m ima_dist.config > docs/settings.md` from the presets (`ima_dist/config/presets.py`) and the list of
origins (`ima_dist/config/provenance.py`, `choices.py`); a test holds that every value of every preset is in it. The
report has the part that concerns its runs.
"""
_SECTIONS = (
    ("Ours", "ours", "The paper leaves these open, and we chose."),
    ("Inferred", "inferred", "The paper does not state these, but what it prints allows a conclusion."),
    ("The paper's", "paper", "With the place in the paper."),
    (
        "The journal article's",
        "journal",
        "Of Ma and Liang, Computer Methods and Programs in Biomedicine 240 (2023), as their released code has them.",
    ),
)


def configs() -> Iterator[Config]:
    """Every preset with every norm and method of its own."""
    for preset in PRESETS:
        for norm in PRESET_NORMS[preset]:
            for method in METHODS:
                if ONLY_NORM.get(method, norm) == norm:
                    yield make_config(preset, {"norm": norm, "method": method})


def page() -> str:
    """The page as Markdown."""
    every = list(configs())
    lines = [_HEAD]
    for title, origin, words in _SECTIONS:
        options = [entry for entry in OPTIONS if entry.origin == origin]
        lines += [f"## {title}\n\n{words}\n\n| option and value | for | source or reason |\n| --- | --- | --- |"]
        for entry in options:
            values = "; ".join(f"`{name}` {_values(entry, name, every)}" for name in entry.options)
            lines.append(_row((values, _scope(entry), entry.source)))
        choices = [entry for entry in CHOICES if entry.origin == origin]
        if choices:
            lines += ["\n| beside the options | for | source or reason |\n| --- | --- | --- |"]
            lines += [_row((entry.what, _scope(entry), entry.source)) for entry in choices]
        lines.append("")
    return "\n".join(lines)


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _scope(entry: Setting) -> str:
    parts = []
    if set(entry.presets) != set(PRESETS):
        parts.append(", ".join(entry.presets))
    if set(entry.methods) != set(METHODS):
        others = [method for method in METHODS if method not in entry.methods]
        parts.append(f"all methods but {others[0]}" if len(others) == 1 else ", ".join(entry.methods))
    if set(entry.norms) != set(NORMS):
        parts.append({"linf": "L∞", "l2": "L2"}[entry.norms[0]])
    return "; ".join(parts) or "all"


def _values(entry: Setting, name: str, every: list[Config]) -> str:
    """The presets' values, with the presets where they differ."""
    found: dict[str, list[str]] = {}
    for config in every:
        if holds(entry, name, config):
            value = _shown(option_values(config).get(name))
            if name == "delta_eps" and config.delta_eps is None:
                value = "1.9/8 of ε_max" if config.method == "iaat" else "ε_max / epochs"
            found.setdefault(value, []).append(config.preset)
    if len(found) == 1:
        return next(iter(found))
    return " / ".join(f"{value} ({', '.join(dict.fromkeys(presets))})" for value, presets in found.items())


def _shown(value: Any) -> str:
    if value is None or value in ({}, []):
        return "not set"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    if isinstance(value, float):
        pixels = value * 255
        fine = abs(value - round(value, 4)) > 1e-7 and abs(pixels - round(pixels)) < 1e-6
        return f"{round(pixels)}/255" if fine else f"{value:g}"
    return str(value)


if __name__ == "__main__":
    print(page(), end="")
