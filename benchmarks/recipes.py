"""``python -m benchmarks.recipes --out DIR``: what recipes are worth, on reduced Fashion-MNIST.

adv (ε 0.1) and ima with each recipe and seed: 2,000 images, 6 epochs, 200 test samples, pgd100 and worst; of the first
seed AutoAttack on 100 samples at 0.1. A recipe's gain over ``paper`` is paired by test sample; its interval holds the
sampling of the test set and the spread over seeds (``ima_dist.results.choice``). Given again, the command goes on where
it was. CPU-seconds are those of training and evaluation without AutoAttack. A run takes 10 to 14 minutes of one core,
and AutoAttack 7. So ``--seeds 0`` and ``--seeds 1`` side by side, with one thread each, take 1.75 hours on
two cores; without ``--seeds`` the command then prints the table.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from ima_dist.results.choice import Candidate, difference_interval, pooled_spread
from ima_dist.results.seeds import Network, candidates_of
from ima_dist.rundir.run import Run

_METHODS = {"adv": ["--eps-max", "0.1"], "ima": []}
_BASELINE = "paper"
_LEVELS = "0,0.1,0.2"
_SIZES = {"data.subset": 2000, "epochs": 6, "eval.samples": 200, "eval.steps": 100}


def commands(place: Path, method: str, recipe: str, seed: int, sizes: dict[str, int]) -> Iterator[list[str]]:
    """What trains and evaluates one run, as arguments of ``python -m``."""
    if (place / "config.yaml").exists():
        yield ["ima_dist.train", "--resume", str(place), "--local"]
    else:
        given = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
        what = ["--method", method, *_METHODS[method], "--recipe", recipe, "--seed", str(seed), *given]
        yield ["ima_dist.train", "fashion_mnist", *what, "--eval.noise", _LEVELS, "--out", str(place), "--local"]
    if seed == 0 and not ((place / "summary.json").exists() and _autoattack(Run.open(place))):
        samples = ["--eval.samples", str(min(100, sizes["eval.samples"])), "--eval.noise", "0,0.1"]
        yield ["ima_dist.evaluate", str(place), "--attack", "autoattack", *samples, "--local"]


def table(root: Path, recipes: list[str], seeds: list[int]) -> Iterator[str]:
    """The lines of a Markdown table, and a verdict."""
    heads = ["clean", "pgd100 0.1", "pgd100 0.2", "worst 0.1", "worst 0.2", "autoattack 0.1", "CPU-seconds"]
    yield f"| {' | '.join(['method', 'recipe', *heads, 'gain over paper'])} |"
    yield f"| {' | '.join(['---'] * (len(heads) + 3))} |"
    worth = []
    for method in _METHODS:
        runs = {name: [Run.open(_place(root, method, name, seed)) for seed in seeds] for name in recipes}
        groups = [(name, [Network(run, run.config.epochs) for run in several]) for name, several in runs.items()]
        found, weaker = (
            {candidate.name: candidate for candidate in candidates_of(groups, attack)[1]}
            for attack in ("worst", "pgd100")
        )
        for name, candidate in found.items():
            gain, better = _gain(candidate, found)
            worth += [f"{name} with {method}"] * better
            costs = [run.summary["cost"]["cpu_seconds"] for run in runs[name] if not _autoattack(run)]
            robust = [f"{by.robust[level].mean:.3f}" for by in (weaker[name], candidate) for level in (0.1, 0.2)]
            cells = [f"{candidate.clean.mean:.3f}", *robust, _autoattack(runs[name][0])]
            cost = f"{sum(costs) / len(costs):.0f}" if costs else ""
            yield f"| {' | '.join([method, name, *cells, cost, gain])} |"
    yield f"\nRecommended, as the gain exceeds its 95 % interval: {', '.join(worth) or 'none'}."


def _gain(candidate: Candidate, found: dict[str, Candidate]) -> tuple[str, bool]:
    """The gain in area under the curve of accuracy against noise, and whether it is more than noise."""
    if candidate.name == _BASELINE or _BASELINE not in found:
        return "", False
    usual = found[_BASELINE].area
    spread = pooled_spread([other.area for other in found.values()])
    low, high = difference_interval(candidate.area, usual, spread)
    return f"{candidate.area.mean - usual.mean:+.3f} ({low:+.3f} to {high:+.3f})", low > 0


def _autoattack(run: Run) -> str:
    points = [p for p in run.points if p.attack == "autoattack" and p.level == 0.1 and p.accuracy is not None]
    return f"{points[0].accuracy:.2f}" if points else ""


def _place(root: Path, method: str, recipe: str, seed: int) -> Path:
    return root / f"{method}-{recipe}-seed{seed}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipes", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--recipes", default="paper,pang2021-ema,awp", metavar="A,B,…")
    parser.add_argument("--seeds", default="0,1", metavar="A,B,…")
    for name, value in _SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=value, dest=name)
    arguments = parser.parse_args()
    recipes, seeds = arguments.recipes.split(","), [int(seed) for seed in arguments.seeds.split(",")]
    sizes = {name: getattr(arguments, name) for name in _SIZES}
    for seed in seeds:
        for method in _METHODS:
            for recipe in recipes:
                for words in commands(_place(arguments.out, method, recipe, seed), method, recipe, seed, sizes):
                    subprocess.run([sys.executable, "-m", *words], check=True, stdout=sys.stderr)
    print("\n".join(table(arguments.out, recipes, seeds)))


if __name__ == "__main__":
    main()
