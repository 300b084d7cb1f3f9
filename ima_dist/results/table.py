"""Accuracy under attack as a plain-text table, with the paper's row to compare with."""

from __future__ import annotations

import math
from typing import Any

from ima_dist.results import paper as paper_tables

NORM_SIGN = {"linf": "L∞", "l2": "L2"}
_FEW_SAMPLES = 200
_Z95 = 1.959964  # 97.5 % quantile of the standard normal distribution


def robustness_table(curves: list[dict[str, Any]], paper: dict[float, float] | None, paper_table: int | None) -> str:
    """Table for the terminal: a row an attack, a column a noise level.

    ``curves``: as in summary.json; shown are those with loss "both" on the test split. ``paper``: noise
    level -> accuracy, and ``paper_table`` its number. The paper's row, and the difference (ours less the
    paper's), stand beneath the attack that the paper's table used. Lines below the table give the number of
    samples and the largest 95 % uncertainty.
    """
    attacks = attack_rows(curves)
    if not attacks:
        return "There is no accuracy under attack on the test split yet: run python -m ima_dist.evaluate."
    levels = sorted({level for row in attacks.values() for level in row})
    published = {noise_key(level): value for level, value in (paper or {}).items()}
    published = {level: value for level, value in published.items() if level in levels}
    paper_attack = paper_tables.attack_of(paper_table) if paper_table is not None else "pgd100"
    label = f"paper (Table {paper_table})" if paper_table is not None else "paper"

    lines = [["noise", *map(format_noise, levels)]]
    for attack, row in attacks.items():
        lines.append([attack, *(_accuracy(row[x]["accuracy"]) if x in row else "-" for x in levels)])
        if published and attack == paper_attack:
            lines.append([label, *(_accuracy(published.get(x)) for x in levels)])
            differences = [
                f"{row[x]['accuracy'] - published[x]:+.4f}" if x in row and x in published else "-" for x in levels
            ]
            lines.append(["difference", *differences])
    if published and paper_attack not in attacks:
        lines.append([f"{label}, {paper_attack}", *(_accuracy(published.get(x)) for x in levels)])

    norms = sorted({str(c["norm"]) for row in attacks.values() for c in row.values()})
    title = "Accuracy on the test set by noise level (" + ", ".join(NORM_SIGN.get(n, n) for n in norms) + ")"
    return "\n".join([title, *aligned(lines), *_footnotes(attacks)])


def attack_rows(curves: list[dict[str, Any]]) -> dict[str, dict[float, dict[str, Any]]]:
    """Attack -> noise level -> entry of ``curves``, for loss "both" on the test split.

    Of an attack run at several epochs only the newest is kept: a row never mixes two networks. The noise
    levels are those of ``noise_key``; entries without an accuracy are left out.
    """
    chosen = [c for c in curves if c["loss"] == "both" and c["split"] == "test" and c.get("accuracy") is not None]
    newest: dict[str, int] = {}
    for c in chosen:
        newest[c["attack"]] = max(c.get("epoch") or 0, newest.get(c["attack"], 0))
    rows: dict[str, dict[float, dict[str, Any]]] = {attack: {} for attack in newest}
    for c in chosen:
        if (c.get("epoch") or 0) == newest[c["attack"]]:
            rows[c["attack"]][noise_key(c["noise"])] = c
    return rows


def noise_key(level: float) -> float:
    """Noise level without the rounding of float32, so that ours and the paper's compare equal."""
    return round(float(level), 6)


def format_noise(level: float) -> str:
    """Noise level as the paper writes it: ``0.05``, ``8/255``, ``1``."""
    pixels = level * 255
    if abs(level - round(level, 4)) > 1e-7 and abs(pixels - round(pixels)) < 1e-3:
        return f"{round(pixels)}/255"
    return f"{level:.6g}"


def wilson_interval(accuracy: float, samples: int) -> tuple[float, float]:
    """95 % Wilson score interval of a share observed on ``samples`` samples (Wilson 1927)."""
    scale = 1 + _Z95**2 / samples
    centre = (accuracy + _Z95**2 / (2 * samples)) / scale
    half = _Z95 / scale * math.sqrt(accuracy * (1 - accuracy) / samples + _Z95**2 / (4 * samples**2))
    return centre - half, centre + half


def _footnotes(attacks: dict[str, dict[float, dict[str, Any]]]) -> list[str]:
    per_attack = {a: sorted({int(c["samples"]) for c in row.values()}) for a, row in attacks.items()}
    counts = sorted({n for ns in per_attack.values() for n in ns})
    if len(counts) == 1:
        text = f"Samples: {counts[0]:,}"
    else:
        text = "Samples: " + "; ".join(f"{a} {' or '.join(f'{n:,}' for n in ns)}" for a, ns in per_attack.items())
    if counts[0] < _FEW_SAMPLES:
        text += f" (fewer than {_FEW_SAMPLES}: too few to compare methods)"
    half, attack, level = max(
        ((_half_width(c), a, x) for a, row in attacks.items() for x, c in row.items()), key=lambda t: t[0]
    )
    return [
        text,
        f"Largest uncertainty: ±{half:.4f} ({attack} at noise {format_noise(level)}; "
        "half the width of the 95 % Wilson interval)",
    ]


def _half_width(entry: dict[str, Any]) -> float:
    low, high = wilson_interval(entry["accuracy"], int(entry["samples"]))
    return (high - low) / 2


def _accuracy(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def aligned(lines: list[list[str]]) -> list[str]:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
