"""What a view shows for an address: from the runs as they are now to its state and its parts."""

from typing import Any

from ima_dist.dashboard.parts import Editor, Part, Values
from ima_dist.dashboard.state import Control, Several, State, words
from ima_dist.dashboard.views import VIEWS
from ima_dist.tracking.collection import Collection

_FIRST_VIEW = "home"


def view_of(path: str | None) -> str:
    """The name of the view in a path; the first view for any other path."""
    name = (path or "").rpartition("/")[2]
    return name if name in VIEWS else _FIRST_VIEW


def values_of(controls: list[Control]) -> Values:
    return {c.name: c.value for c in controls}


def shown(name: str, state: State, now: Collection, edit: bool = False) -> tuple[State, list[Part]]:
    """The whole state of a view, and its parts. edit: with what changes notes."""
    controls = VIEWS[name].controls(now, state)
    values = values_of(controls)
    parts = VIEWS[name].show(now, values)
    return with_values(state, values, controls), parts if edit else [p for p in parts if not isinstance(p, Editor)]


def given(values: list[Any], ids: list[dict[str, str]]) -> Values:
    """The values that the page's controls have, by name."""
    return {i["control"]: v for i, v in zip(ids, values, strict=True)}


def with_values(state: State, values: Values, controls: list[Control]) -> State:
    """The state with these values; what is usual is left out, so that addresses stay short."""
    usual = {c.name: list(c.usual) for c in controls if isinstance(c, Several) and c.usual}
    return {**state, **{n: [] if value == usual.get(n) else words(value) for n, value in values.items()}}
