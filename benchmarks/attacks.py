"""How much time the attacks save: ``python -m benchmarks.attacks [--quick] [--out FILE]`` prints JSON.

bpgd: exact compaction against the same algorithm without it (``plain_bpgd``), built from the same
primitives, so that nothing but compaction differs. ``achieved`` is the ratio of times; ``allowed`` is the
ratio of evaluations, and ``allowed_weighted`` counts an evaluation with a backward pass at its measured cost.
``of_allowed`` is achieved / allowed_weighted: what is missing from 1 is overhead and small batches.
``allowed_affine`` also counts what a pass costs whatever its size, measured with one sample: a bound that
no compaction of a single batch can pass.

worst: against advertorch's 100-PGD, run once for each loss from the same starts; as a user calls it, and
with the gradients of the parameters switched off.

training_step: the share of an IMA training step spent outside forward and backward passes.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import make_moons
from torch import Tensor, nn

from benchmarks import training_step
from ima_dist.attacks import CurveResult, bpgd, pgd, worst_curve
from ima_dist.attacks.common import (
    Box,
    attack_mode,
    cross_entropy,
    logits_and_gradient,
    misclassified,
)
from ima_dist.core import noise, norms
from ima_dist.evaluation.advertorch_pgd import advertorch_pgd
from ima_dist.models import fashion_mnist_cnn, moons_mlp

FASHION_DIRS = (Path("/usr/share/datasets/fashion-mnist"), Path("data/fashion-mnist"), Path("data"))
STEPS, BISECTIONS, STEP_SCALE = 20, 10, 4.0


def plain_bpgd(
    model: nn.Module, x: Tensor, y: Tensor, eps: Tensor | float, *, norm: str, start: Tensor, box: Box
) -> tuple[Tensor, Tensor]:
    """Algorithm 3 without compaction: every sample goes through every pass. Returns x_n and crossed."""
    with torch.no_grad(), attack_mode(model):
        balls = norms.Balls(x, eps, norm, box)
        sequence = [x, balls.clip(x + start)]
        wrong = [misclassified(model(x), y)]
        for _ in range(STEPS):
            logits, gradient = logits_and_gradient(model, sequence[-1], y, cross_entropy)
            wrong.append(misclassified(logits, y))
            sequence.append(balls.step(sequence[-1], gradient, STEP_SCALE / STEPS))
        wrong.append(misclassified(model(sequence[-1]), y))
        # argmax gives the first of equal maxima: the first wrong element.
        first = torch.stack(wrong).int().argmax(0)
        crossed = first > 0
        elements, everyone = torch.stack(sequence), torch.arange(len(x))
        outside, inside = elements[first, everyone], elements[(first - 1).clamp_min(0), everyone]
        for _ in range(BISECTIONS):
            middle = (inside + outside) / 2
            miss = norms.per_sample(misclassified(model(middle), y), middle)
            inside, outside = torch.where(miss, inside, middle), torch.where(miss, middle, outside)
        return torch.where(norms.per_sample(crossed, x), (inside + outside) / 2, x), crossed


class Counter:
    """A network that notes the samples of each pass, apart for passes with and without a gradient."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.backward: list[int] = []
        self.forward: list[int] = []

    def __call__(self, x: Tensor) -> Tensor:
        (self.backward if torch.is_grad_enabled() else self.forward).append(len(x))
        out: Tensor = self.model(x)
        return out


def seconds(function: Callable[[], Any]) -> float:
    # With one thread, time on the processor is what a quiet machine would take, whoever else is busy.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    begin = clock()
    function()
    return clock() - begin


def alternating(a: Callable[[], Any], b: Callable[[], Any], repeats: int) -> tuple[float, float, float]:
    """Median seconds of a and b, and the median of the ratios a / b of neighbours, run as A B A B …"""
    a(), b()
    pairs = [(seconds(a), seconds(b)) for _ in range(repeats)]
    return (
        statistics.median(p[0] for p in pairs),
        statistics.median(p[1] for p in pairs),
        statistics.median(p[0] / p[1] for p in pairs),
    )


