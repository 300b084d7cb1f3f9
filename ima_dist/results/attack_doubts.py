"""Reasons to doubt accuracies under attack that lie in what the attacks met in the network."""

from collections.abc import Iterable, Mapping
from typing import Any

from ima_dist.config.errors import ConfigError
from ima_dist.results.text import number_in, percent
from ima_dist.rundir.curves import Point, attack_rows
from ima_dist.rundir.run import Run

# An honest network may lose a few gradients.
_FEW_LOST = 0.01


def attack_doubts(run: Run) -> tuple[str, ...]:
    """A sentence for each reason, of the evaluations that tables show and of the attacks in training."""
    points = shown_points(run)
    found = points_doubts(points)
    gradients = run.summary.get("gradients")
    if isinstance(gradients, dict) and not any(p.met for p in points if p.loss == "both"):
        found += _of_earlier_versions(gradients)
    in_training = [
        {name.removeprefix("met_"): row[name] for name in row if name.startswith("met_")} for row in run.history
    ]
    return (*found, *_met("Attacks in training", _sum(in_training)))


def shown_points(run: Run) -> list[Point]:
    """The run's points with all that is known of them; those of the data set of results, ``run.points``, lack some."""
    try:
        return list(run.dir.points_of(run.summary))
    except ConfigError:
        return []


def points_doubts(points: Iterable[Point]) -> list[str]:
    """A sentence for each reason that lies in what the attacks behind these points met, as far as tables show them."""
    rows = {attack: [point.met for point in row.values()] for attack, row in attack_rows(points).items()}
    return [text for attack, counts in rows.items() for text in _met(attack, _sum(counts))]


def _sum(counts: Iterable[Mapping[str, Any] | None]) -> dict[str, float]:
    total: dict[str, float] = {}
    for one in counts:
        for name, count in (one or {}).items():
            total[name] = total.get(name, 0.0) + (number_in(count) or 0.0)
    return total


def _met(who: str, counts: Mapping[str, float]) -> list[str]:
    """Sentences on what an attack met; ``counts``: by the names in ``attacks.counting.COUNTS``."""
    gradients, answers = counts.get("gradients", 0), counts.get("answers", 0)
    zero, not_finite, bad, outside = (counts.get(n, 0) for n in ("zero", "not_finite", "bad_logits", "outside"))
    found = []
    if gradients and zero / gradients > _FEW_LOST:
        found.append(
            f"{who}: {percent(zero / gradients)} of {gradients:,.0f} gradients of single samples were zero, or under "
            "L2 too small or too large for advertorch: an attack that follows them does nothing there, so accuracies "
            "under attack may be too high. Compare with spsa or autoattack."
        )
    if gradients and not_finite:
        found.append(
            f"{who}: {percent(not_finite / gradients)} of {gradients:,.0f} gradients of single samples had NaN or "
            "infinity, which was taken as 0 or as very large."
        )
    if answers and bad:
        found.append(f"{who}: {percent(bad / answers)} of {answers:,.0f} answers had NaN or infinite logits.")
    if outside:
        found.append(f"{who}: {outside:,.0f} results lay outside the ball or the box, and were put back.")
    return found


def _of_earlier_versions(gradients: Mapping[str, Any]) -> list[str]:
    """From their counts of attacked samples, which they made after each epoch that was evaluated; the newest."""
    counts = gradients.get(max(gradients, key=lambda epoch: int(epoch) if epoch.isdigit() else 0, default=""))
    numbers = _sum([counts if isinstance(counts, dict) else None])
    return _met("All attacks", {**numbers, **dict.fromkeys(("gradients", "answers"), numbers.get("samples", 0))})
