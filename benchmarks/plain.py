"""Plain references: IMA as a straightforward loop in PyTorch, without compaction, Ray or checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ima_dist.attacks.common import Box, attack_mode, cross_entropy, logits_and_gradient, misclassified
from ima_dist.core import noise, norms
from ima_dist.data.order import batches
from ima_dist.margins.update import update_margins
from ima_dist.training.loop import Training

#: (x, y, indices, margins, epoch) -> the loss of the batch, and new margins for it.
Step = Callable[[Tensor, Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]


def bpgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: Tensor | float,
    *,
    norm: str,
    start: Tensor,
    box: Box,
    steps: int = 20,
    bisections: int = 10,
    step_scale: float = 4.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Algorithm 3 without compaction: every sample goes through every pass. Returns x_n, crossed and correct."""
    with torch.no_grad(), attack_mode(model):
        balls = norms.Balls(x, eps, norm, box)
        sequence = [x, balls.clip(x + start)]
        wrong = [misclassified(model(x), y)]
        for _ in range(steps):
            logits, gradient = logits_and_gradient(model, sequence[-1], y, cross_entropy)
            wrong.append(misclassified(logits, y))
            sequence.append(balls.step(sequence[-1], gradient, step_scale / steps))
        wrong.append(misclassified(model(sequence[-1]), y))
        # argmax gives the first of equal maxima: the first wrong element.
        first = torch.stack(wrong).int().argmax(0)
        crossed = first > 0
        elements, everyone = torch.stack(sequence), torch.arange(len(x))
        outside, inside = elements[first, everyone], elements[(first - 1).clamp_min(0), everyone]
        for _ in range(bisections):
            middle = (inside + outside) / 2
            miss = norms.per_sample(misclassified(model(middle), y), middle)
            inside, outside = torch.where(miss, inside, middle), torch.where(miss, middle, outside)
        return torch.where(norms.per_sample(crossed, x), (inside + outside) / 2, x), crossed, ~wrong[0]


def ima(training: Training) -> Step:
    """A step of IMA (online), as Algorithms 1 to 3 have it."""
    config, network, box = training.config, training.network, training.train.box

    def step(x: Tensor, y: Tensor, indices: Tensor, margins: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        keys = noise.sample_keys(config.seed, epoch, noise.Phase.TRAIN, indices)
        start = noise.start(keys, x, margins, config.norm)
        attack = config.attack
        sizes: dict[str, Any] = {
            "steps": attack.steps,
            "bisections": attack.bisections,
            "step_scale": attack.step_scale,
        }
        points, crossed, correct = bpgd(network, x, y, margins, norm=config.norm, start=start, box=box, **sizes)
        logits = network(torch.cat([x, points[crossed]]))
        clean = F.cross_entropy(logits[: len(x)], y, reduction="sum")
        noisy = F.cross_entropy(logits[len(x) :], y[crossed], reduction="sum")
        new = update_margins(
            margins,
            norms.length(points - x, config.norm),
            correct=correct,
            crossed=crossed,
            expansion=config.expansion,
            eps_max=config.eps_max,
        )
        return ((1 - config.beta) * clean + config.beta * noisy) / len(x), new

    return step


def train(training: Training, step: Step) -> Tensor:
    """All epochs with ``step``, on the network, data, order and optimiser of ``training``; returns the margins (N,)."""
    config, optimizer, samples = training.config, training.state.optimizer, training.train
    margins = torch.full((len(samples),), config.expansion, dtype=next(training.network.parameters()).dtype)
    for epoch in range(config.epochs):
        following = margins.clone()
        for indices in batches(len(samples), config.batch_size, config.seed, epoch):
            x, y = samples.batch(indices)
            optimizer.zero_grad()
            loss, following[indices] = step(x, y, indices, margins[indices], epoch)
            loss.backward()
            optimizer.step()
        margins = following
    return margins
