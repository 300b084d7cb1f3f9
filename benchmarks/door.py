"""``python -m benchmarks.door``: seconds that the check at the door takes for the paper's six networks.

The data are random numbers of the right shape. Printed beside it: the seconds that building the network takes, and the
check's time in forward passes of a batch of the samples that it looks at.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from ima_dist.config.presets import PRESETS, make_config
from ima_dist.data.types import DataSet, Split
from ima_dist.training.door import check_door
from ima_dist.training.network import limit_threads, make_network

_SHAPES = {
    "moons": ((2,), 2),
    "fashion_mnist": ((1, 28, 28), 10),
    "svhn": ((3, 32, 32), 10),
    "covid_ct": ((1, 224, 224), 2),
    "mnist": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
}


def random_data(preset: str, samples: int = 256) -> DataSet:
    """uint8 images with all classes, or points in the plane."""
    shape, classes = _SHAPES[preset]
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (samples, *shape), generator=generator, dtype=torch.uint8)
    split = Split(x if len(shape) == 3 else x / 100, torch.arange(samples) % classes)
    return DataSet(split, split, split, (0.0, 1.0) if len(shape) == 3 else None, classes)


def timed(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def main() -> None:
    for preset in PRESETS:
        config, data = make_config(preset), random_data(preset)
        limit_threads(data)
        build = timed(lambda config=config, data=data: make_network(config, data))  # type: ignore[misc]
        network = make_network(config, data)
        found: dict[str, object] = {}
        door = timed(lambda n=network, d=data, c=config, f=found: f.update(check_door(n, d, c)))  # type: ignore[misc]
        x = torch.rand(int(str(found["samples"])), *_SHAPES[preset][0])
        with torch.no_grad():
            forward = min(timed(lambda n=network.eval(), x=x: n(x)) for _ in range(3))  # type: ignore[misc]
        print(
            f"{preset:14} door {door:6.2f} s   network {build:5.2f} s   {len(x)} samples, {door / forward:5.0f} passes",
            flush=True,
        )


if __name__ == "__main__":
    main()
