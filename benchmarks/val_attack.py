"""``python -m benchmarks.val_attack DIR``: does the cheap attack on validation samples rank networks as 100-PGD does?

DIR: runs trained with --eval.val_noise. The weights after each of --epochs are attacked on test samples with the
paper's attack at that noise level, and the two accuracies compared over all networks, and over the last epoch alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from scipy.stats import kendalltau

from ima_dist.config.values import with_options
from ima_dist.core.noise import Phase, sample_keys
from ima_dist.data.choosing import to_attack
from ima_dist.data.load import load
from ima_dist.data.types import Resident
from ima_dist.evaluation.attacks import pgd100
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.finding import find_runs
from ima_dist.training.checkpoint import load_weights
from ima_dist.training.network import DTYPES, limit_threads, make_network


def accuracy(run: RunDir, epoch: int, samples: int, steps: int) -> float:
    """Share of the attacked test samples that 100-PGD leaves right at the run's validation noise."""
    config = run.config()
    noise = config.eval.val_noise
    assert noise is not None
    config = with_options(config, {"eval.noise": (noise,), "eval.steps": steps})
    data = load(config.data, config.seed)
    limit_threads(data)
    network = make_network(config, data)
    load_weights(run, epoch, data.digest(), network)
    test = Resident(data.test, "cpu", DTYPES[config.dtype], data.box)
    indices = to_attack(data.test, samples, config.eval.order)
    right = 0
    for part in indices.split(100):
        x, y = test.batch(part)
        keys = sample_keys(config.seed, 0, Phase.EVALUATE, part)
        predictions = pgd100(network, x, y, keys, config, test.box)
        right += int((predictions["both", noise] == y).sum())
    return right / len(indices)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--epochs", default="2,4,6", help="weights after so many epochs (default 2,4,6)")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--steps", type=int, default=100)
    a = parser.parse_args()
    epochs = [int(part) for part in a.epochs.split(",")]
    rows = []
    for run in find_runs(a.directory)[0]:
        cheap = {row["epoch"]: row["val_robust_accuracy"] for row in run.read_history()}
        for epoch in (e for e in epochs if cheap.get(e) is not None):
            rows.append((run.path.name, epoch, cheap[epoch], accuracy(run, epoch, a.samples, a.steps)))
            print("{}  epoch {}  validation {:.4f}  100-PGD {:.4f}".format(*rows[-1]), flush=True)
    for name, chosen in (("all", rows), ("last epoch", [row for row in rows if row[1] == epochs[-1]])):
        tau = kendalltau([row[2] for row in chosen], [row[3] for row in chosen]).statistic
        best = max(chosen, key=lambda row: row[2])[:2] == max(chosen, key=lambda row: row[3])[:2]
        print(
            f"{name}: {len(chosen)} networks, Kendall's τ {tau:.2f}, the same best network: {'yes' if best else 'no'}"
        )


if __name__ == "__main__":
    main()
