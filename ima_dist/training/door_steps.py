"""The door's checks in training mode: that a network can be trained, resumed, and shared by several workers."""

import math

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from ima_dist.attacks.common import attack_mode, cross_entropy
from ima_dist.config.errors import ConfigError, first_line
from ima_dist.config.schema import Config
from ima_dist.core import distributed
from ima_dist.training.doorkeeper import ROUNDED, SAME, Doorkeeper, equal
from ima_dist.training.habits import same, undisturbed
from ima_dist.training.network import seeded


def try_training(door: Doorkeeper, x: Tensor, y: Tensor) -> None:
    """Two steps with a batch, and a pass with the smallest share of a batch that a worker will get."""
    share, workers = smallest_share(len(door.data.train), door.config)
    batch = min(len(x), door.config.batch_size)
    if batch > 1 or share == 1:
        _steps(door, x[:batch], y[:batch])
        random = _repeatable(door, x[:batch])
        if workers > 1 and batch >= 4:
            _joined(door, x[:batch], workers, random)
    if share >= batch:
        return
    try:
        with torch.no_grad():
            door.logits(x[:share].clone(), "training")
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{door.who} does not take {share} sample{'s' * (share > 1)} in training mode ({first_line(error)}), "
            f"but a worker will get no more of some batch: choose another --batch-size or fewer --workers."
        ) from error


def _steps(door: Doorkeeper, x: Tensor, y: Tensor) -> None:
    """Two: the second finds out whether a buffer still hangs on the first one's graph."""
    try:
        for _ in range(2):
            loss = cross_entropy(door.logits(x.clone(), "training"), y).mean()
            loss.backward()
    except ConfigError:
        raise
    except Exception as error:
        hint = ""
        if "second time" in str(error):
            hint = " Detach what forward() keeps for the next step (tensor.detach())."
        raise ConfigError(f"{door.who} cannot be trained: {first_line(error)}.{hint}") from error
    if not math.isfinite(loss.item()):
        door.refuse("not-finite", "has a NaN or infinite loss in training mode: scale the data or the weights")


def _passed(door: Doorkeeper, x: Tensor, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits in training mode and then in evaluation mode, and the buffers that the first pass has left."""
    with torch.no_grad(), seeded(seed):
        logits = door.logits(x.clone(), "training")
        buffers = {name: tensor.clone() for name, tensor in door.network.named_buffers()}
        with attack_mode(door.network):
            return torch.cat([logits, door.logits(x.clone())]), buffers


def _repeatable(door: Doorkeeper, x: Tensor) -> bool:
    """A step depends only on what a checkpoint holds, and on seeded random numbers; returns whether it has any."""
    saved = {name: tensor.clone() for name, tensor in door.network.state_dict().items()}
    found = []
    with undisturbed(door.network):
        for seed in (0, 0, 1):
            door.network.load_state_dict(saved)
            found.append(_passed(door, x, seed)[0])
    if not equal(found[0], found[1], SAME):
        door.refuse(
            "random",
            "gives different answers in training mode with the same weights, buffers and random numbers, so a "
            "resumed run would differ from an undisturbed one: keep what it remembers in buffers that are saved "
            "(register_buffer), and draw from torch's, NumPy's or Python's own generator",
        )
    return not equal(found[0], found[2], SAME)


def _joined(door: Doorkeeper, x: Tensor, workers: int, random: bool) -> None:
    """Buffers that training changes get the same values when the batch is split: means over the samples do."""
    first = len(x) // 2
    found = []
    for part in (x, x[:first], x[first:]):
        with undisturbed(door.network) as before:
            found.append(_passed(door, part, 0)[1])
    known = {id(s) for m in door.network.modules() if isinstance(m, _NormBase) for s in m.buffers()}
    for name, buffer in door.network.named_buffers():
        whole, one, other = (buffers[name] for buffers in found)
        if id(buffer) in known or same(whole, before[name]):
            continue
        if not (whole.is_floating_point() or whole.is_complex()):
            if not (same(one, whole) and same(other, whole)):
                raise ConfigError(
                    f"{door.who} changes its buffer {name!r} (whole numbers) in training mode by what is in the "
                    f"batch, so {workers} workers would have different ones: use --workers 1, or keep a running "
                    "mean in floating-point numbers."
                )
        elif not random and not equal((first * one + (len(x) - first) * other) / len(x), whole, ROUNDED):
            door.refuse(
                "coupled",
                f"changes its buffer {name!r} in training mode, and not to a mean over the samples, so its value "
                f"depends on how {workers} workers split a batch: use --workers 1, or keep running means only (of "
                "x and x², for example)",
            )


def smallest_share(samples: int, config: Config) -> tuple[int, int]:
    """Fewest samples that a worker gets of a batch, if any, and the largest number of workers that is asked for."""
    low, high = config.worker_range or (config.workers or 1, config.workers or 1)
    sizes = {min(config.batch_size, samples), samples % config.batch_size} - {0}
    shares = set()
    for workers in range(int(low), int(high) + 1):
        for size in sizes:
            parts = (distributed.block(size, part, workers) for part in range(workers))
            shares |= {last - first for first, last in parts}
    return min(shares - {0}), int(high)
