"""Controls and parts of a view as Dash components."""

from typing import Any
from urllib.parse import quote

from dash import dcc, html

from ima_dist.dashboard.browser import browser
from ima_dist.dashboard.links import carried, parsed
from ima_dist.dashboard.parts import (
    Browser,
    Command,
    Editor,
    Facts,
    Gallery,
    Grid,
    Item,
    Lines,
    Note,
    Panel,
    Part,
    Plot,
    Side,
    paragraph,
    shown,
)
from ima_dist.dashboard.state import Choice, Control, Number, Several, Slider, State, Text, unparse


def control(c: Control) -> html.Div:
    """A labelled control; its identity names the part of the address that it sets."""
    hint = "\n".join(dict.fromkeys(c.about.values())) or None if isinstance(c, Choice) else None
    label = html.Div(c.label, className="label", id=f"label-{c.name}", title=hint)
    short = " short" if isinstance(c, Several) and c.short else ""
    return html.Div(
        [label, _input(c, {"control": c.name})],
        className=f"control {type(c).__name__.lower()}{short}",
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
    if isinstance(c, Text):
        about: dict[str, Any] = {"placeholder": c.placeholder, "debounce": 0.4, "maxLength": 200}
        return dcc.Input(type="search", value=c.value, id=identity, **about)
    about = c.about if isinstance(c, Choice) else {}
    options: list[Any] = [
        {"label": label, "value": value, **({"title": about[value]} if value in about else {})}
        for value, label in c.options.items()
    ]
    if isinstance(c, Several):
        return dcc.Dropdown(options, c.value, multi=True, placeholder=c.placeholder, id=identity)
    if c.long:
        return dcc.Dropdown(options, c.value, clearable=False, id=identity)
    return dcc.RadioItems(options, c.value, inline=True, id=identity)


def part(p: Part, view: str, state: State) -> Any:
    if isinstance(p, Browser):
        return browser(p, _download(p, view, state), state)
    if isinstance(p, Grid):
        return _table(p, view, state)
    if isinstance(p, Side):
        columns = [html.Div([part(inner, view, state) for inner in column]) for column in p.columns]
        return html.Div(columns, className=f"side of-{len(columns)}")
    return _DRAW[type(p)](p)


def linked(words: str, state: State) -> list[Any]:
    """A text of ours, in which ``[Compare](compare)`` leads to a view, with the runs that are chosen."""
    pieces: list[Any] = []
    for words_before, title, view in parsed(words):
        pieces.append(words_before)
        if view.startswith("#"):
            pieces.append(html.A(title, href=view))
        elif view:
            pieces.append(dcc.Link(title, href=f"{view}{unparse(carried(state))}"))
    return [piece for piece in pieces if piece]


def _note(p: Note) -> html.P:
    return html.P(paragraph(p.text), className="note warning" if p.warning else "note")


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
    figure = html.Div(graph, role="img", className="figure", **{"aria-label": f"{p.heading}. {p.caption}"})  # type: ignore[arg-type]
    return html.Section([html.H2(p.heading), figure, html.P(p.caption, className="caption"), html.Div(buttons)])


def _table(p: Grid, view: str, state: State) -> html.Section:
    known = {c: next((r[c] for r in p.rows if r.get(c) is not None), None) for c in p.columns}
    head = html.Tr([html.Th(c, scope="col", className=_kind(value)) for c, value in known.items()])
    body = [html.Tr([_cell(p, column, row, i == 0) for i, column in enumerate(p.columns)]) for row in p.rows]
    table = html.Table([html.Thead(head), html.Tbody(body)], id=f"table-{p.name}")
    region: dict[str, Any] = {"className": "scroll", "tabIndex": 0, "role": "region", "aria-label": p.heading}
    return html.Section([html.H2(p.heading), html.Div(table, **region), _download(p, view, state)])


def _download(p: Grid, view: str, state: State) -> html.A:
    address = f"csv/{view}/{quote(p.name)}.csv{unparse(state)}"
    return html.A("CSV", href=address, className="save", id=f"csv-{p.name}", title="Save the table as CSV")


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


def _panel(p: Panel) -> html.Section:
    body: list[Any] = [html.H2(p.heading)]
    body += [html.P(p.about, className="about")] if p.about and p.items else []
    body += [html.Ul([_item(item) for item in p.items])] if p.items else [html.P(p.empty, className="empty")]
    if p.more:
        body.append(dcc.Link(p.more[0], href=p.more[1], className="more"))
    return html.Section(body, className="panel", id=f"panel-{p.name}")


def _item(item: Item) -> html.Li:
    link: Any = dcc.Link(item.title, href=item.href, className="title")
    first: list[Any] = [link if item.href else html.Span(item.title, className="title")]
    if item.tag:
        first.append(html.Span(item.tag, className=f"tag {item.tone}"))
    body: list[Any] = [html.Div(first)]
    if item.share is not None:
        percent = round(100 * item.share)
        label: dict[str, Any] = {"aria-label": f"{item.title}: {percent} % done"}
        bar = html.Progress(value=str(percent), max="100", **label)
        said = html.Span(item.text, className="said")
        body.append(html.Div([bar, html.Span(f"{percent} %", className="percent"), said], className="bar"))
    elif item.text:
        body.append(html.Div(paragraph(item.text), className="said", title=paragraph(item.text)))
    if item.command:
        body.append(_copied(item.command))
    if item.caution:
        body.append(html.Div(item.caution, className="caution"))
    return html.Li(body)


def _copied(text: str) -> html.Div:
    about: dict[str, Any] = {"data-text": text}
    button = html.Button("Copy", type="button", className="copy", title="Copy the command", **about)
    return html.Div([html.Code(text), button], className="command")


def _command(p: Command) -> html.Div:
    return html.Div([html.Span(p.label, className="label"), _copied(p.text)], className="labelled")


def _facts(p: Facts) -> Any:
    pairs = [e for name, value in p.pairs for e in (html.Dt(name), html.Dd(paragraph(value)))]
    if p.folded:
        return html.Details([html.Summary(p.heading), html.Dl(pairs)], id=f"facts-{p.name}")
    return html.Section([html.H2(p.heading), html.Dl(pairs)], id=f"facts-{p.name}")


def _lines(p: Lines) -> html.Section:
    region: dict[str, Any] = {"tabIndex": 0, "role": "region", "aria-label": p.heading}
    return html.Section([html.H2(p.heading), html.Pre(p.text, **region)], id=f"lines-{p.name}")


def _gallery(p: Gallery) -> html.Section:
    cells = []
    for heading, pictures, address in p.cells:
        images = [
            html.Figure([html.Img(src=x.source, alt=f"{heading}: {x.caption}"), html.Figcaption(x.caption)])
            for x in pictures
        ]
        title = dcc.Link(heading, href=address) if address else heading
        cells.append(html.Div([html.Div(title, className="title"), html.Div(images, className="pictures")]))
    about = [html.P(p.about, className="about")] if p.about else []
    body = [html.H2(p.heading), *about, html.Div(cells, className="gallery"), html.P(p.caption, className="caption")]
    return html.Section(body, id=f"gallery-{p.name}")


def _editor(p: Editor) -> html.Section:
    return html.Section(
        [
            html.H2("Notes and tags"),
            dcc.Textarea(id={"note": "text"}, value=p.text, maxLength=20_000, title="Notes on this run"),
            html.Label(
                ["Tags, separated by commas ", dcc.Input(id={"note": "tags"}, value=", ".join(p.tags), debounce=False)]
            ),
            html.Button("Save", id={"note": "save"}, type="button", className="save"),
            html.Span(id={"note": "said"}, role="status"),
            dcc.Store(id={"note": "run"}, data=p.run),
        ],
        className="editor",
    )


_DRAW: dict[type, Any] = {
    Note: _note,
    Plot: _plot,
    Panel: _panel,
    Command: _command,
    Facts: _facts,
    Lines: _lines,
    Gallery: _gallery,
    Editor: _editor,
}
