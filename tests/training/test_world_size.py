"""The same margins and weights on 1, 2 and 4 workers, and when their number changes at every resume."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import workers
from tests.support.fashion_mnist import needs_fashion_mnist

MOONS = {"data__subset": 402, "epochs": 3, "batch_size": 64, "dtype": "float64", "optimizer__lr": 1e-2}
FASHION = {"data__subset": 40, "epochs": 2, "batch_size": 18, "dtype": "float64", "attack__steps": 3}
RUNS = [
    ("moons", {"method": "ima", "norm": "linf"}),
    ("moons", {"method": "ima", "norm": "l2"}),
    ("moons", {"method": "ima", "norm": "linf", "margin_update": "online"}),
    ("moons", {"method": "ima", "norm": "l2", "margin_update": "online"}),
    ("moons", {"method": "adv", "norm": "linf"}),
    ("moons", {"method": "adv", "norm": "l2"}),
    ("moons", {"method": "mma", "norm": "linf"}),
    ("moons", {"method": "mma", "norm": "l2"}),
    ("fashion_mnist", {"method": "ima", "norm": "linf"}),
    ("fashion_mnist", {"method": "ima", "norm": "l2", "margin_update": "online"}),
    ("fashion_mnist", {"method": "adv", "norm": "linf"}),
    ("fashion_mnist", {"method": "mma", "norm": "l2"}),
]
# Steps after which the runs are interrupted, and workers that continue: in the first epoch (of 7 or 3 steps), in
# the second, and then to the end.
INTERRUPTED = [(2, 2), (1, 4), (2, None)]


def _start(place: Path) -> list[tuple]:
    made = []
    for number, (preset, options) in enumerate(RUNS):
        path = place / f"{number:02d}"
        config, _ = workers.start_run(path, preset, **(MOONS if preset == "moons" else FASHION), **options)
        made.append((config, path))
    return made


def _train_all(made, stop_after):
    for config, path in made:
        workers.train(config, path, stop_after)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """(name of the form, number of the run) -> weights and margins."""
    found = {}
    for name, parts in {"1": [(1, None)], "2": [(2, None)], "4": [(4, None)], "2→1→2": INTERRUPTED}.items():
        made = _start(tmp_path_factory.mktemp("runs"))
        for count, stop_after in parts:
            workers.run_on(count, _train_all, made, stop_after)
            if stop_after is not None:
                assert all(any("-step=" in p.name for p in (path / "checkpoints").iterdir()) for _, path in made)
        for number, (config, path) in enumerate(made):
            found[name, number] = workers.final_state(config, path)
    return found


@needs_fashion_mnist
@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(RUNS)), ids=lambda i: "-".join([RUNS[i][0], *RUNS[i][1].values()]))
def test_equal_on_any_number_of_workers(results, number, record_property):
    weights, margins = results["1", number]
    for form in ("2", "4", "2→1→2"):
        weights_2, margins_2 = results[form, number]
        difference = workers.largest_difference(weights, weights_2)
        if margins is not None:
            difference = max(difference, float((margins - margins_2).abs().max()))
        print(f"{RUNS[number]}, {form} workers: largest difference {difference:.1e}")
        record_property(form, difference)
        assert difference < 1e-9
    if margins is not None and RUNS[number][0] == "moons":
        assert len(margins.unique()) > 10  # they have not all stayed where they were
