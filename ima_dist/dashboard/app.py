"""The page: from the address to controls and content, and from a moved control to a new address.

The address holds the whole selection, so every state has a link and the server keeps none. Links are relative, so that
they hold behind a proxy too.
"""

import json
from pathlib import Path
from typing import Any

from dash import ALL, Dash, Input, Output, State, dcc, html, no_update
from dash.exceptions import DependencyException
from flask import Flask, Response, abort, request

from ima_dist.dashboard import access, live
from ima_dist.dashboard.choosing import look
from ima_dist.dashboard.edit import add_editing
from ima_dist.dashboard.parts import Grid
from ima_dist.dashboard.pictures import add_pictures
from ima_dist.dashboard.prefix import Prefixed
from ima_dist.dashboard.render import control as draw_control
from ima_dist.dashboard.render import linked
from ima_dist.dashboard.shown import given, shown, values_of, view_of, with_values
from ima_dist.dashboard.state import Control, Number, Several, Slider, Text, parse, unparse
from ima_dist.dashboard.terms import head
from ima_dist.dashboard.views import FIGURES, VIEWS
from ima_dist.tracking.collection import Collection


def make_app(root: Path, token: str | None = None, prefix: str = "/", edit: bool = False) -> Dash:
    """The application for the results directory ``root``.

    token: as in ``access.guard``. prefix: as in ``prefix.checked``. edit: whether notes can be written.
    """
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
        requests_pathname_prefix=prefix,
        routes_pathname_prefix="/",
    )
    if prefix != "/":
        server.wsgi_app = Prefixed(server.wsgi_app, prefix)  # type: ignore[method-assign]
    # By default Dash answers a request for an unknown file with status 500, and lists all its files in the log.
    server.register_error_handler(DependencyException, lambda error: ("There is no such file.", 404))
    app.layout = _layout(root)
    _add_controls(app, runs)
    _add_content(app, runs, edit)
    live.add_live(app, runs, edit)
    _add_addresses(app)
    _add_downloads(server, runs)
    add_pictures(server, runs)
    if edit:
        add_editing(app, runs)
    return app


def _layout(root: Path) -> html.Div:
    views: dict[str, Any] = {"id": "views", "aria-label": "Views"}
    selection: dict[str, Any] = {"id": "controls", "aria-label": "Selection"}
    content: dict[str, Any] = {"id": "content", "tabIndex": -1, "aria-live": "polite"}
    return html.Div(
        [
            dcc.Location(id="address", refresh=False),
            *(dcc.Store(id=name) for name in ("drawn", "canonical", "wanted", "seen")),
            dcc.Interval(id="tick", interval=live.EVERY, disabled=True),
            html.A("Skip to the content", href="#content", className="skip"),
            html.Header([html.H1(["ima_dist ", html.Small(str(root))]), html.Nav(**views), head()]),
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
        form = json.dumps([name, [[type(c).__name__, c.name, c.label, _range(c)] for c in found]])
        if form == drawn and given(values, ids) == values_of(found):
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
        found = VIEWS[view_of(path)].controls(look(runs), state)
        several = {c.name for c in found if isinstance(c, Several)}
        # Dash has None for a list that was cleared.
        now = {n: [] if v is None and n in several else v for n, v in given(values, ids).items()}
        before = values_of(found)
        # Controls of the previous view may still be there for a moment.
        if now.keys() != before.keys() or now == before:
            return no_update
        return path + unparse(with_values(state, now, found))


def _add_content(app: Dash, runs: Collection, edit: bool) -> None:
    @app.callback(
        Output("content", "children"),
        Output("introduction", "children"),
        Output("views", "children"),
        Output("problems", "children"),
        Output("problems", "hidden"),
        Output("canonical", "data"),
        Output("tick", "disabled"),
        Output("seen", "data"),
        Input("address", "pathname"),
        Input("address", "search"),
        State("canonical", "data"),
    )
    def content(path: str, search: str, canonical: list[str] | None) -> Any:
        # A view is not drawn again because its address has been completed.
        if canonical and canonical[1] == f"{path}{search or ''}":
            return (no_update,) * 8
        name, now = view_of(path), look(runs)
        whole, parts = shown(name, parse(search), now, edit)
        view = VIEWS[name]
        canon = [f"{path}{search or ''}", f"{path[: path.rfind('/') + 1]}{name}{unparse(whole)}", view.TITLE]
        about = (linked(view.INTRODUCTION, whole), _links(name, whole), _problems(now), not now.problems, canon)
        return (live.wrapped(parts, name, whole), *about, not view.LIVE, live.marks(parts))


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
    app.clientside_callback(
        "function(chosen) { const one = (chosen || []).map(window.imaDistCompare); "
        "return [0, 1, 2].map(i => one.map(part => part[i])); }",
        Output({"compare": ALL}, "href"),
        Output({"compare": ALL}, "children"),
        Output({"compare": ALL}, "aria-disabled"),
        Input({"browser": ALL}, "selectedRows"),
    )


def _add_downloads(server: Flask, runs: Collection) -> None:
    @server.get("/csv/<view>/<table>.csv")
    def table(view: str, table: str) -> Response:
        state = parse(request.query_string.decode("utf-8", "replace"))
        for part in shown(view, state, look(runs))[1] if view in VIEWS else ():
            if isinstance(part, Grid) and part.name == table:
                disposition = {"Content-Disposition": f"attachment; filename={view}-{part.name}.csv"}
                return Response(part.csv(), mimetype="text/csv", headers=disposition)
        abort(404)


def _range(c: Control) -> Any:
    if isinstance(c, Text):
        return []
    return [c.low, c.high] if isinstance(c, Slider | Number) else list(c.options.items())


def _links(current: str, state: dict[str, list[str]]) -> list[Any]:
    query = unparse(state)

    def link(name: str) -> Any:
        mark = "current" if name == current else ""
        return dcc.Link(VIEWS[name].TITLE, href=f"{name}{query}", className=mark, id=f"view-{name}")

    main = [link(name) for name in VIEWS if name not in FIGURES]
    return [*main, html.Span("Figures:", className="group"), *(link(name) for name in FIGURES)]


def _problems(runs: Collection) -> list[Any]:
    count = len(runs.problems)
    text = f"{count} file{'s' * (count != 1)} could not be read"
    return [html.Summary(text), html.Ul([html.Li(problem) for problem in runs.problems])]
