"""The check at the door: what a network does with a few real samples, before anything is written.

Attacks, and equal results on any number of workers, rest on what is checked here. What cannot work is refused; what
makes results doubtful is refused unless ``--allow`` names it, or stored with the run (``results/doubts.py`` has the
sentences).
"""

import math
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ima_dist.attacks.common import (
    attack_mode,
    cross_entropy,
    logits_and_raw_gradient,
    predicted,
    soft_margin_loss,
)
from ima_dist.config.errors import ConfigError, DataWarning, first_line
from ima_dist.config.schema import EXTERNAL, Config
from ima_dist.core.norms import per_sample
from ima_dist.data.pipeline import Streamed
from ima_dist.data.types import DataSet
from ima_dist.rundir.directory import RunDir
from ima_dist.training import tensors
from ima_dist.training.door_steps import try_training
from ima_dist.training.doorkeeper import ROUNDED, SAME, Doorkeeper, equal
from ima_dist.training.habits import same, undisturbed
from ima_dist.training.network import DTYPES, make_network, seeded

Findings = dict[str, Any]

# Samples: many if they are small, few if a pass takes long; as many as have about so many values together.
_FEWEST, _MOST, _TRIED = 4, 32, 1 << 15
# Further passes with the same samples: randomness may draw the same twice.
_AGAIN = 2
# Change of the loss, as a share of the largest logit, with which gradients are compared with differences; and the
# largest relative deviation. A gradient of another function deviates by about 1.
_STEP, _WRONG = 1e-2, 0.5
# Input values that are looked at for their range.
_VALUES, _AT_ONCE = 1 << 26, 1 << 23


def check_door(network: nn.Module, data: DataSet, config: Config, run: RunDir | None = None) -> Findings:
    """Try the network, as ``make_network`` returns it, on a few training samples; it is left as it was.

    Returns plain values for summary.json: samples (tried), zero_gradient (how many of them have no gradient),
    wrong_gradient (how many have that of another function; missing for random networks), squashed ("softmax",
    "sigmoid" or None: outputs that are not logits), allowed (what ``--allow`` let pass), inputs (see ``input_range``);
    for a network that was trained elsewhere, which is tried in evaluation mode only, also trained (True).
    Raises ConfigError for what cannot work, and for what ``--allow`` must name.
    """
    x, y = _samples(data, config)
    trains = config.method != EXTERNAL
    state = {name: tensor.clone() for name, tensor in network.state_dict().items() if isinstance(tensor, Tensor)}
    if trains and not any(m.training for m in network.modules() if not next(m.children(), None)):
        warnings.warn(
            f"All layers of {config.model.factory} are in evaluation mode, and stay there in training: dropout does "
            "nothing, batch norm keeps its statistics. If that is not meant, return network.train().",
            DataWarning,
            stacklevel=2,
        )
    door = _Door(network, data, config, run)
    with undisturbed(network), seeded(config.seed):
        try:
            door.saved()
            door.evaluation(x, y)
            door.drawn(state)
            if trains:
                try_training(door, x, y)
        finally:
            network.load_state_dict(state, strict=False)
            network.zero_grad(set_to_none=True)
    trained = {} if trains else {"trained": True}
    return {**door.findings, **trained, "allowed": door.allowed, "inputs": input_range(data)}


def check_evaluation(network: nn.Module, data: DataSet, config: Config) -> Findings:
    """As ``check_door``, for a network in hand that is only used in evaluation mode, on its own device."""
    place = next((t.device for t in (*network.parameters(), *network.buffers())), torch.device("cpu"))
    door = _Door(network, data, config, None)
    with undisturbed(network), seeded(config.seed):
        door.evaluation(*_samples(data, config, place))
    return {**door.findings, "trained": True, "allowed": door.allowed, "inputs": input_range(data)}


