"""The paper's check for gradient obfuscation (sections D.1 and D.2, Tables 9 and 12).

SPSA uses no gradient. If it breaks more samples than PGD, which follows the gradient, then PGD was misled, and the
accuracies measured with it are too high.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ima_dist.results.statistics import sign_test
from ima_dist.results.text import accuracy, aligned
from ima_dist.rundir.curves import format_noise, noise_key
from ima_dist.rundir.run import Run

_CHANCE = 0.05


class Level(NamedTuple):
    """Both attacks on the same ``samples`` at one noise level.

    spsa, pgd100: accuracies under these attacks. spsa_alone, pgd_alone: the number of samples that only SPSA, or only
    PGD, breaks.
    """

    noise: float
    samples: int
    spsa: float
    pgd100: float
    spsa_alone: int
    pgd_alone: int


def compare(outcomes: pa.Table, epoch: int) -> list[Level]:
    """SPSA and pgd100 (the worse of its two losses) after ``epoch`` epochs, by ascending noise level above 0.

    ``outcomes``: as in outcomes.parquet. Only samples attacked by both count.
    """
    chosen = outcomes.filter((pc.field("epoch") == epoch) & (pc.field("loss") == "both") & (pc.field("noise") > 0))
    right: dict[tuple[str, float], dict[int, bool]] = {}
    for row in chosen.select(["attack", "noise", "index", "label", "prediction"]).to_pylist():
        key = row["attack"], noise_key(row["noise"])
        right.setdefault(key, {})[row["index"]] = row["label"] == row["prediction"]
    levels = []
    for attack, noise in sorted(right):
        ours, theirs = right[attack, noise], right.get(("pgd100", noise), {})
        both = sorted(ours.keys() & theirs.keys())
        if attack == "spsa" and both:
            a, b = np.array([ours[i] for i in both]), np.array([theirs[i] for i in both])
            alone = int((~a & b).sum()), int((a & ~b).sum())
            levels.append(Level(noise, len(both), float(a.mean()), float(b.mean()), *alone))
    return levels


def verdict(levels: list[Level]) -> str:
    """The result in one sentence. ``levels``: at least one.

    SPSA is stronger where it leaves fewer samples correctly classified; a sign test over the samples that only one of
    the two breaks decides whether chance explains it, with 5 % divided among the noise levels (Bonferroni).
    """
    stronger = [level for level in levels if level.spsa < level.pgd100]
    counts = sorted({level.samples for level in levels})
    samples = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    if not stronger:
        return f"SPSA is not stronger than PGD on the same {samples} samples: no sign of gradient obfuscation."
    where = ", ".join(f"{format_noise(at.noise)} ({at.spsa:.4f} against {at.pgd100:.4f})" for at in stronger)
    sentence = f"SPSA is stronger than PGD on the same {samples} samples at noise {where}: "
    # How likely SPSA alone breaks at least as many of the samples that only one of the two breaks.
    chances = [sign_test(level.spsa_alone, level.spsa_alone + level.pgd_alone) for level in stronger]
    if min(chances) > _CHANCE / len(levels):
        return sentence + "chance explains the difference, so there is no clear sign of gradient obfuscation."
    return sentence + "gradient obfuscation, so do not trust the accuracies under PGD."


def describe(run: Run, epoch: int) -> str | None:
    """Accuracies by noise level and the verdict, for the terminal; None unless the run has both attacks."""
    levels = compared(run, epoch)
    if not levels:
        return None
    columns = [("noise", "spsa", "pgd100")]
    columns += [(format_noise(level.noise), accuracy(level.spsa), accuracy(level.pgd100)) for level in levels]
    rows = aligned([*zip(*columns, strict=True)])
    return "\n".join(["Black-box and white-box attack on the same samples", *rows, verdict(levels)])


def compared(run: Run, epoch: int) -> list[Level]:
    """``compare`` for a run; [] unless it has both attacks."""
    attacks = {point.attack for point in run.points if point.epoch == epoch}
    if not {"spsa", "pgd100"} <= attacks or run.outcomes is None:
        return []
    return compare(run.outcomes, epoch)
