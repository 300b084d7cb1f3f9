"""``python -m benchmarks.minimal RUN_DIR…``: distances to the boundary and their price, against FAB.

For each run and norm FAB (pyautoattack, towards each of up to nine classes, 100 iterations each), our search in an
audit and that of ``--attack minimal`` with 100 steps run one after the other in one process. Ratios are FAB's seconds
divided by ours, and the mean and median of our distances divided by FAB's. Only samples that are classified correctly
count.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pyautoattack.fab_pt import FABAttack_PT
from torch import Tensor, nn

from benchmarks.peers import opened
from benchmarks.timing import seconds
from ima_dist.attacks.common import Box, attack_mode, predicted
from ima_dist.config.schema import Config
from ima_dist.config.values import with_options
from ima_dist.core import norms
from ima_dist.evaluation.attacks import minimal_norm
from ima_dist.evaluation.autoattack import in_unit_box
from ima_dist.evaluation.margin_audit import boundary_distance

_FAB_NORMS = {"linf": "Linf", "l2": "L2"}


def fab_distance(network: nn.Module, x: Tensor, y: Tensor, *, norm: str, box: Box) -> Tensor:
    """Distance (B,) from x to the nearest misclassified point that FAB finds; infinite if it finds none.

    Fast Adaptive Boundary attack (Croce and Hein 2020) towards each of up to nine strongest rival classes, 100
    iterations each. 0 for samples that are misclassified when clean.
    """
    with attack_mode(network), torch.no_grad():
        logits = network(x)
        model, z = in_unit_box(network, x, logits, box, 10 * float(x.max() - x.min()))
        # That of a masked class, which no network answers, is whichever comes next; its distance stays 0.
        labels = torch.searchsorted(model.classes, y).clamp_max(len(model.classes) - 1)
        distance = torch.where(predicted(logits) == y, torch.inf, 0.0).to(x)
        fab = FABAttack_PT(model, norm=_FAB_NORMS[norm], n_iter=100, device=x.device)
        for fab.target_class in range(2, 2 + min(9, len(model.classes) - 1)):
            found = fab.attack_single_run(z, labels, use_rand_start=False, is_targeted=True)
            length = norms.length((found - z) * model.width, norm).to(x)
            wrong = predicted(network(model.samples(found))) != y
            distance = torch.where(wrong, torch.minimum(distance, length), distance)
    return distance


def right_ones(path: Path, samples: int) -> tuple[Config, nn.Module, Tensor, Tensor, Tensor, Box]:
    """As ``peers.opened``, with only the samples that the network classifies correctly."""
    config, network, x, y, keys, box = opened(path, samples)
    with torch.no_grad(), attack_mode(network):
        right = predicted(network(x)) == y
    return config, network, x[right], y[right], keys[right], box


def compared(path: Path, norm: str, samples: int) -> dict[str, Any]:
    config, network, x, y, keys, box = right_ones(path, samples)
    config = with_options(
        config, {"norm": norm, "eval.steps": 100, **({"eval.noise": (0.0, 1.0)} if norm == "l2" else {})}
    )
    found: dict[str, Tensor] = {}
    times: dict[str, float] = {}

    def timed(name: str, attack: Callable[[], Tensor | None]) -> None:
        def keep() -> None:
            distance = attack()
            assert distance is not None
            found[name] = distance

        times[name] = seconds(keep)

    boundary_distance(network, x[:2], y[:2], keys[:2], config, box)  # what only the first call costs
    timed("fab", lambda: fab_distance(network, x, y, norm=norm, box=box))
    timed("audit", lambda: boundary_distance(network, x, y, keys, config, box))
    timed("minimal", lambda: minimal_norm(network, x, y, keys, config, box).distance)
    row: dict[str, Any] = {"run": path.name, "norm": norm, "samples": len(x), "fab_seconds": round(times["fab"], 2)}
    both = torch.stack(list(found.values())).isfinite().all(0)
    row["found_by_all"] = int(both.sum())
    for name in ("audit", "minimal"):
        ours, theirs = found[name][both], found["fab"][both]
        row[name] = {
            "times_as_fast": round(times["fab"] / times[name], 1),
            "mean": round(float(ours.mean() / theirs.mean()), 4),
            "median": round(float(ours.median() / theirs.median()), 4),
            "over_1_percent_longer": round(float((ours > 1.01 * theirs).float().mean()), 3),
        }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--norm", choices=("linf", "l2", "both"), default="both")
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    for path in a.runs:
        for norm in ("linf", "l2") if a.norm == "both" else (a.norm,):
            print(json.dumps(compared(path, norm, a.samples)), flush=True)


if __name__ == "__main__":
    main()