class _Door(Doorkeeper):
    """The checks of one network, and what they have found."""

    def __init__(self, network: nn.Module, data: DataSet, config: Config, run: RunDir | None) -> None:
        super().__init__(network, data, config)
        self.run = run
        self.findings: Findings = {}

    def saved(self) -> None:
        """A checkpoint of the network can be written, and there is something to train."""
        external = self.config.method == EXTERNAL
        if not any(p.requires_grad or external for p in self.network.parameters()):
            raise ConfigError(
                f"{self.who} has no {'trainable ' * (not external)}parameters: keep its layers as attributes or in "
                "an nn.ModuleList, so that torch finds them."
            )
        if any(p.is_complex() for p in self.network.parameters()):
            raise ConfigError(
                f"{self.who} has complex parameters: keep real and imaginary parts as one real parameter of "
                "shape (..., 2), and take torch.view_as_complex of it in forward()."
            )
        with tempfile.TemporaryDirectory() as directory:
            try:
                tensors.save(self.network, Path(directory) / "model.safetensors")
            except Exception as error:
                raise ConfigError(
                    f"{self.who} cannot be saved in a checkpoint: {first_line(error)}. Register ordinary "
                    "(dense) tensors as its parameters and buffers."
                ) from error

    def evaluation(self, x: Tensor, y: Tensor) -> None:
        """Answers and gradients in evaluation mode, the mode of all attacks."""
        with attack_mode(self.network), torch.no_grad():
            first = self._input_kept(x)
            self._gradient(x, y)
            before = {name: t.clone() for name, t in self.network.state_dict().items() if isinstance(t, Tensor)}
            again = [self.logits(x.clone()) for _ in range(_AGAIN)]
            after = self.network.state_dict()
            if not all(equal(first, other, SAME) for other in again):
                self.refuse(
                    "random",
                    "gives different answers to the same samples in evaluation mode, so no accuracy can be repeated: "
                    "make dropout and other randomness depend on self.training",
                )
            elif any(not torch.equal(before[name], after[name]) for name in before):
                self.refuse(
                    "random",
                    "changes its parameters or buffers in evaluation mode, so answers depend on earlier ones: update "
                    "them only if self.training",
                )
            else:
                self._independent(x, first)
                self.findings["wrong_gradient"] = self._wrong_gradients(x, y)
        low, high = float(first.min()), float(first.max())
        if low >= 0 and high <= 1:
            sums = torch.allclose(first.sum(1), torch.ones_like(first[:, 0]), atol=1e-3)
            self.findings["squashed"] = "softmax" if sums else "sigmoid" if self._squashed(x) else None
        else:
            self.findings["squashed"] = None

    def _squashed(self, x: Tensor) -> bool:
        """Whether the outputs stay between 0 and 1 with other weights: those of few classes may lie there by chance."""
        parameters = [p.data for p in self.network.parameters() if p.is_floating_point()]
        before = [p.clone() for p in parameters]
        try:
            for factor in (-10.0, -1.0):
                for p in parameters:
                    p.mul_(factor)
                found = self.logits(x.clone()).detach()
                if not (float(found.min()) >= 0 and float(found.max()) <= 1):
                    return False
            return True
        finally:
            for p, old in zip(parameters, before, strict=True):
                p.copy_(old)

    def _input_kept(self, x: Tensor) -> Tensor:
        """Logits (B, C)."""
        given = x.clone()
        logits = self.logits(given)
        if not torch.equal(given, x):
            raise ConfigError(
                f"{self.who} changes the samples that it is given: work on a copy (x = x - mean, not x -= mean, and no "
                "inplace=True in the first layer)."
            )
        return logits

    def _gradient(self, x: Tensor, y: Tensor) -> None:
        """Gradients at the samples and at points where attacks go."""
        eps, few = self.config.eps_max, max(1, len(x) // 4)
        # Attacks end at the faces of the box even if no sample lies there: √0 has no finite gradient, for example.
        ends = torch.cat([x[:few] - eps, x[:few] + eps])
        if self.data.box is not None:
            ends = ends.clamp(*self.data.box)
        points, labels = torch.cat([x, ends]), torch.cat([y, y[:few], y[:few]])
        try:
            logits, gradient = logits_and_raw_gradient(self.logits, points, labels, cross_entropy)
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(
                f"{self.who} has no gradient with respect to its input ({first_line(error)}): compute the logits with "
                "torch's differentiable operations, without detach(), no_grad() or a conversion to whole numbers."
            ) from error
        # −∞ is a legitimate logit of a class that is masked, as long as the largest one is finite.
        wrong = {"logits": predicted(logits) < 0, "gradients": ~gradient.flatten(1).isfinite().all(1)}
        for what, samples in wrong.items():
            bad = int(samples.sum())
            if bad:
                self.refuse(
                    "not-finite",
                    f"has NaN or infinite {what} for {bad} of {len(points)} samples and points at noise {eps:g} around "
                    "them: avoid roots, logarithms and quotients at 0, for example by adding a small number first",
                )
        zero = (gradient[: len(x)].flatten(1) == 0).all(1)
        self.findings |= {"samples": len(x), "zero_gradient": int(zero.sum())}

    def _wrong_gradients(self, x: Tensor, y: Tensor) -> int:
        """How many of the gradients at the samples are not those of the network's answers, as differences show.

        A branch behind detach(), or a backward pass of one's own, leaves attacks a gradient that leads elsewhere.
        """
        logits, gradient = logits_and_raw_gradient(self.logits, x, y, cross_entropy)
        length = gradient.flatten(1).norm(dim=1)
        size = torch.where(logits.isfinite(), logits.abs(), 0.0).amax(1)
        # Of a bend of the network between two of the points, or rounding, another one is free.
        nearest = torch.full_like(length, math.inf)
        for part in (_STEP, -_STEP, _STEP / 10, -_STEP / 10):
            expected = part * size  # change of the loss
            there = x + per_sample(expected / length.square(), x) * gradient
            change = soft_margin_loss(self.logits(there), y) - soft_margin_loss(logits, y)
            nearest = torch.minimum(nearest, (change / expected - 1).abs())
        usable = gradient.flatten(1).isfinite().all(1) & (length > 0)
        return int((usable & (nearest > _WRONG)).sum())

    def _independent(self, x: Tensor, logits: Tensor) -> None:
        """A sample's answer is the same alone and in a batch, which dropping samples from a batch rests on."""
        try:
            alone = torch.cat([self.logits(x[:1].clone()), self.logits(x[-1:].clone())])
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(
                f"{self.who} does not take one sample alone ({first_line(error)}), as attacks give it: use layers "
                "that treat samples independently in evaluation mode."
            ) from error
        turned = self.logits(x.flip(0).contiguous()).flip(0)
        if not (equal(alone, logits[[0, -1]], ROUNDED) and equal(turned, logits, ROUNDED)):
            self.refuse(
                "coupled",
                "gives a sample another answer alone than in a batch, so results depend on the batches: use layers "
                "that treat samples independently in evaluation mode, such as batch norm with running statistics",
            )

    def drawn(self, state: dict[str, Tensor]) -> None:
        """All weights come from the seed: a second network has the same."""
        again = make_network(self.config, self.data, self.run).state_dict()
        if any(not isinstance(again.get(name), Tensor) or not same(again[name], t) for name, t in state.items()):
            self.refuse(
                "random",
                f"has other weights each time it is built with seed {self.config.seed}: draw them from torch's, "
                "NumPy's or Python's own generator, which are seeded, and not from one seeded otherwise",
            )


def input_range(data: DataSet, every: bool = False) -> dict[str, Any]:
    """Range of the training inputs as the network sees them, as plain values.

    ``every``: look at all samples, however many there are, and not at 2²⁶ values of samples spread over the whole set.

    low, high: smallest and largest value. size: values of a sample. box: as in DataSet. spread: for samples with one
    axis, the range of the widest feature in units of that of the narrowest one that varies; else None.
    """
    size = math.prod(data.train.shape)
    count = len(data.train) if every else min(len(data.train), max(1, _VALUES // max(size, 1)))
    places = torch.arange(count)
    if count < len(data.train):
        places = torch.linspace(0, len(data.train) - 1, count, dtype=torch.float64).long()
    # In parts, because each is copied.
    ends = [_ends(data.train.fetch(part)) for part in places.split(max(1, _AT_ONCE // max(size, 1)))]
    lows, highs = (torch.stack(found) for found in zip(*ends, strict=True))
    lowest, highest = lows.amin(0), highs.amax(0)
    low, high, spread = float(lowest.min()), float(highest.max()), None
    if len(data.train.shape) == 1:
        widths = highest.double() - lowest.double()
        widths = widths[widths > 0]
        spread = float(widths.max() / widths.min()) if len(widths) else None
    scale = 255 if data.train.dtype == torch.uint8 else 1
    box = None if data.box is None else list(data.box)
    return {"low": low / scale, "high": high / scale, "size": size, "box": box, "spread": spread}


def _ends(x: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each feature (N, F) -> (F,), or of all samples (N, ...) -> ()."""
    return (x.amin(0), x.amax(0)) if x.dim() == 2 else (x.min(), x.max())


def _samples(data: DataSet, config: Config, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """A few training samples (B, ...) spread over the whole set, which may be sorted by class, and labels (B,)."""
    wanted = min(_MOST, max(_FEWEST, _TRIED // max(1, math.prod(data.train.shape))))
    places = torch.linspace(0, len(data.train) - 1, min(wanted, len(data.train)), dtype=torch.float64).long()
    return Streamed(data.train, device, DTYPES[config.dtype], data.box).batch(places)
