"""A few test images under increasing noise, with the network's predictions (Fig. 10)."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ima_dist.attacks import pgd
from ima_dist.attacks.common import attack_mode
from ima_dist.config.schema import Config
from ima_dist.core import noise
from ima_dist.data.types import Resident

_CLASSES = 5


def noisy_images(
    network: nn.Module, test: Resident, config: Config, class_names: tuple[str, ...] | None
) -> dict[str, np.ndarray]:
    """The first attacked sample of each of up to five classes, and its noisy images by ``attacks.pgd``.

    At each noise level the attack takes ``eval.steps`` steps of cross-entropy from the same start as pgd100.

    Args:
        test: samples of shape (C, H, W), of which the first ``eval.samples`` are used, as in an evaluation.
        class_names: numbers are used if the data have none.

    Returns:
        S samples in ascending order of their class and L noise levels: index (S,), label (S,), clean
        (S, C, H, W) float16, clean_prediction (S,), noise (L,), noisy (S, L, C, H, W) float16, prediction
        (S, L); class_names (K,) of text.
    """
    labels = test.y[: config.eval.samples].cpu().numpy()
    _, first = np.unique(labels, return_index=True)
    indices = torch.as_tensor(first[:_CLASSES], device=test.y.device)
    x, y = test.batch(indices)
    keys = noise.sample_keys(config.seed, 0, noise.Phase.EVALUATE, indices)
    images, predictions = [], []
    with torch.no_grad(), attack_mode(network):
        logits = network(x)
        for eps in config.eval.noise:
            adv = pgd(
                network,
                x,
                y,
                eps,
                norm=config.norm,
                steps=config.eval.steps if eps > 0 else 0,
                step_scale=config.eval.step_scale,
                start=noise.start(keys, x, eps, config.norm),
                box=test.box,
            )
            images.append(adv)
            predictions.append(network(adv).argmax(1))
    return {
        "index": indices.cpu().numpy(),
        "label": y.cpu().numpy(),
        "clean": x.half().cpu().numpy(),
        "clean_prediction": logits.argmax(1).cpu().numpy(),
        "noise": np.array(config.eval.noise),
        "noisy": torch.stack(images, 1).half().cpu().numpy(),
        "prediction": torch.stack(predictions, 1).cpu().numpy(),
        "class_names": np.array(class_names or range(logits.shape[1])).astype(str),
    }
