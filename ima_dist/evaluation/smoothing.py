"""``--attack smoothing``: certificates of the smoothed classifier, sample by sample, and what becomes of them."""

from typing import Any

import numpy as np
import pyarrow as pa
from torch import nn

from ima_dist.attacks.smoothing import smoothed
from ima_dist.config.attacks import SMOOTHING
from ima_dist.config.schema import Config
from ima_dist.config.smoothing import sigma_of
from ima_dist.core import noise
from ima_dist.data.types import Taken
from ima_dist.results import certificates
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import read_parquet

# Passes of single samples behind a file of outcomes: an interruption costs no more.
_PASSES = 1 << 16


def samples_at_once(config: Config, batch_size: int) -> int:
    """How many samples are certified between two files."""
    return max(1, min(batch_size, _PASSES // config.smoothing.draws))


def certify_batch(network: nn.Module, batch: Taken, config: Config, epoch: int, at_once: int) -> pa.Table:
    """A row for each sample of ``batch``: index, attack, epoch, label, prediction, certified, radius, votes.

    As ``SmoothedResult``. epoch: of the network's weights. at_once: noisy samples in a pass.
    """
    indices, x, y = batch
    keys = noise.sample_keys(config.seed, 0, noise.Phase.SMOOTH, indices.to(x.device))
    sigma = sigma_of(config)
    assert sigma is not None  # the configuration was checked
    how: dict[str, Any] = {"sigma": sigma, "draws": config.smoothing.draws, "alpha": config.smoothing.alpha}
    found = smoothed(network, x, keys, at_once=at_once, **how)
    return pa.table(
        {
            "index": indices.cpu().numpy(),
            "attack": pa.repeat(SMOOTHING, len(indices)),
            "epoch": np.full(len(indices), epoch),
            "label": y.cpu().numpy(),
            "prediction": found.prediction,
            "certified": found.certified,
            "radius": found.radius,
            "votes": found.votes,
        }
    )


def save(run: RunDir, found: pa.Table, config: Config, summary: dict[str, Any]) -> None:
    """Put one evaluation's certificates and accuracies, and ``summary``, beside those of other epochs and settings.

    ``summary``: has "test_samples", the size of the test set. One worker calls it. Raises OSError.
    """
    sigma = sigma_of(config)
    assert sigma is not None
    order = "first" if found.num_rows == summary["test_samples"] else config.eval.order
    how: dict[str, Any] = {"sigma": sigma, "draws": config.smoothing.draws, "alpha": config.smoothing.alpha}
    levels = config.eval.noise if config.norm == "l2" else [factor * sigma for factor in (0.0, 0.5, 1.0, 1.5, 2.0)]
    entry = certificates.measure(found, levels, order=order, **how)
    protocol = pa.repeat(entry.protocol, found.num_rows)
    kept = [other for other in certificates.entries(run.summary()) if other.key != entry.key]
    table = found.append_column("protocol", protocol)
    if run.certificates_path.exists():
        old = read_parquet(run.certificates_path)
        keys = zip(old["epoch"].to_pylist(), old["protocol"].to_pylist(), strict=True)
        table = pa.concat_tables([old.filter(pa.array([key != entry.key for key in keys], pa.bool_())), table])
    run.write_parquet(run.certificates_path, table)
    found_entries = {"certificates": [other.model_dump(mode="json") for other in (*kept, entry)]}
    run.write_json(run.summary_path, {**run.summary(), **summary, **found_entries})
