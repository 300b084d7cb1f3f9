"""Controls and parts of a view as Dash components."""

from typing import Any
from urllib.parse import quote

from dash import dcc, html

from ima_dist.dashboard.parts import Grid, Note, Part, Plot, shown
from ima_dist.dashboard.state import Control, Number, Several, Slider, State, unparse


def control(c: Control) -> html.Div:
    """A labelled control; its identity names the part of the address that it sets."""
    label = html.Div(c.label, className="label", id=f"label-{c.name}")
    return html.Div(
        [label, _input(c, {"control": c.name})],
        className=f"control {type(c).__name__.lower()}",
        id=f"control-{c.name}",
        role="group",
        **{"aria-labelledby": f"label-{c.name}"},  # type: ignore[arg-type]
    )


def _input(c: Control, identity: dict[str, str]) -> Any:
    if isinstance(c, Slider):
        ends = {c.low: str(c.low), c.high: str(c.high)}
        tip = {"placement": "bottom", "always_visible": True}
        return dcc.Slider(c.low, c.high, 1, value=c.value, marks=ends, tooltip=tip, id=identity)
    if isinstance(c, Number):
        return dcc.Input(type="number", min=c.low, max=c.high, step=c.step, value=c.value, debounce=True, id=identity)
    options = [{"label": label, "value": value} for value, label in c.options.items()]
    if isinstance(c, Several):
        return dcc.Dropdown(options, c.value, multi=True, placeholder="choose runs", id=identity)
    if c.long:
        return dcc.Dropdown(options, c.value, clearable=False, id=identity)
    return dcc.RadioItems(options, c.value, inline=True, id=identity)


def part(p: Part, view: str, state: State) -> Any:
    if isinstance(p, Note):
        return html.P(p.text, className="note")
    return _plot(p) if isinstance(p, Plot) else _table(p, view, state)


def _plot(p: Plot) -> html.Section:
    graph = dcc.Graph(figure=p.figure, config={"displayModeBar": False, "responsive": True}, id=f"figure-{p.name}")
    buttons = [
        html.Button(
            kind.upper(),
            className="save",
            type="button",
            title=f"Save the figure as {kind.upper()}",
            **{"data-figure": f"figure-{p.name}", "data-kind": kind, "data-name": p.name},  # type: ignore[arg-type]
        )
        for kind in ("svg", "png")
    ]
    figure = html.Div(graph, role="img", **{"aria-label": f"{p.heading}. {p.caption}"})  # type: ignore[arg-type]
    return html.Section([html.H2(p.heading), figure, html.P(p.caption, className="caption"), html.Div(buttons)])


def _table(p: Grid, view: str, state: State) -> html.Section:
    known = {c: next((r[c] for r in p.rows if r.get(c) is not None), None) for c in p.columns}
    head = html.Tr([html.Th(c, scope="col", className=_kind(value)) for c, value in known.items()])
    body = [html.Tr([_cell(p, column, row, i == 0) for i, column in enumerate(p.columns)]) for row in p.rows]
    address = f"csv/{view}/{quote(p.name)}.csv{unparse(state)}"
    table = html.Table([html.Thead(head), html.Tbody(body)], id=f"table-{p.name}")
    region: dict[str, Any] = {"className": "scroll", "tabIndex": 0, "role": "region", "aria-label": p.heading}
    download = html.A("CSV", href=address, className="save", id=f"csv-{p.name}", title="Save the table as CSV")
    return html.Section([html.H2(p.heading), html.Div(table, **region), download])


def _cell(p: Grid, column: str, row: dict[str, Any], first: bool) -> Any:
    value = row.get(column)
    text: Any = shown(value, p.digits)
    if column in p.links:
        text = dcc.Link(text, href=p.links[column](row))
    if first:
        return html.Th(text, scope="row")
    return html.Td(text, className=_kind(value))


def _kind(value: Any) -> str | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "number"
    return "long" if isinstance(value, str) and len(value) > 40 else None
