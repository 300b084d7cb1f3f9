"""``python -m benchmarks.door``: what the check at the door costs for the presets' networks.

The data are random numbers of the right shape. Printed: seconds on the clock and of the CPU, and the time in forward
passes of a batch of the samples that the check looks at.
"""

from __future__ import annotations

import time

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
    "pathmnist": ((3, 28, 28), 9),
}


def random_data(preset: str, samples: int = 256) -> DataSet:
    """uint8 images with all classes, or points in the plane."""
    shape, classes = _SHAPES[preset]
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (samples, *shape), generator=generator, dtype=torch.uint8)
    split = Split(x if len(shape) == 3 else x / 100, torch.arange(samples) % classes)
    return DataSet(split, split, split, (0.0, 1.0) if len(shape) == 3 else None, classes)


def measure(preset: str) -> str:
    config, data = make_config(preset), random_data(preset)
    limit_threads(data)
    network = make_network(config, data)
    began, of_cpu = time.perf_counter(), time.process_time()
    samples = check_door(network, data, config)["samples"]
    seconds, of_cpu = time.perf_counter() - began, time.process_time() - of_cpu
    network.eval()
    x, passes = torch.rand(samples, *_SHAPES[preset][0]), []
    with torch.no_grad():
        for _ in range(5):
            start = time.perf_counter()
            network(x)
            passes.append(time.perf_counter() - start)
    return (
        f"{preset:14} {seconds:6.2f} s, {of_cpu:6.2f} s of CPU; {samples} samples, {seconds / min(passes):,.0f} passes"
    )


def main() -> None:
    measure("moons")  # the first backward pass of a process imports modules for a second
    for preset in PRESETS:
        print(measure(preset), flush=True)


if __name__ == "__main__":
    main()
