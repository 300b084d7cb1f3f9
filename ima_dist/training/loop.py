"""The training loop of one worker (paper, Algorithms 1 and 2, over all epochs)."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel

from ima_dist.attacks import worst
from ima_dist.attacks.common import attack_mode
from ima_dist.config.schema import Config
from ima_dist.core import distributed, noise
from ima_dist.core.distributed import Interrupted
from ima_dist.core.noise import Phase
from ima_dist.data.augment import augment
from ima_dist.data.order import batches
from ima_dist.data.types import DataSet, Resident
from ima_dist.margins.store import MarginStore
from ima_dist.methods import Attacked, Batch, make_method
from ima_dist.rundir.directory import RunDir
from ima_dist.training import checkpoint
from ima_dist.training.amp import autocast, scaler
from ima_dist.training.equilibrium import Equilibrium
from ima_dist.training.network import DTYPES, learning_rate, make_network, make_optimizer
from ima_dist.training.reporter import Reporter

HISTOGRAM_BINS = 50


class NumericalError(Exception):
    """Loss or gradient became NaN or infinite. The last checkpoint is kept."""


class Training:
    """One worker's part of a run: build, resume from the newest checkpoint, train to the end.

    All workers build and call it together. ``should_stop`` is asked by worker 0 only.
    """

    def __init__(
        self,
        config: Config,
        run: RunDir,
        data: DataSet,
        device: torch.device,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.config, self.run, self.device = config, run, device
        self.dtype = DTYPES[config.dtype]
        self.rank, self.world = distributed.rank(), distributed.world_size()
        self.train = Resident(data.train, device, self.dtype, data.box)
        self.val = Resident(data.val, device, self.dtype, data.box)
        self.labels = data.train.y
        self.augment, self.box = data.augment, data.box
        network = make_network(config, data)
        if config.model.sync_batch_norm:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        self.network = network.to(device)
        self.scaler = scaler(config.autocast, device)
        self.running = _running_statistics(self.network)
        self.optimizer = make_optimizer(config, self.network)
        self.method = make_method(config, data.box)
        #: The network as attacks meet it in training.
        self.view = autocast(self.network, config.autocast if self.method.attack_in_half else "none")
        self.store: MarginStore | None = None
        if self.method.has_margins:
            self.store = MarginStore(len(self.train), config.expansion, dtype=self.dtype, device=device)
        self.equilibrium: Equilibrium | None = None
        if self.method.on_boundary:
            self.equilibrium = Equilibrium(
                self.labels, data.num_classes, self.train.shape, config.seed, self.dtype, device
            )
        self.position = checkpoint.Position()
        self.steps = -(-len(self.train) // config.batch_size)
        # loss, clean samples right, clean samples seen, noisy samples, evaluations
        self.sums = torch.zeros(5, dtype=torch.float64, device=device)
        self.seconds = {"train": 0.0, "margin": 0.0}
        self.history: list[dict[str, Any]] = []
        self.equilibria: list[dict[str, Any]] = []
        self.warnings: list[str] = []
        self.identity = checkpoint.Identity(config.fingerprint(), data.digest())
        self._same_data_everywhere()
        self._resume()
        self.ddp = self.network if self.world == 1 else _data_parallel(self.network, device)
        self.ddp = autocast(self.ddp, config.autocast)
        self.reporter = Reporter(run, config, self.steps, len(self.train), should_stop)

    # ---- the whole run

    def fit(self) -> nn.Module:
        """Train until the configured epoch; returns the bare network.

        Raises:
            Interrupted: a stop was asked for; a checkpoint holds everything done so far.
            NumericalError: loss or gradient is not finite; all workers raise in the same step.
            LeaseLost: another process has become the run's writer; nothing was written since.
        """
        while self.position.epoch < self.config.epochs:
            self._train_epoch()
            if self.store is not None:
                if self.method.margin_pass:
                    self._margin_pass()
                self.store.reduce()
            self._finish_epoch()
        if self.rank == 0:
            checkpoint.clear_partial(self.run)
        return self.network

    def _train_epoch(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.position.epoch)
        self.network.train()
        remaining = batches(
            len(self.train), self.config.batch_size, self.config.seed, self.position.epoch, self.position.step
        )
        clock = time.perf_counter()
        for indices in remaining:
            self._step(indices)
            self.position.step += 1
            if self.config.checkpoint_every and self.position.step % self.config.checkpoint_every == 0:
                clock = self._lap("train", clock)
                self._save()
            if self.reporter.due():
                clock = self._lap("train", clock)
                self._report("training")
        self._lap("train", clock)

    def _step(self, global_batch: Tensor) -> None:
        """One update. The gradient is that of the global batch, whatever its size and however it is split."""
        indices = distributed.share_of_batch(global_batch).to(self.device, non_blocking=True)
        self.optimizer.zero_grad(set_to_none=True)
        if len(indices):
            batch = self._batch(indices, Phase.TRAIN)
            attacked = self.method.attack(self.view, batch)
            logits = self.ddp(attacked.inputs)
            rows = self.method.loss(logits, batch, attacked)
            loss, sources = rows.sum(), indices[attacked.noisy_of]
            if not attacked.noisy_only:
                sources = torch.cat([indices, sources])
            correct = logits[: len(indices)].argmax(1) == batch.y if attacked.correct is None else attacked.correct
            self._count(loss.detach(), correct.sum(), len(indices), len(attacked.noisy_of), attacked.evaluations)
            if attacked.proposals is not None:
                self._propose(batch, attacked)
        else:
            # The last batch may be smaller than the number of workers; DDP still needs a backward pass here.
            if self.store is not None and not self.store.replicated:
                self.store.lookup(indices)
            rows, sources = torch.zeros(0, device=self.device), indices
            loss = self._empty_loss()
        # DDP averages over the workers; the loss is summed over this worker's share.
        self.scaler.scale(loss * (self.world / len(global_batch))).backward()
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        if not torch.isfinite(torch.nn.utils.get_total_norm(gradients)):
            self._not_finite(sources, rows, gradients)
        # Leaves the network as it is if the gradient was too large for the scale.
        self.scaler.step(self.optimizer)
        self.scaler.update()
        # Each worker's batch norm has seen its share alone. All attack the same network, so they agree on one.
        distributed.average_(self.running)

    def _empty_loss(self) -> Tensor:
        """Zero, from a forward pass through every parameter, on behalf of no sample."""
        if self.config.model.sync_batch_norm:
            # The other workers' layers wait for this one's, which take an empty batch.
            x, _ = self.train.batch(torch.zeros(0, dtype=torch.int64, device=self.device))
            return 0.0 * self.ddp(x).sum()
        x, _ = self.train.batch(torch.zeros(1, dtype=torch.int64, device=self.device))
        # Batch norm refuses a single sample in training mode, and must not count this one.
        self.network.eval()
        loss = 0.0 * self.ddp(x).sum()
        self.network.train()
        return loss

    def _samples(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """x and y of training samples. An image and its crops share one index and one margin (appendix D.2)."""
        x, y = self.train.batch(indices)
        return augment(x, indices, self.config.seed, self.position.epoch) if self.augment else x, y

    def _batch(self, indices: Tensor, phase: Phase) -> Batch:
        x, y = self._samples(indices)
        margins = None if self.store is None else self.store.lookup(indices)
        return Batch(x, y, indices, margins, self.config.seed, self.position.epoch, phase)

    def _margin_pass(self) -> None:
        """Algorithm 2 for this worker's block of samples, in batches that suit the device."""
        assert self.store is not None
        clock = time.perf_counter()
        size = attack_batch_size(self.config.batch_size, self.train.shape)
        first, last = self.store.first, self.store.last
        done = self.store.proposed.cpu()
        # All workers take the same number of turns, so that they can agree on a stop between them.
        largest = -(-len(self.train) // self.world)
        turns = -(-largest // size)
        for turn in range(turns):
            part = torch.arange(first + turn * size, min(first + (turn + 1) * size, last))
            part = part[~done[part - first]] if len(part) else part
            if len(part):
                self._estimate(part.to(self.device))
            if turn + 1 < turns:
                clock = self._lap("margin", clock)
                self._report("margins")
        self._lap("margin", clock)

    def _estimate(self, indices: Tensor) -> None:
        assert self.store is not None
        x, y = self._samples(indices)
        margins = self.store.shard[indices - self.store.first]
        batch = Batch(x, y, indices, margins, self.config.seed, self.position.epoch, Phase.MARGIN)
        attacked = self.method.estimate(self.view, batch)
        self._propose(batch, attacked)
        self.sums[4] += attacked.evaluations

    def _propose(self, batch: Batch, attacked: Attacked) -> None:
        assert self.store is not None
        assert attacked.proposals is not None
        new = attacked.proposals
        self.store.propose(new.indices, new.values, correct=new.correct, crossed=new.crossed)
        if self.equilibrium is not None:
            self.equilibrium.add(self.view, batch, attacked)

    # ---- end of an epoch

    def _finish_epoch(self) -> None:
        distributed.together(self.run.check_lease)
        totals = self._totals()
        seen = max(totals["seen"], 1.0)
        seconds = self.seconds["train"] + self.seconds["margin"]
        row: dict[str, Any] = {
            "epoch": self.position.epoch + 1,
            "train_loss": totals["loss"] / seen,
            "train_accuracy": totals["correct"] / seen,
            "val_accuracy": self._accuracy(self.val),
            "noisy_samples": int(totals["noisy"]),
            "evaluations": int(totals["evaluations"]),
            "train_seconds": self.seconds["train"],
            "margin_seconds": self.seconds["margin"] if self.store is not None else None,
            "samples_per_second": seen / max(seconds, 1e-9),
        }
        if self.config.eval.val_noise is not None:
            row["val_robust_accuracy"] = self._robust_accuracy(self.config.eval.val_noise)
        if self.store is not None:
            row["margin_mean"] = self.store.mean()
            # A margin that has just been clipped to ε_max may differ from it by rounding.
            row["share_at_max"] = self.store.share_at(self.config.eps_max * (1 - 1e-6))
            row["margin_quantiles"] = self.store.quantiles(self.config.eps_max)
            row["margin_histogram"] = self.store.histogram(HISTOGRAM_BINS, self.config.eps_max).tolist()
        self.history.append(row)
        if self.rank == 0:
            self.run.write_history(self.history)
        if self.equilibrium is not None:
            self.equilibria += self.equilibrium.rows(self.position.epoch + 1)
            self.equilibrium.clear()
            if self.rank == 0:
                self.run.write_equilibrium(self.equilibria)
        self.position = checkpoint.Position(epoch=self.position.epoch + 1)
        self.sums.zero_()
        self.seconds = {"train": 0.0, "margin": 0.0}
        self._save()
        self._report("training")

    def _accuracy(self, data: Resident) -> float | None:
        """Share of correctly classified samples, over all workers; None for an empty split."""
        if not len(data):
            return None
        right = torch.zeros((), dtype=torch.int64, device=self.device)
        first, last = distributed.block(len(data), self.rank, self.world)
        with torch.no_grad(), attack_mode(self.network):
            for part in torch.arange(first, last, device=self.device).split(
                attack_batch_size(self.config.batch_size, data.shape)
            ):
                x, y = data.batch(part)
                right += (self.network(x).argmax(1) == y).sum()
        return int(distributed.all_reduce(right)) / len(data)

    def _robust_accuracy(self, eps: float) -> float | None:
        """Share of the first validation samples that a short ``worst`` leaves right; None for an empty split."""
        settings = self.config.eval
        total = min(settings.val_samples, len(self.val))
        if not total:
            return None
        right = torch.zeros((), dtype=torch.int64, device=self.device)
        first, last = distributed.block(total, self.rank, self.world)
        for part in torch.arange(first, last, device=self.device).split(
            attack_batch_size(self.config.batch_size, self.val.shape)
        ):
            x, y = self.val.batch(part)
            keys = noise.sample_keys(self.config.seed, 0, noise.Phase.EVALUATE, part)
            predictions, _ = worst(
                self.network,
                x,
                y,
                [eps],
                norm=self.config.norm,
                steps=settings.val_steps,
                step_scale=settings.step_scale,
                rivals=0,
                start=lambda eps, keys=keys, x=x: noise.start(keys, x, eps, self.config.norm),  # type: ignore[misc]
                box=self.box,
            )
            right += (predictions[0] == y).sum()
        return int(distributed.all_reduce(right)) / total

    # ---- counting, reporting, stopping

    def _count(self, loss: Tensor, correct: Tensor, seen: int, noisy: int, evaluations: int) -> None:
        # Stays on the device; read only when something is reported.
        self.sums[0] += loss
        self.sums[1] += correct
        self.sums[2:] += torch.tensor([seen, noisy, evaluations], dtype=torch.float64, device=self.device)

    def _totals(self) -> dict[str, float]:
        names = ("loss", "correct", "seen", "noisy", "evaluations")
        return dict(zip(names, distributed.all_reduce(self.sums.clone()).tolist(), strict=True))

    def _lap(self, what: str, since: float) -> float:
        now = time.perf_counter()
        self.seconds[what] += now - since
        return now

    def _report(self, stage: str) -> None:
        """Show progress; if the run has been asked to stop, checkpoint and raise Interrupted."""
        distributed.together(self.run.check_lease)
        totals = self._totals()
        if self.rank == 0:
            self.reporter.write(stage, self.position, totals, self.history[-1] if self.history else {})
        if self.reporter.stop_agreed(self.device):
            if self.position.step:
                self._save()
            raise Interrupted(f"stopped after epoch {self.position.epoch}, step {self.position.step}")

    def _not_finite(self, sources: Tensor, rows: Tensor, gradients: list[Tensor]) -> None:
        """The gradient's norm is not: raise NumericalError, unless that is how loss scaling finds its scale."""
        bad = distributed.all_reduce((~torch.isfinite(rows.detach())).sum())
        # The scaler looks at single entries: it would take a step whose norm alone is infinite.
        seen = not all(bool(torch.isfinite(g).all()) for g in gradients)
        if not self.scaler.is_enabled() or bad or not seen or self.scaler.get_scale() <= 1:
            self._fail(sources, rows)

    def _fail(self, sources: Tensor, rows: Tensor) -> None:
        bad = sources[~torch.isfinite(rows.detach())].tolist()
        lists = distributed.gather_objects(sorted(set(bad)))
        where = [f"worker {r}: samples {', '.join(map(str, b[:10]))}" for r, b in enumerate(lists) if b]
        what = "The loss" if where else "The gradient"
        raise NumericalError(
            f"{what} became NaN or infinite in epoch {self.position.epoch + 1}, step {self.position.step + 1}"
            + (f" ({'; '.join(where)})" if where else " (every sample's loss is still finite)")
            + ". The last good checkpoint is kept; a smaller --optimizer.lr is the usual remedy"
            + (", or --autocast none." if self.config.autocast == "float16" else ".")
        )

    # ---- checkpoints

    def _save(self) -> None:
        distributed.together(self.run.check_lease)
        totals = self._totals()
        self.position.counters = {**totals, **{f"{k}_seconds": v for k, v in self.seconds.items()}}
        checkpoint.save(
            self.run,
            self.position,
            self.identity,
            self.network,
            self.optimizer,
            self.store,
            self.labels,
            self.equilibrium.state() if self.equilibrium is not None and self.position.step else {},
            self.scaler.state_dict(),
        )

    def _newest(self) -> tuple[checkpoint.Checkpoint | None, list[str], str | None]:
        try:
            return *checkpoint.newest(self.run, self.identity), None
        except checkpoint.Damaged as error:
            return None, [], str(error)

    def _same_data_everywhere(self) -> None:
        digests = distributed.gather_objects(self.identity.data)
        other = [str(rank) for rank, digest in enumerate(digests) if digest != digests[0]]
        if other:
            raise checkpoint.Damaged(
                f"Worker {', '.join(other)} has loaded other data than worker 0: give all nodes the same files"
            )

    def _resume(self) -> None:
        """Continue from the newest whole checkpoint, if there is one."""
        if self.rank == 0:
            checkpoint.clear_unfinished(self.run)
        found, self.warnings, error = distributed.share_object(self._newest() if self.rank == 0 else None)
        if error is not None:
            raise checkpoint.Damaged(error)
        if found is None:
            return
        self.position = found.position
        checkpoint.restore(found, self.network, self.optimizer)
        if found.scaler:
            self.scaler.load_state_dict(found.scaler)
        if self.store is not None:
            if self.position.epoch:
                self.store = MarginStore.load(found.margins, device=self.device)
            checkpoint.restore_pending(found, self.store)
        if self.equilibrium is not None:
            gathered = checkpoint.gathered(found)
            if gathered:
                self.equilibrium.restore(gathered)
            self.equilibria = [row for row in self.run.read_equilibrium() if row["epoch"] <= self.position.epoch]
        self.history = [row for row in self.run.read_history() if row["epoch"] <= self.position.epoch]
        counters = self.position.counters
        if self.position.step:
            names = ("loss", "correct", "seen", "noisy", "evaluations")
            if self.rank == 0:
                self.sums += torch.tensor([counters[n] for n in names], dtype=torch.float64, device=self.device)
            self.seconds = {k: counters[f"{k}_seconds"] for k in self.seconds}


def _running_statistics(network: nn.Module) -> list[Tensor]:
    """Running means and variances that each worker would otherwise have of its own."""
    layers = [m for m in network.modules() if isinstance(m, _NormBase) and not isinstance(m, nn.SyncBatchNorm)]
    return [s for m in layers for s in (m.running_mean, m.running_var) if s is not None]


def _data_parallel(network: nn.Module, device: torch.device) -> DistributedDataParallel:
    # Buffers stay local: a broadcast would change them between two forward passes of one step.
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {name: False}
    devices = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=devices, **options)


def attack_batch_size(batch_size: int, shape: tuple[int, ...]) -> int:
    """Samples in a batch that is only attacked or classified, never trained on.

    Four training batches need less memory than one training step with its clean and noisy samples and
    their graph of activations and parameters; tiny samples go by the ten thousand, because a small
    network's time is spent launching operations. It depends on nothing else, so that a resumed run cuts
    the same batches.
    """
    numel = 1
    for side in shape:
        numel *= side
    return max(4 * batch_size, (1 << 17) // max(numel, 1))
