"""Stored margins compared with an attack that looks for the nearest boundary, without a radius."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from ima_dist.attacks import minimal
from ima_dist.attacks.common import Box
from ima_dist.config.errors import ConfigError
from ima_dist.config.schema import Config
from ima_dist.core import distributed, noise
from ima_dist.core.distributed import Interrupted
from ima_dist.data.augment import Augmentation
from ima_dist.data.choosing import to_attack
from ima_dist.data.types import Samples, Split
from ima_dist.evaluation.stopping import Stop, stoppable
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import read_parquet

# Of FMN: as long as FAB needs for a twentieth of its distances, to the same distances (benchmarks/minimal.py).
_STEPS, _STARTS = 16, 3


def boundary_distance(network: nn.Module, x: Tensor, y: Tensor, keys: Tensor, config: Config, box: Box) -> Tensor:
    """Distance (B,) from x (B, ...) to the nearest misclassified point that ``attacks.minimal`` finds.

    Infinite if it finds none; 0 for samples that are misclassified when clean. keys: one per sample, (B,) int64.
    """

    def start(number: int) -> Tensor:
        return noise.start(noise.derived(keys, number), x, config.eps_max, config.norm)

    found = minimal(network, x, y, norm=config.norm, steps=_STEPS, starts=_STARTS, start=start, aimless=False, box=box)
    return found.distance


def to_audit(train: Split, count: int, config: Config) -> torch.Tensor:
    """Ascending indices of up to ``count`` training samples: as ``to_attack``, or drawn by the seed (order "first")."""
    if config.eval.order == "stratified":
        return to_attack(train, count, "stratified")
    # The first samples of a training set say little, so earlier versions drew some.
    drawn = torch.randperm(len(train), generator=torch.Generator().manual_seed(config.seed))
    return drawn[:count].sort().values


def audit(
    network: nn.Module,
    train: Samples,
    margins: pa.Table | None,
    config: Config,
    *,
    epoch: int,
    samples: torch.Tensor,
    augment: Augmentation | None,
    batch_size: int,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> pa.Table | None:
    """Stored margin and audited distance of training samples.

    Collective. Returns the columns index, label, margin, distance (``boundary_distance``) and correct where ``margins``
    are given, elsewhere None. Raises Interrupted if a worker was asked to stop.

    Args:
        network: with the weights after ``epoch`` epochs.
        margins: at least of ``samples``, with the columns of the margin shards, by index; one worker needs them.
        samples: ascending indices (M,) of the training samples to audit, on the CPU.
        augment: these are margins of the samples as it made them in that epoch.
    """
    mine = distributed.share_of_batch(samples)
    labels, distances = [], []
    stopped = False
    try:
        parts = mine.split(batch_size) if len(mine) else ()
        with stoppable(network, should_stop), closing(train.batches(parts)) as batches:
            for indices, x, y in batches:
                if augment is not None:
                    x = augment(x, indices, config.seed, epoch - 1)
                keys = noise.sample_keys(config.seed, epoch, noise.Phase.EVALUATE, indices.to(y.device))
                distances.append(boundary_distance(network, x, y, keys, config, train.box).double().cpu())
                labels.append(y.cpu())
                on_progress(sum(map(len, labels)), len(mine))
    except Stop:
        stopped = True
    if any(distributed.gather_objects(stopped)):
        raise Interrupted("stopped during the audit")
    share = [mine, *(torch.cat(found) if found else torch.zeros(0) for found in (labels, distances))]
    index, label, distance = (
        np.concatenate([part.numpy() for part in parts])
        for parts in zip(*distributed.gather_objects(share), strict=True)
    )
    if margins is None:
        return None
    at = np.searchsorted(margins["index"].to_numpy(), index)
    return pa.table(
        {
            "index": index,
            "label": label,
            "margin": margins["margin"].to_numpy()[at].astype(np.float64),
            "distance": distance,
            "correct": distance > 0,
        }
    )


def weaker_path(run: RunDir, epoch: int, samples: int) -> Path:
    """Where an audit is kept if audit.parquet holds a stronger one."""
    return run.audits_dir / f"epoch={epoch:04d}-samples={samples}.parquet"


def keep(run: RunDir, found: pa.Table) -> None:
    """Write an audit, with the column epoch, beside the others of the run. Raises OSError.

    audit.parquet holds that of the newest epoch, and of these the one of most samples.
    """
    own, strongest = weaker_path(run, *_strength(found)), found
    if run.audit_path.exists():
        try:
            before = read_parquet(run.audit_path)
        except ConfigError:  # damaged
            before = found
        strongest = max(found, before, key=_strength)
        if _strength(before) != _strength(found):
            weaker = found if strongest is before else before
            run.write_parquet(weaker_path(run, *_strength(weaker)), weaker)
    if strongest is found:
        run.write_parquet(run.audit_path, found)
        run.remove(own)


def _strength(table: pa.Table) -> tuple[int, int]:
    """Epoch and number of samples."""
    return table["epoch"][0].as_py() if "epoch" in table.column_names and table.num_rows else 0, table.num_rows
