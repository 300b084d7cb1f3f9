"""What changes while it is looked at: each part of a live view is drawn again when it has changed, and no other."""

import hashlib
from collections.abc import Sequence
from typing import Any

from dash import ALL, Dash, Input, Output, State, html, no_update

from ima_dist.dashboard.browser import rows_of
from ima_dist.dashboard.choosing import look
from ima_dist.dashboard.parts import Browser, Part, Plot
from ima_dist.dashboard.render import part as draw_part
from ima_dist.dashboard.shown import shown, view_of
from ima_dist.dashboard.state import State as Selection
from ima_dist.dashboard.state import parse
from ima_dist.dashboard.views import VIEWS
from ima_dist.tracking.collection import Collection

EVERY = 3000  # milliseconds


def wrapped(parts: Sequence[Part], view: str, state: Selection) -> list[Any]:
    """The parts as components, each in an element of its own."""
    return [html.Div(draw_part(p, view, state), id={"live": i}) for i, p in enumerate(parts)]


def marks(parts: Sequence[Part]) -> list[str]:
    """What tells a part from the same one with other content."""
    return [hashlib.sha256(_content(p).encode()).hexdigest()[:16] for p in parts]


def _content(p: Part) -> str:
    return f"{p.name} {p.caption} {p.figure.to_json()}" if isinstance(p, Plot) else repr(p)


def add_live(app: Dash, runs: Collection, edit: bool) -> None:
    @app.callback(
        Output("content", "children", allow_duplicate=True),
        Output({"live": ALL}, "children"),
        Output({"browser": ALL}, "rowData"),
        Output("seen", "data", allow_duplicate=True),
        Input("tick", "n_intervals"),
        State("address", "pathname"),
        State("address", "search"),
        State("seen", "data"),
        State({"live": ALL}, "id"),
        State({"browser": ALL}, "id"),
        prevent_initial_call=True,
    )
    def again(
        ticks: int, path: str, search: str, seen: list[str] | None, places: list[Any], browsers: list[Any]
    ) -> Any:
        name = view_of(path)
        nothing = no_update, [no_update] * len(places), [no_update] * len(browsers), no_update
        if not VIEWS[name].LIVE:
            return nothing
        whole, parts = shown(name, parse(search), look(runs), edit)
        now = marks(parts)
        if now == seen:
            return nothing
        if len(now) != len(places) or seen is None or len(seen) != len(now):
            return wrapped(parts, name, whole), nothing[1], nothing[2], now
        changed = [p for p, mark, before in zip(parts, now, seen, strict=True) if mark != before]
        # A table keeps its place, its order and its choice: only its rows are new.
        rows = {p.name: rows_of(p) for p in changed if isinstance(p, Browser)}
        drawn = [
            no_update if mark == before or isinstance(p, Browser) else draw_part(p, name, whole)
            for p, mark, before in zip(parts, now, seen, strict=True)
        ]
        return no_update, drawn, [rows.get(i["browser"], no_update) for i in browsers], now
