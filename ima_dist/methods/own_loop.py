"""IMA in a training loop of one's own (paper, Algorithms 1 to 3): ``ima_dist.IncreasingMargin``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ima_dist.attacks.common import Box
from ima_dist.config.presets import make_config
from ima_dist.core import distributed
from ima_dist.core.noise import Phase
from ima_dist.margins.store import MarginStore
from ima_dist.margins.update import Proposals, joined
from ima_dist.methods.base import Attacked, Batch
from ima_dist.methods.ima import IMA


class IncreasingMargin:
    """The margins of a training set, and what a loop needs to train with them.

    In every step::

        noisy = im.attack(network, x, y, indices)
        loss = im.loss(network(noisy.inputs), y, noisy)

    and after every epoch ``im.update()``. The margins are those that ``python -m ima_dist.train`` finds with the same
    network, order, seed and settings. If torch.distributed is initialised, the margins are sharded over the workers;
    then all workers call ``update`` and ``state_dict`` together.

    Args:
        num_samples: size of the training set. Margins belong to indices 0 to num_samples − 1.
        eps_max: largest margin ε_max, in units of the inputs.
        epochs: number of epochs, from which Δε = ε_max / epochs; or give delta_eps.
        beta: weight of the noisy samples in the loss, 0 to 1.
        norm: "linf" or "l2".
        box: (low, high), the range that noisy samples stay in; None for no limits.
        margin_update: "online" takes new margins from the attacks of the steps, so the whole epoch costs one pass;
            "epoch" (the paper) from ``estimate``, which the loop then calls for all samples after its steps.
        steps, bisections, step_scale, boundary_side: of Algorithm 3, as ``--attack.steps`` and so on.
        label_smoothing: share of each label that is spread evenly over all classes in ``loss``.
        seed: of the starting noise, keyed by (seed, epoch, sample).
        device, dtype: where and how margins are stored.

    Raises ConfigError for a setting that is not possible.
    """

    def __init__(
        self,
        num_samples: int,
        eps_max: float,
        *,
        epochs: int | None = None,
        delta_eps: float | None = None,
        beta: float = 0.5,
        norm: str = "linf",
        box: Box = None,
        margin_update: str = "online",
        steps: int = 20,
        bisections: int = 10,
        step_scale: float = 4.0,
        boundary_side: str = "midpoint",
        label_smoothing: float = 0.0,
        seed: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if epochs is None and delta_eps is None:
            raise ValueError("give epochs, or delta_eps")
        attack = {"steps": steps, "bisections": bisections, "step_scale": step_scale, "boundary_side": boundary_side}
        config = make_config(
            "moons",  # for the settings of data and network, which are not used
            {"method": "ima", "norm": norm, "eps_max": eps_max, "delta_eps": delta_eps, "epochs": epochs or 1}
            | {"beta": beta, "margin_update": margin_update, "seed": seed, "label_smoothing": label_smoothing}
            | {f"attack.{name}": value for name, value in attack.items()},
        )
        self._method, self._seed = IMA(config, box), seed
        self._store = MarginStore(num_samples, config.expansion, device=device, dtype=dtype)
        #: Complete epochs.
        self.epoch = 0

    def attack(self, network: nn.Module, x: Tensor, y: Tensor, indices: Tensor) -> Attacked:
        """The boundary points of samples x (B, ...) with labels y (B,) and global indices (B,).

        ``inputs`` (B + K, ...) holds the B clean samples, then the K that crossed the boundary inside their margin.
        The network is attacked in evaluation mode and left as it was. An epoch takes each sample at most once.
        """
        found = self._method.attack(_bare(network), self._batch(x, y, indices, Phase.TRAIN))
        self._propose(found)
        return found

    def loss(self, logits: Tensor, y: Tensor, attacked: Attacked) -> Tensor:
        """Loss () of the logits (B + K, C) of ``attacked.inputs``, per clean sample (Algorithm 1, lines 5 to 8)."""
        batch = Batch(attacked.inputs[: len(y)], y, y, None, self._seed, self.epoch, Phase.TRAIN)
        return self._method.loss(logits, batch, attacked).sum() / len(y)

    def estimate(self, network: nn.Module, x: Tensor, y: Tensor, indices: Tensor) -> None:
        """Attack samples after the steps of an epoch, for ``update``; only with ``margin_update="epoch"``."""
        self._propose(self._method.estimate(_bare(network), self._batch(x, y, indices, Phase.MARGIN)))

    def update(self) -> None:
        """Write the new margins at the end of an epoch (Algorithm 2). Collective.

        Raises ValueError if a sample was attacked twice in the epoch, as by a sampler that repeats some.
        """
        self._store.reduce()
        self.epoch += 1

    @property
    def margins(self) -> Tensor:
        """E(x) of all samples (num_samples,), by global index."""
        return self._store.lookup(torch.arange(self._store.num_samples, device=self._store.device))

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` needs, also in mid-epoch and on another number of workers. Collective."""
        pending = joined(distributed.gather_objects(self._store.pending()))
        return {"epoch": self.epoch, "margins": self.margins.clone(), "pending": pending._asdict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError if the state is of another number of samples."""
        store, margins = self._store, state["margins"]
        if len(margins) != store.num_samples:
            raise ValueError(f"the state has {len(margins)} margins, not {store.num_samples}")
        self.epoch = state["epoch"]
        store.restore(margins)
        pending = Proposals(**state["pending"])
        self._offer(pending.take((pending.indices >= store.first) & (pending.indices < store.last)))

    def _batch(self, x: Tensor, y: Tensor, indices: Tensor, phase: Phase) -> Batch:
        margins = self._store.lookup(indices).to(x.device)
        return Batch(x, y, indices, margins, self._seed, self.epoch, phase)

    def _propose(self, attacked: Attacked) -> None:
        if attacked.proposals is not None:
            self._offer(attacked.proposals)

    def _offer(self, new: Proposals) -> None:
        self._store.propose(new.indices, new.values, correct=new.correct, crossed=new.crossed)


def _bare(network: nn.Module) -> nn.Module:
    """The network inside DDP, whose own passes would wait for the other workers."""
    inner = network.module if isinstance(network, DistributedDataParallel | DataParallel) else network
    assert isinstance(inner, nn.Module)
    return inner
