"""Small files that a task leaves in the run directory for pictures and tables, so that neither needs torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from ima_dist.config.schema import Config
from ima_dist.core.distributed import Interrupted
from ima_dist.data.types import DataSet, Resident
from ima_dist.evaluation.boundary import boundary_grid
from ima_dist.evaluation.extremes import extremes
from ima_dist.evaluation.noisy_images import noisy_images
from ima_dist.evaluation.stopping import Stop, stoppable
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import replacing, write_parquet


def write_names(run: RunDir, data: DataSet) -> None:
    """samples.parquet: the name and label of each sample by split and index, for splits whose samples have names."""
    splits = {"training": data.train, "validation": data.val, "test": data.test}
    pieces = [
        pa.table(
            {
                "split": pa.repeat(name, len(split)),
                "index": np.arange(len(split)),
                "name": list(split.names),
                "label": split.y.numpy(),
            }
        )
        for name, split in splits.items()
        if split.names is not None
    ]
    if pieces:
        write_parquet(run.samples_path, pa.concat_tables(pieces))


def write_boundary(run: RunDir, network: nn.Module, train: Resident) -> None:
    """examples/boundary.npz, for samples in the plane."""
    if train.shape == (2,):
        _write(run, "boundary", boundary_grid(network, *train.batch(torch.arange(len(train)))))


def write_noisy_images(
    run: RunDir, network: nn.Module, test: Resident, config: Config, data: DataSet, should_stop: Callable[[], bool]
) -> None:
    """examples/noisy.npz, for images. Raises Interrupted."""
    if len(test.shape) != 3:
        return
    try:
        with stoppable(network, should_stop):
            arrays = noisy_images(network, test, config, data.class_names)
    except Stop:
        raise Interrupted("stopped during the evaluation") from None
    _write(run, "noisy", arrays)


def write_extremes(run: RunDir, train: Resident, data: DataSet) -> None:
    """examples/extremes.npz, for methods with margins."""
    newest = run.newest_margins()
    if newest is not None and newest[1].num_rows:
        _write(run, "extremes", extremes(train, newest[1], data.class_names))


def _write(run: RunDir, name: str, arrays: dict[str, Any]) -> None:
    with replacing(run.examples_dir / f"{name}.npz") as file:
        np.savez_compressed(file, **arrays)
