"""Accuracy under attack as a plain-text table, with the paper's row to compare with."""

from collections.abc import Iterable

from ima_dist.results import paper as paper_tables
from ima_dist.results.statistics import interval_of
from ima_dist.results.text import NORM_SIGN, accuracy, aligned
from ima_dist.rundir.curves import (
    Point,
    Row,
    attack_rows,
    format_noise,
    levels_of,
    noise_key,
    other_rows,
    samples_label,
)

_FEW_SAMPLES = 200


def robustness_table(
    points: Iterable[Point],
    paper: dict[float, float] | None,
    paper_table: int | None,
    test_samples: int | None = None,
    failed: Iterable[str] = (),
) -> str:
    """Table for the terminal: one row per attack, one column per noise level.

    ``points``: those with loss "both" on the test split are shown. ``paper``: noise level -> accuracy, and
    ``paper_table`` its number. The paper's row, and the difference (ours minus the paper's), stand below the attack
    that the paper's table used. Lines below the table give the number of samples (and which ones, if they are not all
    ``test_samples`` of the test set), the largest 95 % uncertainty, and the evaluations by weaker protocols.
    Attacks that ``failed`` and have no earlier result have a row that says so.
    """
    points = list(points)
    attacks = attack_rows(points)
    if not attacks:
        said = "".join(f"{attack} failed. " for attack in failed)
        return f"{said}No accuracy under attack on the test set yet: run python -m ima_dist.evaluate."
    levels = levels_of(attacks.values())
    published = {noise_key(x): value for x, value in (paper or {}).items() if noise_key(x) in levels}
    paper_attack = paper_tables.attack_of(paper_table) if paper_table is not None else "pgd100"
    label = f"paper (Table {paper_table})" if paper_table is not None else "paper"

    lines = [["noise", *map(format_noise, levels)]]
    for attack, row in attacks.items():
        lines.append([attack, *(accuracy(row[x].accuracy) if x in row else "-" for x in levels)])
        if published and attack == paper_attack:
            lines.append([label, *(accuracy(published.get(x)) for x in levels)])
            both = row.keys() & published.keys()
            lines.append(["difference", *(f"{row[x].share - published[x]:+.4f}" if x in both else "-" for x in levels)])
    lines += [[attack, *["failed"] * len(levels)] for attack in failed if attack not in attacks]
    if published and paper_attack not in attacks:
        lines.append([f"{label}, {paper_attack}", *(accuracy(published.get(x)) for x in levels)])

    norms = sorted({point.norm for row in attacks.values() for point in row.values()})
    title = "Accuracy on the test set by noise level (" + ", ".join(NORM_SIGN.get(n, n) for n in norms) + ")"
    return "\n".join([title, *aligned(lines), *_footnotes(attacks, test_samples), *_weaker(points, attacks)])


def _footnotes(attacks: dict[str, Row], test_samples: int | None) -> list[str]:
    labels = {attack: samples_label(row, test_samples) for attack, row in attacks.items()}
    by_attack = "; ".join(f"{attack} {label}" for attack, label in labels.items())
    text = f"Samples: {by_attack if len(set(labels.values())) > 1 else next(iter(labels.values()))}"
    if any(point.order == "stratified" for row in attacks.values() for point in row.values()):
        text += " (chosen in proportion to the classes)"
    if min(point.samples for row in attacks.values() for point in row.values()) < _FEW_SAMPLES:
        text += f" (fewer than {_FEW_SAMPLES}: too few to compare methods)"
    vaguest = max((point for row in attacks.values() for point in row.values()), key=_half_width)
    where = f"{vaguest.attack} at noise {format_noise(vaguest.level)}"
    return [
        text,
        f"Largest uncertainty: ±{_half_width(vaguest):.4f} ({where}; half the width of the 95 % Wilson interval)",
    ]


def _weaker(points: list[Point], attacks: dict[str, Row]) -> list[str]:
    """A line for each evaluation of the networks in the table that is kept, but is not the strictest."""
    epochs = {attack: next(iter(row.values())).epoch for attack, row in attacks.items()}
    lines = []
    for epoch in sorted(set(epochs.values())):
        for row in other_rows(points, epoch):
            point = next(iter(row.values()))
            if epochs[point.attack] == epoch:
                steps = f"{point.steps} steps, " if point.steps else ""
                found = ", ".join(f"{accuracy(row[x].accuracy)} at {format_noise(x)}" for x in levels_of([row]))
                lines.append(f"Also kept: {point.attack} ({steps}samples: {samples_label(row)}): {found}")
    return lines


def _half_width(point: Point) -> float:
    low, high = interval_of(point)
    return (high - low) / 2
