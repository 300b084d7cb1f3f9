"""The interface between a training method and the loop.

In every step the loop calls ``attack`` with the bare network, passes ``Attacked.inputs`` through the network once
(one DDP forward, clean and noisy samples together), and calls ``loss`` with the logits. After an epoch it calls
``estimate`` for all samples if the method has ``margin_pass``. A method proposes margins; only the loop hands them
to the store.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ima_dist.attacks.common import Box, Network
from ima_dist.attacks.pgd import pgd
from ima_dist.config.schema import Config
from ima_dist.core import noise
from ima_dist.margins.update import Proposals


@dataclass(frozen=True)
class Batch:
    """This worker's part of a global batch.

    Attributes:
        x: (B, ...) samples as the network sees them; y: (B,) labels; indices: (B,) global sample indices.
        margins: (B,) E(x) from the store, or None for a method without margins.
        epoch, phase: with the indices, the key of the samples' noise.
    """

    x: Tensor
    y: Tensor
    indices: Tensor
    margins: Tensor | None
    seed: int
    epoch: int
    phase: noise.Phase

    def take(self, rows: Tensor) -> Self:
        """The samples ``rows`` (K,) int64 of the batch, with their own noise."""
        margins = None if self.margins is None else self.margins[rows]
        return replace(self, x=self.x[rows], y=self.y[rows], indices=self.indices[rows], margins=margins)

    def start(self, eps: Tensor | float, norm: str) -> Tensor:
        """ξ (B, ...), uniform in the ball of radius eps, keyed by sample."""
        keys = noise.sample_keys(self.seed, self.epoch, self.phase, self.indices)
        return noise.start(keys, self.x, eps, norm)

    def gaussian(self, sigma: float) -> Tensor:
        """Normal noise (B, ...) of standard deviation sigma in each value, keyed by sample."""
        keys = noise.sample_keys(self.seed, self.epoch, self.phase, self.indices)
        return sigma * noise.normals(keys, (1, *self.x.shape[1:]), 0, self.x.dtype)[:, 0]


@dataclass(frozen=True)
class Attacked:
    """Result of a method's ``attack``.

    Attributes:
        inputs: (B + K, ...) the batch's clean samples, then K noisy ones: one forward pass. With ``noisy_only``
            only the (K, ...) noisy ones, for a loss without clean samples; ``correct`` must then be given.
        noisy_of: (K,) the row in the batch of each noisy sample.
        correct: (B,) bool, the clean sample is classified correctly in evaluation mode; None if not known.
        proposals: new margins, or None.
        evaluations: forward passes spent by the attack, in samples.
    """

    inputs: Tensor
    noisy_of: Tensor
    correct: Tensor | None = None
    proposals: Proposals | None = None
    evaluations: int | Tensor = 0
    noisy_only: bool = False

    @property
    def noisy(self) -> Tensor:
        """The (K, ...) noisy samples."""
        return self.inputs[len(self.inputs) - len(self.noisy_of) :]

    def labels(self, y: Tensor) -> Tensor:
        """The label of each row of ``inputs``, from those of the batch, (B,)."""
        noisy = y[self.noisy_of]
        return noisy if self.noisy_only else torch.cat([y, noisy])


def directly(attack: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """``attack(…)``."""
    return attack(*arguments, **options)


@dataclass
class Method(ABC):
    config: Config
    box: Box
    has_margins: bool = field(default=False, init=False)
    margin_pass: bool = field(default=False, init=False)
    # Noisy samples lie where the two most probable classes are equally probable: B_ij of the paper's section 2.3.
    on_boundary: bool = field(default=False, init=False)
    # The attack may run the network in half precision.
    attack_in_half: bool = field(default=True, init=False)
    # Calls an attack; the loop's may replay it from a recording, so an attack that is handed over depends on its
    # arguments alone.
    call: Callable[..., Any] = field(default_factory=lambda: directly, init=False)

    @property
    def largest_margin(self) -> float | None:
        """No margin that it proposes is larger; None if there is no such bound."""
        return self.config.eps_max

    @property
    def first_margin(self) -> float:
        """Every margin before the first epoch."""
        return self.config.expansion

    @abstractmethod
    def attack(self, model: Network, batch: Batch) -> Attacked:
        """Noisy samples for a batch; leaves the network as it found it."""

    @abstractmethod
    def loss(self, logits: Tensor, batch: Batch, attacked: Attacked) -> Tensor:
        """Loss of every row of ``logits``, (B + K, C) -> (B + K,), in the order of ``Attacked.inputs``.

        Their sum over the global batch, divided by its size, is minimised.
        """

    def cross_entropy(self, logits: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy of each row as it is trained on, with ``--label-smoothing``, (N, C), (N,) -> (N,)."""
        return F.cross_entropy(logits, y, reduction="none", label_smoothing=self.config.label_smoothing)

    @property
    def pgd_options(self) -> dict[str, Any]:
        """The configured norm, steps and box of PGD."""
        settings = {"steps": self.config.attack.steps, "step_scale": self.config.attack.step_scale}
        return {"norm": self.config.norm, **settings, "box": self.box}

    def pgd(
        self,
        model: Network,
        batch: Batch,
        start: Tensor,
        eps: Tensor | None = None,
        attack: Callable[..., Any] = pgd,
    ) -> Any:
        """The last iterate of PGD from x + ``start``, as configured, (B, ...), or the result of another such attack.

        eps: radii (B,), or None for ``eps_max``.
        """
        radius = self.config.eps_max if eps is None else eps
        return self.call(attack, model, batch.x, batch.y, radius, start=start, **self.pgd_options)

    def estimate(self, model: Network, batch: Batch) -> Attacked:
        """New margins for a batch after the epoch, as ``proposals``, and the noisy samples they come from."""
        raise NotImplementedError(f"{type(self).__name__} has no margin pass")
