"""A table of hundreds of rows as AG Grid shows it: sorted by its headings, rows chosen by their boxes."""

from typing import Any

import dash_ag_grid
from dash import html

from ima_dist.dashboard.parts import CLEAN, ROBUST, Browser, shown
from ima_dist.dashboard.standing import BADLY
from ima_dist.dashboard.state import State

_WIDTH = 100
_HEIGHT = 560
ADDRESS = "address of the row"  # a column that is not shown
_MESSAGE = "message"
_DATES = ("began", "ended")


def browser(p: Browser, download: Any, state: State) -> html.Section:
    """The grid, a link to the comparison of the rows that are chosen, and a download."""
    grid = dash_ag_grid.AgGrid(
        id={"browser": p.name},
        rowData=rows_of(p),
        columnDefs=[_column(p, name, i == 0) for i, name in enumerate(p.columns)],
        getRowId=f"params.data['{p.columns[0]}']",
        defaultColDef={
            "sortable": True,
            "resizable": True,
            "suppressMovable": False,
            "filter": False,
            "wrapHeaderText": True,
            "autoHeaderHeight": True,
        },
        dashGridOptions={
            "rowSelection": {"mode": "multiRow", "enableClickSelection": False},
            "selectionColumnDef": {"pinned": "left", "width": 40, "resizable": False},
            "animateRows": False,
            "enableCellTextSelection": True,
            "ensureDomOrder": True,  # for screen readers
            "tooltipShowDelay": 300,
            "suppressCellFocus": False,
            "suppressColumnVirtualisation": True,  # a screen reader meets all columns
        },
        className="ag-theme-quartz-auto-dark",
        style={"height": f"min({_HEIGHT}px, calc(100vh - 17rem))", "width": "100%"},
    )
    compare = html.A(
        "Choose runs to compare",
        id={"compare": p.name},
        className="save inside",
        href=None,
        **{"aria-disabled": "true"},  # type: ignore[arg-type]
    )
    bar = html.Div([html.H2(p.heading), compare, download], className="above")
    return html.Section([bar, grid], id=f"browser-{p.name}", className="browser")


def rows_of(p: Browser) -> list[dict[str, Any]]:
    """The rows as the page gets them: numbers, and texts that are not too long."""
    link = p.links.get(p.columns[0])
    columns = dict.fromkeys([*p.columns, _MESSAGE])
    return [{**{c: _plain(row.get(c)) for c in columns}, ADDRESS: link(row) if link else ""} for row in p.rows]


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, int | float) else shown(value, 0)


def _column(p: Browser, name: str, first: bool) -> dict[str, Any]:
    number = any(isinstance(row.get(name), float) for row in p.rows)
    whole = not number and any(isinstance(row.get(name), int) for row in p.rows)
    column: dict[str, Any] = {"field": name, "headerName": name, "width": p.widths.get(name, _WIDTH)}
    column["tooltipField"] = name
    if number:
        column["valueFormatter"] = {"function": f"params.value == null ? '' : {_format(p, name)}"}
    if number or whole:
        column |= {"type": "rightAligned", "tooltipField": None}
    if first:
        column |= {"cellRenderer": "Inside", "pinned": "left"}
    if name == "status":
        column["cellClassRules"] = {
            "bad": f"{[*BADLY]}.includes(params.value)",
            "good": "params.value == 'running'",
        }
        column["tooltipField"] = _MESSAGE  # which need not be among the columns
    if name in _DATES:  # without the year, which a download and the tip have
        column["valueFormatter"] = {"function": "params.value ? params.value.slice(5) : ''"}
    if name == _MESSAGE:
        column |= {"flex": 1, "minWidth": p.widths.get(name, _WIDTH)}
    return column


def _format(p: Browser, name: str) -> str:
    """The settings as they were given, measured values with the same number of places."""
    places = p.digits if name in (CLEAN, ROBUST, "validation") else 0
    return f"d3.format('.{places}f')(params.value)" if places else "d3.format('.4~g')(params.value)"
