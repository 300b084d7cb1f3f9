"""The training loop of one worker (paper, Algorithms 1 and 2, over all epochs)."""

import itertools
import sys
from collections.abc import Callable
from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn

from ima_dist.attacks import shapes
from ima_dist.attacks.common import evaluation_mode, misclassified
from ima_dist.attacks.compiled import Compiled
from ima_dist.attacks.counting import Counted
from ima_dist.attacks.memory import most_at_once
from ima_dist.config.schema import Config
from ima_dist.core import distributed
from ima_dist.core.distributed import Interrupted
from ima_dist.core.noise import Phase
from ima_dist.data.augment import augmentation
from ima_dist.data.batch_sizes import attack_batch_size
from ima_dist.data.choosing import to_attack
from ima_dist.data.order import batches
from ima_dist.data.place import place
from ima_dist.data.types import DataSet, Taken
from ima_dist.methods import Attacked, Batch, make_method
from ima_dist.results.overfitting import overfitting_doubts, watched_noise
from ima_dist.rundir.directory import RunDir
from ima_dist.training import checkpoint, validation
from ima_dist.training.answers import write_answers
from ima_dist.training.class_weights import class_weights
from ima_dist.training.early_stop import ends_early
from ima_dist.training.graphs import Graphs
from ima_dist.training.habits import StepGenerators, agree, moving_buffers
from ima_dist.training.network import DTYPES, autocast, data_parallel, learning_rate, use_tf32
from ima_dist.training.numerics import check_gradient
from ima_dist.training.profile import StepProfiler
from ima_dist.training.pruning import clear_partial
from ima_dist.training.reporter import Reporter
from ima_dist.training.resume import check_same_data, resume
from ima_dist.training.state import new_state
from ima_dist.training.weight_perturbation import Perturbation


