"""Notebooks, run cell by cell in this process: a kernel of its own would take longer to start than their cells."""

from __future__ import annotations

import ast
import contextlib
import json
import linecache
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SKIPPED = "skip-execution"  # the tag by which nbclient leaves a cell out, too


def cells(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return found


def run(path: Path) -> dict[str, Any]:
    """The names that the cells of a notebook leave behind."""
    with as_main() as names:
        for number, cell in enumerate(cells(path)):
            if cell["cell_type"] == "code" and SKIPPED not in cell["metadata"].get("tags", ()):
                run_cell("".join(cell["source"]), f"<{path.name}, cell {number + 1}>", names)
        return dict(names)


def run_cell(text: str, file: str, names: dict[str, Any]) -> None:
    """Run a cell; the value of a last expression is shown as Jupyter would show it."""
    # As IPython does, so that the source of a cell's functions is known.
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    tree = ast.parse(text, file)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, file, "exec"), names)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), file, "eval"), names)
        show = getattr(value, "_repr_html_", None)
        assert show is None or show()


@contextlib.contextmanager
def as_main() -> Iterator[dict[str, Any]]:
    before = sys.modules["__main__"]
    sys.modules["__main__"] = module = types.ModuleType("__main__")
    try:
        yield vars(module)
    finally:
        sys.modules["__main__"] = before
