"""The paper's tables as data."""

from __future__ import annotations

import pytest

from ima_dist.config.presets import PRESETS, make_config
from ima_dist.results import paper
from tests.support.run_files import NOISE, TABLE_1


@pytest.mark.parametrize("method", TABLE_1)
def test_paper_table_1(method: str) -> None:
    assert paper.curve("moons", "linf", method, 0.3) == (
        1,
        dict(zip(NOISE, TABLE_1[method], strict=True)),
    )


@pytest.mark.parametrize(
    ("query", "table", "values"),
    [
        (("fashion_mnist", "linf", "adv", 0.2), 2, {0.0: 0.9101, 0.3: 0.0313}),
        (("fashion_mnist", "l2", "adv", 3.0), 3, {0.5: 0.641, 5.0: 0.0229}),
        (("fashion_mnist", "l2", "ddn", None), 3, {0.0: 0.8666, 5.0: 0.0781}),
        (("svhn", "linf", "adv", 0.1), 4, {0.0: 0.9209, 0.005: 0.2112}),
        (("svhn", "l2", "adv", 1.0), 5, {0.0: 0.873, 2.0: 0.0326}),
        (("covid_ct", "linf", "rand", 0.2), 6, {0.0: 0.965, 0.01: 0.3575}),
        (("mnist", "l2", "ima", None), 7, {0.0: 0.9841, 4.0: 0.0843}),
        (("mnist", "linf", "ima", None), 8, {0.0: 0.9901, 0.4: 0.7856}),
        (("mnist", "linf", "mma", None), 8, {0.0: 0.9895, 0.4: 0.8816}),
        (("cifar10", "l2", "mma", None), 10, {0.0: 0.8211, 2.5: 0.1250}),
        (("cifar10", "linf", "ima", None), 11, {4 / 255: 0.6540, 32 / 255: 0.0073}),
        (("cifar10", "linf", "mma", None), 11, {32 / 255: 0.0907}),
    ],
)
def test_paper_curves(query: tuple[str, str, str, float | None], table: int, values: dict[float, float]) -> None:
    found = paper.curve(*query)
    assert found is not None
    assert found[0] == table
    assert {level: found[1][level] for level in values} == values


@pytest.mark.parametrize(
    "query",
    [
        ("moons", "l2", "ima", None),
        ("moons", "linf", "adv", 0.2),
        ("moons", "linf", "adv", None),
        ("moons", "linf", "ddn", None),
        ("mnist", "linf", "ce", None),
        ("nowhere", "linf", "ima", None),
    ],
)
def test_rows_the_paper_does_not_have(query: tuple[str, str, str, float | None]) -> None:
    assert paper.curve(*query) is None


def test_own_data_or_network_are_not_set_beside_the_paper() -> None:
    assert paper.row_of(make_config("moons", {})) == paper.curve("moons", "linf", "ima")
    assert paper.row_of(make_config("moons", {"data.source": "mine:load"})) is None
    assert paper.row_of(make_config("moons", {"model.factory": "mine:network"})) is None


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_preset_noise_levels_are_those_of_the_paper(preset: str, norm: str) -> None:
    found = paper.curve(preset, norm, "ima")
    if found is None:
        assert (preset, norm) in {("moons", "l2"), ("covid_ct", "l2"), ("pathmnist", "linf"), ("pathmnist", "l2")}
        return
    assert make_config(preset, {"norm": norm}).eval.noise == pytest.approx(sorted(found[1]))


def test_paper_cells() -> None:
    everything = paper.cells()
    assert len(everything) == 857 - 3  # three cells cannot be read
    assert sum(c.legible == "guess" for c in everything) == 27
    assert all(0 <= c.accuracy <= 1 for c in everything)
    guessed = [c.noise for c in paper.cells(table=6, method="ima") if c.legible == "guess"]
    assert guessed == [0.01, 0.03, 0.1]
    assert {c.split for c in paper.cells(table=9)} == {"first 100 of test"}
    assert len(paper.cells(table=16, split="validation")) == 6
    assert paper.cells(dataset="svhn", norm="l2", method="trades", attack="pgd100", split="test")[0] == paper.Cell(
        table=5,
        dataset="svhn",
        norm="l2",
        attack="pgd100",
        split="test",
        method="trades",
        noise=0.0,
        accuracy=0.8652,
        legible="yes",
    )
