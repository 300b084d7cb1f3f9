"""The table of ``cluster.status --watch``, kept up to date on a terminal."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_LOOK_EVERY = 2.0
_OVER = ("FINISHED", "FAILED", "CANCELLED", "ENDED")
_COLOURS = {"RUNNING": "cyan", "PENDING": "yellow", "FINISHED": "green", "FAILED": "red", "ENDED": "red"}
_BAR = 12
# Lines of the screen that are not rows.
_AROUND = 6

Lines = list[dict[str, str]]


def follow_table(look: Callable[[], Lines], plain: Callable[[Lines], str], console: Console | None = None) -> None:
    """Show rows until all have ended, or until Ctrl-C; without a terminal, print them whenever a state changes.

    look: gives the rows, as ``status.describe`` does. plain: the rows as text.
    """
    console, said = console or Console(), None
    try:
        if not console.is_terminal:
            while True:
                lines = look()
                states = [(line["job"], line["state"], line["message"]) for line in lines]
                if states != said:
                    console.file.write(f"{plain(lines)}\n")
                    console.file.flush()
                    said = states
                if all(line["state"] in _OVER for line in lines):
                    return
                time.sleep(_LOOK_EVERY)
        with Live(console=console, auto_refresh=False) as live:
            while True:
                lines = look()
                live.update(rich_table(lines, console.height - _AROUND), refresh=True)
                if all(line["state"] in _OVER for line in lines):
                    return
                time.sleep(_LOOK_EVERY)
    except KeyboardInterrupt:
        return


def rich_table(lines: Lines, height: int) -> Table:
    """The rows as a table of at most ``height`` rows: those that run come first, and those that have ended last."""
    counts = Counter(line["state"] for line in lines)
    order = sorted(lines, key=lambda line: (line["state"] in _OVER, line["state"] != "RUNNING"))
    shown = order[: max(height, 1)]
    left_out = f"; {len(lines) - len(shown)} not shown" if len(shown) < len(lines) else ""
    table = Table(caption=", ".join(f"{n} {state}" for state, n in counts.items()) + left_out)
    for name in ("job", "state", "node", "progress", "epoch"):
        table.add_column(name, no_wrap=True)
    for name in ("samples/s", "left", "accuracy"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("message", overflow="fold")
    for line in shown:
        table.add_row(*_cells(line))
    return table


def _cells(line: dict[str, str]) -> list[Any]:
    colour = _COLOURS.get(line["state"], "")
    state = f"[{colour}]{line['state']}[/]" if colour else line["state"]
    bar = ProgressBar(total=1.0, completed=float(line["done"]), width=_BAR) if line["done"] else "-"
    rest = [line[name] for name in ("epoch", "samples/s", "left", "accuracy")]
    # rich would take square brackets in a message for its own.
    return [Text(line["job"]), state, Text(line["node"]), bar, *rest, Text(line["message"])]
