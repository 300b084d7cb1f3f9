"""The same margins and weights on 1, 2 and 4 workers, and when their number changes at every resume."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import workers

# Seven and three steps per epoch; the last batch has fewer samples than the most workers.
MOONS = {
    "data__subset": 98, "epochs": 3, "batch_size": 16, "dtype": "float64", "optimizer__lr": 1e-2, "attack__steps": 5,
}  # fmt: skip
IMAGES = {
    "data__source": "tests.support.small_images:four_classes", "model__factory": "tests.support.small_images:cnn",
    "data__subset": 11, "epochs": 2, "batch_size": 5, "dtype": "float64", "attack__steps": 2,
}  # fmt: skip
RUNS = [
    ("moons", {"method": "ima", "norm": "linf"}),
    ("moons", {"method": "ima", "norm": "l2"}),
    ("moons", {"method": "ima", "norm": "linf", "margin_update": "online"}),
    ("moons", {"method": "ima", "norm": "l2", "margin_update": "online"}),
    ("moons", {"method": "adv", "norm": "linf"}),
    ("moons", {"method": "adv", "norm": "l2"}),
    ("moons", {"method": "mma", "norm": "linf"}),
    ("moons", {"method": "mma", "norm": "l2"}),
    ("moons", {"method": "iaat", "norm": "linf"}),
    ("fashion_mnist", {"method": "ima", "norm": "linf"}),
    ("fashion_mnist", {"method": "ima", "norm": "l2", "margin_update": "online"}),
    ("fashion_mnist", {"method": "ima", "norm": "linf", "margin_rule": "journal"}),
    ("fashion_mnist", {"method": "ima", "norm": "l2", "margin_rule": "ame"}),
]
# Steps after which the runs are interrupted, and workers that continue: in the first epoch (of 7 or 3 steps), in
# the second, and then to the end.
INTERRUPTED = [(2, 2), (1, 4), (2, None)]
FORMS = {"1": [(1, None)], "2": [(2, None)], "4": [(4, None)], "2→1→2": INTERRUPTED}


def _numbers(form: str) -> list[int]:
    """The runs of this form: four workers on two cores are slow, and the convolutions tell them nothing new."""
    return [number for number, (preset, _) in enumerate(RUNS) if form != "4" or preset == "moons"]


def _start(place: Path, numbers: list[int]) -> list[tuple]:
    made = []
    for number in numbers:
        preset, options = RUNS[number]
        path = place / f"{number:02d}"
        config, _ = workers.start_run(path, preset, **(MOONS if preset == "moons" else IMAGES), **options)
        made.append((config, path))
    return made


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """(name of the form, number of the run) -> weights and margins."""
    found = {}
    for name, parts in FORMS.items():
        numbers = _numbers(name)
        made = _start(tmp_path_factory.mktemp("runs"), numbers)
        for count, stop_after in parts:
            workers.run_on(count, workers.train_all, made, stop_after)
            if stop_after is not None:
                assert all(any("-step=" in p.name for p in (path / "checkpoints").iterdir()) for _, path in made)
        for number, (config, path) in zip(numbers, made, strict=True):
            found[name, number] = workers.final_state(config, path)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(RUNS)), ids=lambda i: "-".join([RUNS[i][0], *RUNS[i][1].values()]))
def test_equal_on_any_number_of_workers(results, number, record_property):
    weights, margins = results["1", number]
    for form in (form for form in FORMS if form != "1" and number in _numbers(form)):
        weights_2, margins_2 = results[form, number]
        difference = workers.largest_difference(weights, weights_2)
        if margins is not None:
            difference = max(difference, float((margins - margins_2).abs().max()))
        print(f"{RUNS[number]}, {form} workers: largest difference {difference:.1e}")
        record_property(form, difference)
        assert difference < 1e-9
    if margins is not None and RUNS[number][0] == "moons":
        assert len(margins.unique()) > 10  # they have not all stayed where they were
