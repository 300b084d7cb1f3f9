"""``python -m benchmarks.run [--authors DIR] [--out FILE]``: how fast it is, beside others and beside what is possible.

It prints the tables of docs/performance.md; ``--out`` takes the whole as one JSON document. Every figure is a ratio of
interleaved pairs in one process with one thread, unless ``--threads`` says otherwise, or of what was counted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

# OpenMP's threads spin while they wait, which costs much on a machine that others use too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from benchmarks import compaction, curves, epochs, recipe_fast, timing, training_step, workers
from benchmarks.scaling import markdown

Rows = list[dict[str, Any]]
_PARTS = ("epochs", "step", "curves", "compaction", "recipes", "workers")


def measure(
    parts: Iterable[str], authors: Path | None, size: str, pairs: int, report: Callable[[str], None]
) -> dict[str, Any]:
    """The document: what the machine is, and a list of rows for each of ``parts``."""
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "giga_operations_per_second_of_a_product": round(timing.product_peak() / 1e9, 1),
        "size": size,
    }
    quick = size == "quick"
    for part in parts:
        rows: Rows = []

        def keep(row: dict[str, Any], part: str = part, rows: Rows = rows) -> None:
            rows.append(row)
            report(json.dumps({"part": part, **row}))

        if part == "epochs":
            epochs.measure(authors, size, pairs, keep)
        elif part == "step":
            training_step.measure(quick, keep)
        elif part == "curves":
            curves.measure(quick, pairs, keep)
        elif part == "compaction":
            compaction.measure(quick, pairs, keep)
        elif part == "recipes":
            with tempfile.TemporaryDirectory() as folder:
                recipe_fast.measure(size, folder, keep)
        else:
            workers.measure(quick, pairs, keep)
        found[part] = rows
    return found


_NONE = "-"
#: Part -> the head of its table, and the cells of a row.
_TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], list[str]]]] = {
    "epochs": (
        "training | against | times as fast | allowed by the passes | share of it | bare passes by our time | "
        "share of the product's peak",
        lambda r: [
            _name(r),
            r["reference"],
            _ratio(r["theirs_over_ours"]),
            *(f"{r[key]:.2f}" for key in ("allowed", "of_allowed", "share_of_limit", "share_of_product_peak")),
        ],
    ),
    "step": (
        "network | batch | share of a step outside passes",
        lambda r: [r["preset"], str(r["batch_size"]), f"{r['outside_share']:.3f}"],
    ),
    "curves": (
        "network | trained with | against | times as fast | without parameters' gradients | nowhere more accurate",
        lambda r: [
            r["preset"],
            r["method"],
            r["against"],
            _ratio(r["theirs_over_ours"]),
            _ratio(r.get("without_parameter_gradients")),
            {True: "yes", False: "no", None: _NONE}[r.get("nowhere_more_accurate")],
        ],
    ),
    "compaction": (
        "network | norm | batch | crossing | times as fast | allowed by the passes | share of it",
        lambda r: [
            r["preset"],
            r["norm"],
            str(r["batch"]),
            f"{r['crossing']:.2f}",
            _ratio(r["plain_over_compact"]),
            f"{r['allowed']:.2f}",
            f"{r['of_allowed']:.2f}",
        ],
    ),
    "recipes": (
        "training | seed | test samples | loss of the recipe fast | evaluations, exact / fast",
        lambda r: [
            r["preset"],
            str(r["seed"]),
            str(r["samples"]),
            f"{r['loss']:.3f} ± {r['half_interval']:.3f}",
            f"{r['evaluations']:.1f}",
        ],
    ),
    "workers": (
        "what | by the clock | by processor time",
        lambda r: [r["what"], _ratio(r["of_wall"]), _ratio(r.get("by_cpu"))],
    ),
}


def tables(found: dict[str, Any]) -> str:
    """The document as Markdown."""
    parts = [
        markdown([head.split(" | "), *map(cells, found[part])])
        for part, (head, cells) in _TABLES.items()
        if found.get(part)
    ]
    return "\n\n".join(parts)


def _name(row: dict[str, Any]) -> str:
    ours = f", {row['ours']}" if row["ours"] else ""
    return f"{row['preset']}, {row['samples']:,} samples, {row['epochs']} epochs{ours}"


def _ratio(pairs: dict[str, float] | None) -> str:
    if pairs is None:
        return _NONE
    return f"{pairs['ratio']:.2f} ({pairs['lowest']:.2f} to {pairs['highest']:.2f})"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--authors", type=Path, metavar="DIR", help="a checkout of the authors' released code")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON document to this file")
    parser.add_argument("--parts", default=",".join(_PARTS), help=f"parts to measure (default: {','.join(_PARTS)})")
    parser.add_argument("--pairs", type=int, default=3, help="interleaved pairs (default: 3)")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads (default: 1)")
    parser.add_argument(
        "--size",
        choices=("full", "short", "quick"),
        default="short",
        help="full: 2,000 images and 8 epochs, hours; short: a few hundred, half an hour on an idle machine; "
        "quick: to see that everything runs (default: short)",
    )
    options = parser.parse_args(arguments)
    parts = options.parts.split(",")
    if unknown := sorted(set(parts) - set(_PARTS)):
        parser.error(f"no part {unknown[0]!r}; parts: {', '.join(_PARTS)}")
    torch.set_num_threads(options.threads)

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    found = measure(parts, options.authors, options.size, options.pairs, report)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(tables(found))


if __name__ == "__main__":
    main()
