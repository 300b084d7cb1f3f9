"""What a run's network answers on a few clean training samples, to notice when its code is no longer the same.

examples/answers.npz is written after every epoch: epoch (), index (S,), x (S, ...) as the network sees them, logits
(S, classes). Weights alone do not say whether a layer's activation or a normalisation has been changed since.
"""

import contextlib

import numpy as np
import torch
from torch import Tensor, nn

from ima_dist.attacks.common import attack_mode
from ima_dist.config.errors import ConfigError
from ima_dist.data.types import Samples
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import read_arrays

_SAMPLES = 16
# Share of the largest logit by which two devices may differ.
_TOLERANCE = 0.01
Answers = dict[str, np.ndarray]


def write_answers(run: RunDir, network: nn.Module, train: Samples, epoch: int) -> None:
    """Keep the answers after ``epoch`` epochs. Raises OSError."""
    index = torch.linspace(0, len(train) - 1, min(len(train), _SAMPLES), dtype=torch.float64).long()
    x, _ = train.batch(index)
    # As it is stored, uint8 takes a quarter of the space.
    kept = (x * 255).round().to(torch.uint8) if train.as_bytes else x
    logits = _logits(network, x).numpy()
    with run.replacing(run.answers_path) as file:
        np.savez_compressed(
            file, epoch=np.array(epoch), index=index.numpy(), x=kept.detach().cpu().numpy(), logits=logits
        )


def read_answers(run: RunDir) -> Answers | None:
    """The answers that a run has kept; None if it has none. Raises ConfigError if they are damaged.

    Runs of earlier versions have kept no x.
    """
    if not run.answers_path.exists():
        return None
    found = read_arrays(run.answers_path, ("epoch", "index", "logits"))
    with contextlib.suppress(ConfigError):
        found |= read_arrays(run.answers_path, ("x",))
    return found


def same_answers(kept: Answers, network: nn.Module, train: Samples) -> bool:
    """False if the network, with the weights of that epoch, answers otherwise than it did.

    Answers that are random now have nothing to be compared with, and count as the same.
    """
    index = torch.from_numpy(kept["index"])
    return int(index.max()) < len(train) and same_logits(kept["logits"], network, train.batch(index)[0])


def same_logits(then: np.ndarray, network: nn.Module, x: Tensor) -> bool:
    """False if the network's logits for x (S, ...) are others than ``then`` (S, classes), for more than rounding."""
    now, again = (_logits(network, x).numpy() for _ in range(2))
    if not np.array_equal(now, again, equal_nan=True):
        return True
    if now.shape != then.shape or not np.array_equal(np.isfinite(now), np.isfinite(then)):
        return False
    known = np.isfinite(then)
    largest = float(np.abs(then[known]).max(initial=0.0))
    return bool((np.abs(now - then)[known] <= _TOLERANCE * largest).all())


def _logits(network: nn.Module, x: Tensor) -> Tensor:
    # A network that draws random numbers must not shift those of the training.
    with torch.no_grad(), attack_mode(network), torch.random.fork_rng(devices=[]):
        return network(x).detach().float().cpu()