class Training:
    """One worker's part of a run. All workers build one and call ``fit`` together.

    The constructor neither communicates nor touches the disk. ``should_stop`` is asked by worker 0 only.
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
        self.identity = checkpoint.Identity(config.fingerprint(), data.digest())
        placed = place((data.train, data.val), config.data.place, device, DTYPES[config.dtype], data.box)
        self.train, self.val = placed.samples
        #: Indices of the validation samples that are attacked after each epoch.
        self.val_attacked = to_attack(data.val, config.eval.val_samples, config.eval.order)
        self.augment = augmentation(config.data.augment, data)
        self.method = make_method(config, data.box)
        self.graphs = Graphs() if config.cuda_graphs else None
        if self.graphs is not None:
            self.method.call = self.graphs
        weights = class_weights(config, data)
        #: (C,) the weight of each class in the loss, or None.
        self.class_weights = None if weights is None else weights.to(device, DTYPES[config.dtype])
        self.state = new_state(config, data, self.method, device, run)
        self.network = self.state.network
        attacked = autocast(self.network, config.autocast if self.method.attack_in_half else "none")
        self.compiled = Compiled(attacked) if config.compile else None
        #: The network as attacks in training see it.
        self.view = Counted(attacked if self.compiled is None else self.compiled, self.state.counters.met)
        #: The network as its parameters are trained; on several workers ``begin`` wraps it to average their gradients.
        self.trained = autocast(self.network, config.autocast)
        #: What the network does in training mode; ``begin`` finds it out where there are several workers.
        self.moving: tuple[str, ...] = ()
        self.generators = StepGenerators(config.seed, device)
        self.perturbation = Perturbation(self.network, config.awp)
        steps = -(-len(self.train) // config.batch_size)
        notes = [placed.sentence] if placed.sentence else []
        self.reporter = Reporter(run, config, steps, len(self.train), should_stop, notes)
        self.history: list[dict[str, Any]] = []
        self.equilibria: list[dict[str, Any]] = []
        self.warnings: list[str] = []
        self.profiler = StepProfiler(run, None)
        #: The most samples that this worker attacks at once; ``begin`` measures it.
        self.at_once = sys.maxsize

    # ---- the whole run

    def fit(self) -> nn.Module:
        """Train until the configured epoch, or until it ends early; returns the bare network, or its average.

        Raises:
            Damaged: no checkpoint can be used, or the workers have loaded different data.
            Interrupted: a stop was asked for; a checkpoint holds everything done so far.
            NumericalError: loss or gradient is not finite; all workers raise in the same step.
            LeaseLost: another process has become the run's writer; nothing was written since.
        """
        self.begin()
        if distributed.rank() == 0:
            # The first report may take minutes: it comes after some steps.
            last = self.history[-1] if self.history else {}
            self.reporter.write("training", self.state.position, {"seen": 0.0}, last, self.warnings)
        with closing(StepProfiler(self.run, self.config.profile)) as self.profiler:
            while self.state.position.epoch < self.config.epochs:
                if ends_early(self.run, self.identity, self.state, self.history, self.config):
                    break
                self._train_epoch()
                if self.state.store is not None:
                    if self.method.margin_pass:
                        self._margin_pass()
                    self.state.store.reduce()
                self._finish_epoch()
        if distributed.rank() == 0:
            clear_partial(self.run)
        return self.state.result

    def begin(self) -> None:
        """Continue from the newest checkpoint, if there is one, and join the workers' networks. Collective.

        Called by ``fit``, and before single steps on several workers.
        """
        check_same_data(self.identity.data)
        self.history, self.equilibria, self.warnings = resume(self.run, self.identity, self.state)
        if self.state.average is not None:
            position = self.state.position
            self.state.average.n_averaged.fill_(position.epoch * self.reporter.steps + position.step)
        few = self.train.batch(torch.arange(min(8, len(self.train)), device=self.device))
        if distributed.world_size() > 1:
            self.moving = moving_buffers(self.network, *few, self.config.seed)
            # No trial tells whether a network of the user's uses all parameters in every step.
            ours = self.config.model.factory.startswith("ima_dist.models:")
            joined = data_parallel(self.network, self.device, find_unused=not ours)
            self.trained = autocast(joined, self.config.autocast)
        with torch.no_grad(), evaluation_mode(self.network):
            # Not every method's attack begins with a pass in which operations can be counted.
            shapes.passed(self.view.network, few[0])
        use_tf32(self.config.tf32)
        self.at_once = most_at_once(self.network, *few)

    # ---- an epoch (Algorithm 1)

    def _train_epoch(self) -> None:
        config, position, counters = self.config, self.state.position, self.state.counters
        use_tf32(config.tf32)
        counters.start_clock()
        order = batches(len(self.train), config.batch_size, config.seed, position.epoch, position.step)
        order, ahead = itertools.tee(order)
        with closing(self.train.batches(map(distributed.share_of_batch, ahead))) as shares:
            for global_batch, share in zip(order, shares, strict=True):
                self._step(global_batch, share)
                position.step += 1
                self.profiler.step()
                if config.checkpoint_every and position.step % config.checkpoint_every == 0:
                    counters.lap("train")
                    checkpoint.save(self.run, self.identity, self.state)
                if self.reporter.due():
                    counters.lap("train")
                    self._report("training")
        counters.lap("train")

    def _step(self, global_batch: Tensor, share: Taken | None = None) -> None:
        """One update. The gradient is that of the global batch, whatever its size and however it is split.

        share: this worker's, unless it is to be taken now.
        """
        state = self.state
        share = share or next(self.train.batches([distributed.share_of_batch(global_batch)]))
        epoch, step = state.position.epoch, state.position.step
        self.generators.start(epoch, step)
        rate = learning_rate(self.config, epoch, step, self.reporter.steps)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.zero_grad(set_to_none=True)
        loss, losses, samples = self._loss(share) if len(share.indices) else self._no_loss(share)
        # DDP averages over the workers; the loss is summed over this worker's share.
        state.scaler.scale(loss * (distributed.world_size() / len(global_batch))).backward()
        self.perturbation.undo()
        state.scaler.unscale_(state.optimizer)
        if not check_gradient(self.network, state.scaler, losses, samples, (epoch + 1, step + 1)):
            state.counters.add_skipped_step()
        elif self.config.optimizer.clip is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.optimizer.clip)
        # Leaves the network as it is if the gradient was too large for the scale.
        state.scaler.step(state.optimizer)
        state.scaler.update()
        # Each worker's statistics are of its share, which may be empty. All attack the same network, so they agree.
        if self.moving:
            all_have_samples = len(global_batch) >= distributed.world_size()
            agree(self.network, self.moving, len(losses), all_have_samples)
        if state.average is not None:
            state.average.update_parameters(self.network)

    def _loss(self, share: Taken) -> tuple[Tensor, Tensor, Tensor]:
        """Summed loss () of this worker's samples, the loss (K,) of each row behind it, and the rows' samples (K,)."""
        store, indices = self.state.store, share.indices
        batch = self._batch(share, None if store is None else store.lookup(indices), Phase.TRAIN)
        attacked = self.method.attack(self.view, batch)
        if attacked.proposals is not None:
            # Before the training pass, which moves running statistics: the points were found without that.
            self._propose(batch, attacked)

        def rows() -> tuple[Tensor, Tensor]:
            """Logits and losses of the samples that are trained on."""
            logits = self.trained(attacked.inputs)
            losses = self.method.loss(logits, batch, attacked)
            if self.class_weights is not None:
                losses = losses * self.class_weights[attacked.labels(batch.y)]
            return logits, losses

        ascended = self.perturbation.ascend(rows, self.state.scaler)
        logits, losses = rows()
        loss, noisy, correct = losses.sum(), attacked.noisy_of, attacked.correct
        if correct is None:
            logits = logits if ascended is None else ascended
            correct = ~misclassified(logits[: len(indices)], batch.y)
        self.state.counters.add(
            loss.detach(), correct.sum(), seen=len(indices), noisy=len(noisy), evaluations=attacked.evaluations
        )
        return loss, losses, indices[noisy] if attacked.noisy_only else torch.cat([indices, indices[noisy]])

    def _no_loss(self, share: Taken) -> tuple[Tensor, Tensor, Tensor]:
        """As ``_loss``, for a worker that has no sample in this batch: zero, by way of every parameter.

        The last batch may be smaller than the number of workers, and DDP needs a backward pass on each of them.
        """
        if self.state.store is not None and not self.state.store.replicated:
            self.state.store.lookup(share.indices)  # collective
        none = torch.zeros(0, device=self.device)
        if self.config.model.sync_batch_norm:
            # The other workers' layers wait for this one's, which take an empty batch.
            self.perturbation.ascend(lambda: (none, 0.0 * self.trained(share.x)), self.state.scaler)
            return 0.0 * self.trained(share.x).sum(), none, share.indices
        x, _ = self.train.batch(torch.zeros(1, dtype=torch.int64, device=self.device))
        # Batch norm refuses a single sample in training mode, and must not count this one.
        with evaluation_mode(self.network):
            self.perturbation.ascend(lambda: (none, 0.0 * self.trained(x)), self.state.scaler)
            loss = 0.0 * self.trained(x).sum()
        return loss, none, share.indices

    def _batch(self, taken: Taken, margins: Tensor | None, phase: Phase) -> Batch:
        """Training samples. An image and its crops share one index and one margin (appendix D.2)."""
        seed, epoch = self.config.seed, self.state.position.epoch
        indices, x, y = taken
        if self.augment is not None:
            x = self.augment(x, indices, seed, epoch)
        return Batch(x, y, indices, margins, seed, epoch, phase)

    # ---- after the steps of an epoch (Algorithm 2)

    def _margin_pass(self) -> None:
        """Propose margins for this worker's block of samples, in batches that suit the device."""
        store, counters = self.state.store, self.state.counters
        assert store is not None
        counters.start_clock()
        size = attack_batch_size(self.config.batch_size, self.train.shape)
        done = store.proposed.cpu()
        # All workers take the same number of turns, so that they can agree on a stop between them.
        largest = -(-len(self.train) // distributed.world_size())
        turns = -(-largest // size)

        def pieces(turn: int) -> tuple[Tensor, ...]:
            first, last = store.first + turn * size, min(store.first + (turn + 1) * size, store.last)
            part = torch.arange(first, max(first, last))
            part = part[~done[part - store.first]]
            return part.split(self.at_once) if len(part) else ()

        with closing(self.train.batches(piece for turn in range(turns) for piece in pieces(turn))) as taken:
            for turn in range(turns):
                self.generators.start(self.state.position.epoch, -1 - turn)
                for _ in pieces(turn):
                    mine = next(taken)
                    batch = self._batch(mine, store.shard[mine.indices - store.first], Phase.MARGIN)
                    attacked = self.method.estimate(self.view, batch)
                    self._propose(batch, attacked)
                    counters.add_evaluations(attacked.evaluations)
                if turn + 1 < turns:
                    counters.lap("margin")
                    self._report("margins")
        counters.lap("margin")

    def _propose(self, batch: Batch, attacked: Attacked) -> None:
        assert self.state.store is not None
        assert attacked.proposals is not None
        new = attacked.proposals
        self.state.store.propose(new.indices, new.values, correct=new.correct, crossed=new.crossed)
        if self.state.equilibrium is not None:
            self.state.equilibrium.add(self.view, batch, attacked)

    # ---- end of an epoch, and looking up from the work

    def _finish_epoch(self) -> None:
        """Write the epoch's rows and its checkpoint."""
        distributed.together(self.run.check_lease)
        state, config, epoch = self.state, self.config, self.state.position.epoch + 1
        use_tf32(False)  # until the next epoch: nothing is measured in TF32
        accuracies = {"val_accuracy": validation.accuracy(state.result, self.val, config, self.at_once)}
        noise = watched_noise(config)
        if noise is not None:
            robust = validation.robust_accuracy(state.result, self.val, self.val_attacked, config, noise, self.at_once)
            accuracies["val_robust_accuracy"] = robust
        self._say_what_is_idle()
        self.history.append(state.epoch_row(epoch, accuracies, config.eps_max, self.method.largest_margin))
        if state.equilibrium is not None:
            self.equilibria += state.equilibrium.rows(epoch)
        if distributed.rank() == 0:
            self.run.write_history(self.history)
            if state.equilibrium is not None:
                self.run.write_equilibrium(self.equilibria)
        state.begin_epoch(epoch)
        checkpoint.save(self.run, self.identity, state)
        if distributed.rank() == 0:
            self.run.for_display(lambda: write_answers(self.run, state.result, self.train, epoch))
        self._report("training")

    def _say_what_is_idle(self) -> None:
        """Note the options for small networks that have had no effect, once an attack could have been captured."""
        needs = "it needs an attack that it is for, and a network so small that batches keep their size"
        if self.compiled is not None and not self.compiled.used:
            self.reporter.note(f"--compile has had no effect: {needs}.")
        if self.graphs is not None and not self.graphs.used and self.reporter.steps > 2:
            self.reporter.note(f"--cuda-graphs has had no effect: {needs}, on a card.")

    def _report(self, stage: str) -> None:
        """Show progress; if the run has been asked to stop, save a checkpoint and raise Interrupted."""
        distributed.together(self.run.check_lease)
        position, totals = self.state.position, self.state.counters.totals()
        if distributed.rank() == 0:
            last = self.history[-1] if self.history else {}
            warnings = [*self.warnings, *overfitting_doubts(self.config, self.history)]
            self.reporter.write(stage, position, totals, last, warnings)
        if self.reporter.stop_agreed(self.device):
            if position.step:
                checkpoint.save(self.run, self.identity, self.state)
            raise Interrupted(f"stopped after epoch {position.epoch}, step {position.step}")
