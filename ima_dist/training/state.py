"""All that changes while a run trains, and so all that a checkpoint holds."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ima_dist.config.schema import Config
from ima_dist.data.types import DataSet
from ima_dist.margins.store import MarginStore
from ima_dist.methods import Method
from ima_dist.rundir.directory import HISTOGRAM_BINS, RunDir
from ima_dist.training.average import averaged
from ima_dist.training.counters import Counters
from ima_dist.training.equilibrium import Equilibrium
from ima_dist.training.network import DTYPES, make_network, make_optimizer, scaler


@dataclass
class Position:
    """Where a run is. epoch: complete epochs. step: global batches done in the next one."""

    epoch: int = 0
    step: int = 0

    @property
    def name(self) -> str:
        return f"epoch={self.epoch:04d}" + (f"-step={self.step:06d}" if self.step else "")


@dataclass
class State:
    """One worker's part of the state of a run; ``checkpoint.save`` and ``checkpoint.restore`` take it whole.

    Attributes:
        network: the bare network, on its device.
        average: of the network, with ``--ema``.
        scaler: loss scaling; disabled unless the run is in float16.
        counters: sums over the unfinished epoch.
        labels: (N,) of the training set, which are saved beside the margins.
        store: for methods with margins. equilibrium: for methods whose noisy samples lie on the boundary.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    counters: Counters
    labels: Tensor
    store: MarginStore | None = None
    equilibrium: Equilibrium | None = None
    average: AveragedModel | None = None
    position: Position = field(default_factory=Position)

    @property
    def result(self) -> nn.Module:
        """The network that is validated, selected, evaluated and exported."""
        return self.network if self.average is None else self.average.module

    def begin_epoch(self, epoch: int) -> None:
        """Stand at the beginning of the epoch after ``epoch`` complete ones."""
        self.position = Position(epoch)
        self.counters.clear()
        if self.equilibrium is not None:
            self.equilibrium.clear()

    def epoch_row(
        self, epoch: int, accuracies: dict[str, float | None], eps_max: float, largest: float | None
    ) -> dict[str, Any]:
        """The row of history.parquet for the epoch. Collective.

        accuracies: of the validation set, by column. largest: ``Method.largest_margin``.
        """
        totals, seconds, store = self.counters.totals(), self.counters.seconds, self.store
        seen = max(totals["seen"], 1.0)
        row: dict[str, Any] = {
            "epoch": epoch,
            "train_loss": totals["loss"] / seen,
            "train_accuracy": totals["correct"] / seen,
            "val_accuracy": None,
            "noisy_samples": int(totals["noisy"]),
            "evaluations": int(totals["evaluations"]),
            **{name: int(total) for name, total in totals.items() if name.startswith("met_")},
            "train_seconds": seconds["train"],
            "margin_seconds": seconds["margin"] if store is not None else None,
            "samples_per_second": seen / max(seconds["train"] + seconds["margin"], 1e-9),
            **accuracies,
        }
        if self.scaler.is_enabled():
            row["skipped_steps"] = int(totals["skipped"])
        if store is not None:
            bounded = largest is not None
            largest = max(eps_max, store.largest()) if largest is None else largest
            bins = math.ceil(HISTOGRAM_BINS * largest / eps_max - 1e-6)
            row |= {
                "margin_mean": store.mean(),
                # A margin that has just been clipped to ε_max may differ from it by rounding.
                "share_at_max": store.share_at(eps_max * (1 - 1e-6)) if bounded else None,
                "margin_quantiles": store.quantiles(largest),
                "margin_histogram": store.histogram(bins, eps_max * (bins / HISTOGRAM_BINS)).tolist(),
            }
            if not bounded:
                row["margins_grown"] = store.uncrossed()
        return row


def new_state(config: Config, data: DataSet, method: Method, device: torch.device, run: RunDir) -> State:
    """The state in which a run of this configuration begins."""
    network = make_network(config, data, run)
    if config.model.sync_batch_norm:
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    network = network.to(device)
    labels, dtype = data.train.y, DTYPES[config.dtype]
    state = State(network, make_optimizer(config, network), scaler(config.autocast, device), Counters(device), labels)
    if config.ema:
        state.average = averaged(network, config.ema)
    if method.has_margins:
        state.store = MarginStore(len(labels), method.first_margin, dtype=dtype, device=device)
    if method.on_boundary:
        shape = data.train.shape
        state.equilibrium = Equilibrium(labels, data.num_classes, shape, config.seed, dtype, device)
    return state
