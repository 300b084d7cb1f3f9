"""Networks and data of an imaginary user, named by --model.factory and --data.source in tests."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import torch
from torch import nn

from ima_dist.training.checkpoint import Damaged


class TurnsNaN(nn.Module):
    """A network whose output becomes NaN in its eleventh forward pass in training mode."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.inner = nn.Linear(2, num_classes)
        self.passes = 0

    def forward(self, x):
        self.passes += self.training
        out = self.inner(x)
        return out * float("nan") if self.training and self.passes >= 11 else out


def turns_nan(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    return TurnsNaN(num_classes)


class Raises(TurnsNaN):
    """A network with a mistake in it that shows in its eleventh forward pass in training mode."""

    def forward(self, x):
        out = super().forward(x)
        if self.training and self.passes >= 11:
            raise KeyError("a mistake")
        return out


def raises(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    return Raises(num_classes)


class FailsAlone(TurnsNaN):
    """A network that, on worker 1 of a run, meets something in its eleventh forward pass in training mode.

    A file of the name ``what`` is then written in the directory that the environment variable MET names.
    """

    def __init__(self, num_classes: int, what: str) -> None:
        super().__init__(num_classes)
        self.what = what

    def forward(self, x):
        self.passes += self.training
        if self.passes == 11 and torch.distributed.is_initialized() and torch.distributed.get_rank() == 1:

            class Unknown(Exception):
                """Exists in this process alone."""

                def __reduce__(self):
                    raise TypeError("not to be sent")

            Path(os.environ["MET"], self.what).touch()
            if self.what == "dies":
                os._exit(1)
            raise {"damaged": Damaged("its file is damaged"), "unknown": Unknown("a mistake")}[self.what]
        return self.inner(x)


def fails_alone(num_classes: int, input_shape: tuple[int, ...], what: str) -> nn.Module:
    return FailsAlone(num_classes, what)


def blobs(config, seed):
    """Three clouds of points in the plane, as a dictionary of arrays."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n):
        y = torch.arange(n) % 3
        x = torch.randn(n, 2, generator=generator) * 0.2 + torch.stack([y.cos(), y.sin()], 1) * 2
        return x.numpy(), y.numpy()

    return {"train": draw(300), "val": draw(60), "test": draw(90)}


def three_way(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(nn.Linear(input_shape[0], 16), nn.Tanh(), nn.Linear(16, num_classes))


def linear_images(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), num_classes))


def with_batch_norm(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(nn.Linear(input_shape[0], 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, num_classes))


class Slow(nn.Module):
    """Points in the plane, told apart at a pace that leaves time to disturb the run.

    As long as the file that the environment variable SLOW_UNTIL names is not there, a pass takes 20 ms.
    """

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, 16), nn.Tanh(), nn.Linear(16, num_classes))

    def forward(self, x):
        until = os.environ.get("SLOW_UNTIL")
        if until and not os.path.exists(until):
            time.sleep(0.02)
        return self.inner(x)


def slow(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    return Slow(num_classes, input_shape[0])


class Unhurried(nn.Sequential):
    """Waits in every training pass, so that there is time to interrupt a short run, on any machine.

    While the file that the environment variable TEST_HANG names is there, a training pass does not end.
    """

    def forward(self, x):
        if self.training:
            time.sleep(float(os.environ.get("TEST_PAUSE", "0")))
            while os.path.exists(os.environ.get("TEST_HANG", "")):
                time.sleep(0.1)
        return super().forward(x)


def unhurried(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    return Unhurried(nn.Linear(input_shape[0], 16), nn.Tanh(), nn.Linear(16, num_classes))
