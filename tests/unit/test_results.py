"""The table of accuracies under attack, and its uncertainties."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ima_dist.results import paper
from ima_dist.results.statistics import wilson_interval
from ima_dist.results.table import robustness_table
from ima_dist.rundir.curves import format_noise
from tests.support.run_files import NOISE, TABLE_1, point


def test_table_numbers() -> None:
    ours = [0.9995, 0.999, 0.994, 0.9845, 0.9665, 0.9325, 0.833]
    curves = [point("pgd100", x, a) for x, a in zip(NOISE, ours, strict=True)]
    curves += [point("worst", x, a - 0.01) for x, a in zip(NOISE, ours, strict=True)]
    curves += [point("pgd100", 0.3, 0.1, loss="ce"), point("pgd100", 0.3, 0.2, split="validation")]
    found = paper.curve("moons", "linf", "ima")
    assert found is not None
    lines = robustness_table(curves, found[1], found[0]).splitlines()
    assert lines[0] == "Accuracy on the test set by noise level (L∞)"
    assert lines[1].split() == ["noise", "0", "0.05", "0.1", "0.15", "0.2", "0.25", "0.3"]
    assert lines[2].split() == ["pgd100", *(f"{a:.4f}" for a in ours)]
    assert lines[3].split() == ["paper", "(Table", "1)", *(f"{a:.4f}" for a in TABLE_1["ima"])]
    assert lines[4].split() == (
        ["difference", "-0.0005", "+0.0000", "-0.0035", "-0.0070", "-0.0090", "+0.0055", "+0.0100"]
    )
    assert lines[5].split() == ["worst", *(f"{a - 0.01:.4f}" for a in ours)]
    assert len({len(line) for line in lines[1:6]}) == 1  # the columns are aligned
    assert lines[6] == "Samples: 2,000"
    half = (lambda b: (b[1] - b[0]) / 2)(wilson_interval(0.823, 2000))
    assert lines[7].startswith(f"Largest uncertainty: ±{half:.4f} (worst at noise 0.3;")
    assert len(lines) == 8


def test_table_with_levels_that_do_not_match() -> None:
    curves = [
        point("pgd100", np.float32(0.3).item(), 0.8),
        point("pgd100", 0.07, 0.9),
        point("worst", 0.07, None),
    ]
    lines = robustness_table(curves, {0.3: 0.75, 0.1: 0.5}, 1).splitlines()
    assert lines[1].split() == ["noise", "0.07", "0.3"]
    assert lines[2].split() == ["pgd100", "0.9000", "0.8000"]
    assert lines[3].split()[-2:] == ["-", "0.7500"]
    assert lines[4].split() == ["difference", "-", "+0.0500"]
    assert not any(line.startswith("worst") for line in lines)


def test_table_compares_only_with_the_attack_of_the_paper() -> None:
    found = paper.curve("mnist", "linf", "ima")
    assert found is not None
    curves = [point("pgd100", 0.4, 0.8), point("pgd-mma", 0.4, 0.78)]
    lines = robustness_table(curves, found[1], found[0]).splitlines()
    assert [line.split()[0] for line in lines[1:6]] == ["noise", "pgd100", "pgd-mma", "paper", "difference"]
    assert lines[5].split() == ["difference", "-0.0056"]
    other = robustness_table(curves[:1], found[1], found[0])
    assert "paper (Table 8), pgd-mma" in other
    assert "difference" not in other


def test_table_without_paper() -> None:
    text = robustness_table([point("pgd100", 0.1, 0.5)], None, None)
    assert "paper" not in text
    assert "difference" not in text


def test_table_never_mixes_epochs() -> None:
    curves = [
        point("pgd100", 0.0, 0.7, epoch=10),
        point("pgd100", 0.1, 0.6, epoch=10),
        point("pgd100", 0.1, 0.5),
    ]
    lines = robustness_table(curves, None, None).splitlines()
    assert lines[1].split() == ["noise", "0.1"]
    assert lines[2].split() == ["pgd100", "0.5000"]


def test_table_tells_of_few_samples() -> None:
    few = robustness_table([point("pgd100", 0.1, 0.5, samples=199)], None, None)
    assert "Samples: 199 (fewer than 200" in few
    assert "fewer" not in robustness_table([point("pgd100", 0.1, 0.5, samples=200)], None, None)
    mixed = robustness_table([point("pgd100", 0.1, 0.5), point("spsa", 0.1, 0.5, samples=100)], None, None)
    assert "Samples: pgd100 2,000; spsa 100 (fewer than 200" in mixed
    assert "(spsa at noise 0.1;" in mixed


def test_table_of_nothing() -> None:
    assert "python -m ima_dist.evaluate" in robustness_table([], {0.1: 0.5}, 1)


def test_wilson_interval() -> None:
    # The bounds are the p with |p - accuracy| = 1.96 sqrt(p (1 - p) / n): in closed form for these two.
    z = 1.959963984540054
    half = z / (2 * math.sqrt(100 + z**2))
    assert wilson_interval(0.5, 100) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-9)
    assert wilson_interval(1.0, 10) == pytest.approx((10 / (10 + z**2), 1.0), abs=1e-9)
    assert wilson_interval(0.0, 0) == (0.0, 1.0)  # nothing is known without samples
    # Groups: Student's t in place of the normal distribution; one group says nothing.
    t = 2.262157  # 97.5 % quantile with nine degrees of freedom
    assert wilson_interval(1.0, 25.0, groups=10) == pytest.approx((25 / (25 + t**2), 1.0), abs=1e-6)
    assert wilson_interval(0.7, 25.0, groups=1) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("level", "text"),
    [(0.0, "0"), (0.05, "0.05"), (8 / 255, "8/255"), (32 / 255, "32/255"), (1.0, "1"), (0.005, "0.005")],
)
def test_noise_levels_are_written_as_in_the_paper(level: float, text: str) -> None:
    assert format_noise(level) == text
    assert format_noise(round(level, 6)) == text
