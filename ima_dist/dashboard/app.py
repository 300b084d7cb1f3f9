"""The page: from the address to controls and content, and from a moved control to a new address.

The address holds the whole selection, so every state has a link and the server keeps none.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from dash import ALL, Dash, Input, Output, State, dcc, html, no_update
from dash.exceptions import DependencyException
from flask import Flask, Response, abort, request

from ima_dist.dashboard import access
from ima_dist.dashboard.parts import Grid, Part, Values
from ima_dist.dashboard.render import control as draw_control
from ima_dist.dashboard.render import part as draw_part
from ima_dist.dashboard.state import Control, parse, unparse, words
from ima_dist.dashboard.state import State as Selection
from ima_dist.dashboard.views import VIEWS
from ima_dist.tracking.collection import Collection

_LOOK_SECONDS = 2.0
_FIRST_VIEW = "runs"


def make_app(root: Path, token: str | None = None) -> Dash:
    """The application for the results directory ``root``; ``token`` as in ``access.guard``."""
    runs = Collection(root)
    server = Flask("ima_dist.dashboard", static_folder=None)
    access.guard(server, token)
    app = Dash(
        "ima_dist.dashboard",
        server=server,  # type: ignore[arg-type]
        assets_folder=str(Path(__file__).parent / "assets"),
        serve_locally=True,
        title="ima_dist",
        update_title=None,  # type: ignore[arg-type]
        suppress_callback_exceptions=True,
        add_log_handler=False,
    )
    # By default Dash answers a request for an unknown file with status 500, and lists all its files in the log.
    server.register_error_handler(DependencyException, lambda error: ("There is no such file.", 404))
    app.layout = _layout(root)
    _add_controls(app, runs)
    _add_content(app, runs)
    _add_addresses(app)
    _add_downloads(server, runs)
    return app


def look(runs: Collection) -> Collection:
    """A copy of the runs as they are now, which does not change during a request."""
    runs.refresh(_LOOK_SECONDS)
    return Collection(runs.root, runs.runs, runs.problems)


def view_of(path: str | None) -> str:
    """The name of the view in a path; the first view for any other path."""
    name = (path or "").strip("/")
    return name if name in VIEWS else _FIRST_VIEW


def values_of(controls: list[Control]) -> Values:
    return {c.name: c.value for c in controls}


def _layout(root: Path) -> html.Div:
    views: dict[str, Any] = {"id": "views", "aria-label": "Views"}
    selection: dict[str, Any] = {"id": "controls", "aria-label": "Selection"}
    content: dict[str, Any] = {"id": "content", "tabIndex": -1, "aria-live": "polite"}
    return html.Div(
        [
            dcc.Location(id="address", refresh=False),
            *(dcc.Store(id=name) for name in ("drawn", "canonical", "wanted", "seen")),
            html.A("Skip to the content", href="#content", className="skip"),
            html.Header([html.H1(["ima_dist ", html.Small(str(root))]), html.Nav(**views)]),
            html.Details(id="problems", hidden=True),
            html.Main([html.P(id="introduction"), html.Form(**selection), html.Div(**content)]),
        ]
    )


def _add_controls(app: Dash, runs: Collection) -> None:
    @app.callback(
        Output("controls", "children"),
        Output("drawn", "data"),
        Input("address", "pathname"),
        Input("address", "search"),
        State("drawn", "data"),
        State({"control": ALL}, "value"),
        State({"control": ALL}, "id"),
    )
    def controls(path: str, search: str, drawn: str | None, values: list[Any], ids: list[dict[str, str]]) -> Any:
        name = view_of(path)
        found = VIEWS[name].controls(look(runs), parse(search))
        # Drawn again only if they differ: a slider that is moved by keyboard must keep the focus.
        form = json.dumps([name, [[type(c).__name__, c.name, _range(c)] for c in found]])
        if form == drawn and _given(values, ids) == values_of(found):
            return no_update, no_update
        return [draw_control(c) for c in found], form

    @app.callback(
        Output("wanted", "data"),
        Input({"control": ALL}, "value"),
        State({"control": ALL}, "id"),
        State("address", "pathname"),
        State("address", "search"),
        prevent_initial_call=True,
    )
    def moved(values: list[Any], ids: list[dict[str, str]], path: str, search: str) -> Any:
        state = parse(search)
        before, given = values_of(VIEWS[view_of(path)].controls(look(runs), state)), _given(values, ids)
        # Controls of the previous view may still be there for a moment.
        if given.keys() != before.keys() or given == before:
            return no_update
        return path + unparse(_with(state, given))


def _add_content(app: Dash, runs: Collection) -> None:
    @app.callback(
        Output("content", "children"),
        Output("introduction", "children"),
        Output("views", "children"),
        Output("problems", "children"),
        Output("problems", "hidden"),
        Output("canonical", "data"),
        Input("address", "pathname"),
        Input("address", "search"),
        State("canonical", "data"),
    )
    def content(path: str, search: str, canonical: list[str] | None) -> Any:
        # A view is not drawn again because its address has been completed.
        if canonical and canonical[1] == f"{path}{search or ''}":
            return (no_update,) * 6
        name, now = view_of(path), look(runs)
        whole, parts = _shown(name, parse(search), now)
        drawn = [draw_part(p, name, whole) for p in parts]
        if name == _FIRST_VIEW:
            drawn = [html.Div(drawn, id="live"), dcc.Interval(id="tick", interval=2000)]
        view = VIEWS[name]
        canon = [f"{path}{search or ''}", f"/{name}{unparse(whole)}", view.TITLE]
        return drawn, view.INTRODUCTION, _links(name, whole), _problems(now), not now.problems, canon

    # Only the list of runs is live: a figure must not change while it is looked at.
    @app.callback(
        Output("live", "children"),
        Output("seen", "data"),
        Input("tick", "n_intervals"),
        State("address", "search"),
        State("seen", "data"),
        prevent_initial_call=True,
    )
    def live(ticks: int, search: str, seen: str | None) -> Any:
        whole, parts = _shown(_FIRST_VIEW, parse(search), look(runs))
        shown = hashlib.sha256(repr(parts).encode()).hexdigest()
        return (no_update, no_update) if shown == seen else ([draw_part(p, _FIRST_VIEW, whole) for p in parts], shown)


def _add_addresses(app: Dash) -> None:
    """The browser writes the address, and Dash only reads it.

    A moved control is a step in the history. Completing the address is not, so that "back" leads to another page.
    """
    for store, function in (("wanted", "imaDistGo"), ("canonical", "imaDistComplete")):
        app.clientside_callback(
            f"function(found) {{ if (found) window.{function}(found); return window.dash_clientside.no_update; }}",
            Output(store, "modified_timestamp"),
            Input(store, "data"),
        )


def _add_downloads(server: Flask, runs: Collection) -> None:
    @server.get("/csv/<view>/<table>.csv")
    def table(view: str, table: str) -> Response:
        state = parse(request.query_string.decode("utf-8", "replace"))
        for part in _shown(view, state, look(runs))[1] if view in VIEWS else ():
            if isinstance(part, Grid) and part.name == table:
                disposition = {"Content-Disposition": f"attachment; filename={view}-{part.name}.csv"}
                return Response(part.csv(), mimetype="text/csv", headers=disposition)
        abort(404)


def _shown(name: str, state: Selection, now: Collection) -> tuple[Selection, list[Part]]:
    """The whole state of a view, and its parts."""
    values = values_of(VIEWS[name].controls(now, state))
    return _with(state, values), VIEWS[name].show(now, values)


def _range(c: Control) -> Any:
    return list(c.options.items()) if hasattr(c, "options") else [c.low, c.high]


def _given(values: list[Any], ids: list[dict[str, str]]) -> Values:
    """The values that the page's controls have, by name."""
    return {i["control"]: v for i, v in zip(ids, values, strict=True)}


def _with(state: Selection, values: Values) -> Selection:
    return {**state, **{name: words(value) for name, value in values.items()}}


def _links(current: str, state: Selection) -> list[Any]:
    query, marks = unparse(state), {current: "current"}
    return [
        dcc.Link(view.TITLE, href=f"/{name}{query}", className=marks.get(name, ""), id=f"view-{name}")
        for name, view in VIEWS.items()
    ]


def _problems(runs: Collection) -> list[Any]:
    count = len(runs.problems)
    text = f"{count} file{'s' * (count != 1)} could not be read"
    return [html.Summary(text), html.Ul([html.Li(problem) for problem in runs.problems])]