def compare_bpgd(
    model: nn.Module, x: Tensor, y: Tensor, share: float, *, norm: str, eps_max: float, box: Box, repeats: int
) -> dict[str, Any]:
    """Compacted against plain where about ``share`` of the correctly classified samples cross."""
    unit = noise.start(noise.sample_keys(0, 0, noise.Phase.TRAIN, torch.arange(len(x))), x, 1.0, norm)

    def crossing(eps: float, n: int) -> float:
        found = bpgd(model, x[:n], y[:n], eps, norm=norm, start=unit[:n] * eps, box=box, bisections=0)
        return float(found.crossed.sum() / found.correct.sum().clamp_min(1))

    low, high = 0.0, eps_max
    for _ in range(7):
        middle = (low + high) / 2
        low, high = (middle, high) if crossing(middle, 128) < share else (low, middle)
    eps = (low + high) / 2

    compact = functools.partial(bpgd, norm=norm, start=unit * eps, box=box)
    plain = functools.partial(plain_bpgd, norm=norm, start=unit * eps, box=box)
    counter = Counter(model)
    with attack_mode(model):
        found = compact(counter, x, y, eps)
    _, crossed = plain(model, x, y, eps)
    slow, fast, achieved = alternating(lambda: plain(model, x, y, eps), lambda: compact(model, x, y, eps), repeats)
    cost = {}
    with torch.no_grad(), attack_mode(model):
        for n in (1, len(x)):
            cost[n] = alternating(
                lambda n=n: model(x[:n]),  # type: ignore[misc]
                lambda n=n: logits_and_gradient(model, x[:n], y[:n], cross_entropy),  # type: ignore[misc]
                max(5, 100 // n) * repeats if len(x[0]) == 2 else repeats,
            )
    forward, both = cost[len(x)][0] / len(x), cost[len(x)][1] / len(x)
    all_plain = len(x) * (STEPS + 2 + BISECTIONS)
    weighted_plain = len(x) * (STEPS * both + (2 + BISECTIONS) * forward)
    allowed_weighted = weighted_plain / (sum(counter.backward) * both + sum(counter.forward) * forward)
    affine = sum(
        cost[1][kind] + (n - 1) * (cost[len(x)][kind] - cost[1][kind]) / (len(x) - 1)
        for kind, sizes in enumerate((counter.forward, counter.backward))
        for n in sizes
    )
    return {
        "norm": norm,
        "batch": len(x),
        "eps": round(eps, 5),
        "crossing": round(float(found.crossed.sum() / found.correct.sum().clamp_min(1)), 3),
        "correct": round(float(found.correct.double().mean()), 3),
        "crossing_differs": int((found.crossed != (crossed & found.correct)).sum()),
        "plain_ms": round(slow * 1e3, 2),
        "compact_ms": round(fast * 1e3, 2),
        "plain_evaluations": all_plain,
        "compact_evaluations": found.evaluations,
        "forward_us_per_sample": round(forward * 1e6, 2),
        "forward_backward_us_per_sample": round(both * 1e6, 2),
        "achieved": round(achieved, 3),
        "allowed": round(all_plain / found.evaluations, 3),
        "allowed_weighted": round(allowed_weighted, 3),
        "allowed_affine": round(weighted_plain / affine, 3),
        "of_allowed": round(achieved / allowed_weighted, 3),
    }


def compare_worst(
    model: nn.Module, x: Tensor, y: Tensor, levels: list[float], *, norm: str, box: Box, steps: int
) -> dict[str, Any]:
    """``worst_curve`` against advertorch's attack with both losses at all ``levels``."""
    keys = noise.sample_keys(0, 0, noise.Phase.EVALUATE, torch.arange(len(x)))
    model.eval()

    def run_theirs() -> list[float]:
        accuracies = [float((model(x).argmax(1) == y).double().mean())]
        for eps in levels:
            right = torch.ones_like(y, dtype=torch.bool)
            for loss in ("ce", "margin"):
                start = noise.start(keys, x, eps, norm)
                adv = advertorch_pgd(
                    model, x, y, eps, norm=norm, steps=steps, step_scale=STEP_SCALE, loss=loss, start=start, box=box
                )
                with torch.no_grad():
                    right &= model(adv).argmax(1) == y
            accuracies.append(float(right.double().mean()))
        return accuracies

    theirs: list[float] = []
    found: list[CurveResult] = []

    def run_ours() -> None:
        def start(eps: float, number: int) -> Tensor:
            return noise.start(noise.derived(keys, number) if number else keys, x, eps, norm)

        found.append(worst_curve(model, x, y, [0.0, *levels], norm=norm, steps=steps, start=start, box=box))

    # As a user calls it, advertorch also computes the gradients of the parameters, for nothing.
    slow = seconds(lambda: theirs.extend(run_theirs()))
    fast = seconds(run_ours)
    model.requires_grad_(False)
    slow_without = seconds(run_theirs)
    model.requires_grad_(True)
    ours = (found[0].predictions == y).double().mean(1).tolist()
    return {
        "norm": norm,
        "samples": len(x),
        "steps": steps,
        "levels": [0.0, *levels],
        "advertorch_accuracy": [round(a, 4) for a in theirs],
        "worst_accuracy": [round(a, 4) for a in ours],
        "advertorch_seconds": round(slow, 2),
        "advertorch_seconds_without_parameter_gradients": round(slow_without, 2),
        "worst_seconds": round(fast, 2),
        "worst_evaluations": found[0].evaluations,
        "advertorch_evaluations": len(x) * (1 + 2 * len(levels) * (steps + 1)),
        "ratio": round(slow / fast, 3),
        "ratio_without_parameter_gradients": round(slow_without / fast, 3),
    }


def train(
    model: nn.Module, x: Tensor, y: Tensor, steps: int, batch: int, *, norm: str, eps: float, box: Box
) -> nn.Module:
    """Adam on ``steps`` batches: plain for eps = 0, else half clean, half 5-step PGD with eps rising."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for step in range(steps):
        rows = torch.randint(len(x), (batch,), generator=generator)
        inputs, labels = x[rows], y[rows]
        if eps > 0:
            radius = eps * min(1.0, 2 * step / steps)
            inputs = torch.cat([inputs, pgd(model, inputs, labels, radius, norm=norm, steps=5, box=box)])
            labels = labels.repeat(2)
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).mean().backward()
        optimizer.step()
    return model.eval()


def moons_data() -> tuple[Tensor, Tensor]:
    points, labels = make_moons(20000, noise=0.06, random_state=0)
    return torch.as_tensor(points, dtype=torch.float32), torch.as_tensor(labels)


def fashion_data(n: int) -> tuple[Tensor, Tensor, str]:
    """n training images in [0, 1], labels, and "real" or "synthetic"."""
    for folder in FASHION_DIRS:
        images, labels = folder / "train-images-idx3-ubyte.gz", folder / "train-labels-idx1-ubyte.gz"
        if images.exists() and labels.exists():
            with gzip.open(images) as i, gzip.open(labels) as c:
                pixels = np.frombuffer(i.read(16 + 784 * n), np.uint8, offset=16)
                classes = np.frombuffer(c.read(8 + n), np.uint8, offset=8)
            x = torch.tensor(pixels.reshape(-1, 1, 28, 28), dtype=torch.float32) / 255
            return x, torch.tensor(classes, dtype=torch.int64), "real"
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(10, (n,), generator=generator)
    templates = torch.rand(10, 1, 28, 28, generator=generator)
    x = 0.6 * templates[y] + 0.4 * torch.rand(n, 1, 28, 28, generator=generator)
    return x, y, "synthetic"


def networks_of(name: str, quick: bool) -> tuple[Tensor, Tensor, str, Box, dict[str, nn.Module]]:
    """Samples, labels, where they come from, their box, and two networks trained on them for a short time."""
    if name == "moons":
        x, y = moons_data()
        data, box, batch = "real", None, 128
        settings = [("plain", moons_mlp(), 600, 0.0), ("adversarial", moons_mlp(), 600, 0.2)]
    else:
        x, y, data = fashion_data(3000)
        box, batch = (0.0, 1.0), 64
        settings = [
            ("plain", fashion_mnist_cnn(), 60 if quick else 120, 0.0),
            ("adversarial", fashion_mnist_cnn(), 60 if quick else 200, 0.1),
        ]
    models = {
        kind: train(network, x, y, steps, batch, norm="linf", eps=eps, box=box)
        for kind, network, steps, eps in settings
    }
    return x, y, data, box, models


def cases_of(name: str, quick: bool) -> tuple[dict[int, int], dict[str, tuple[float, list[float]]], int]:
    """Batch size -> repeats; norm -> ε_max and noise levels; number of samples attacked with ``worst``."""
    if name == "moons":
        batches = {128: 9 if quick else 25, 2048: 5 if quick else 11}
        cases = {"linf": (1.0, [0.05, 0.1, 0.15, 0.2, 0.25, 0.3]), "l2": (1.0, [0.1, 0.2, 0.3])}
        return batches, cases, 500 if quick else 2000
    batches = {128: 2} if quick else {128: 3, 512: 1}
    cases = {"linf": (0.5, [0.05, 0.1, 0.15, 0.2, 0.25, 0.3]), "l2": (8.0, [0.5, 1.0, 2.0, 3.0, 4.0, 5.0])}
    return batches, cases, 32 if quick else 64


def measure(name: str, quick: bool, report: Callable[[str], None]) -> dict[str, Any]:
    """All comparisons on one data set."""
    torch.manual_seed(0)
    x, y, data, box, models = networks_of(name, quick)
    batches, cases, capped = cases_of(name, quick)
    report(f"{name}: networks trained")
    result: dict[str, Any] = {"data": data, "bpgd": [], "worst": []}
    for norm, (eps_max, levels) in cases.items():
        for batch, repeats in batches.items() if name == "moons" or norm != "l2" or not quick else ():
            for share in (0.2, 0.4, 0.77):
                settings: dict[str, Any] = {"norm": norm, "eps_max": eps_max, "box": box, "repeats": repeats}
                row = compare_bpgd(models["adversarial"], x[:batch], y[:batch], share, **settings)
                result["bpgd"].append(row)
                report(f"{name} bpgd {json.dumps(row)}")
        for kind, model in models.items() if norm != "l2" or not quick else ():
            rows = slice(-capped, None)  # Hardly seen in the short training.
            row = {"training": kind}
            row |= compare_worst(model, x[rows], y[rows], levels, norm=norm, box=box, steps=30 if quick else 100)
            result["worst"].append(row)
            report(f"{name} worst {json.dumps(row)}")
    return result


def run(quick: bool, which: list[str], report: Callable[[str], None]) -> dict[str, Any]:
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "quick": quick,
        "networks": {name: measure(name, quick, report) for name in which},
        "training_step": training_step.measure(which),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the attacks.")
    parser.add_argument("--quick", action="store_true", help="fewer samples, repeats and steps")
    parser.add_argument("--out", type=Path, help="also write the JSON document to this file")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--networks", nargs="+", default=["moons", "fashion_mnist"], help="which to time")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    document = run(arguments.quick, arguments.networks, lambda line: print(line, file=sys.stderr, flush=True))
    text = json.dumps(document, indent=1)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
