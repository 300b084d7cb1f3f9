"""``python -m benchmarks.peers RUN_DIR…``: do AutoAttack and other people's attacks break what ``worst`` leaves?

Each run's test samples are attacked under L∞ with ``worst``, with ``minimal``, with FMN of adv-lib and of secml-torch
(100 steps, as installed; left out where they are not), and, the first --autoattack of them that ``worst`` leaves right,
with the standard AutoAttack. A line has for each level how many samples are right without noise and under ``worst``,
how many of these each of the others breaks, and AttackBench's optimality of the attacks that seek a distance.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.util
import json
import math
import sys
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ima_dist.attacks.common import Box, attack_mode, predicted
from ima_dist.config.schema import Config
from ima_dist.config.values import with_options
from ima_dist.core import noise, norms
from ima_dist.data.choosing import to_attack
from ima_dist.data.load import load
from ima_dist.data.types import Resident
from ima_dist.evaluation.attacks import minimal_norm, strictest
from ima_dist.evaluation.autoattack import autoattack
from ima_dist.rundir.directory import RunDir
from ima_dist.training.checkpoint import load_weights
from ima_dist.training.network import DTYPES, make_network

#: Takes a network on [0, 1], samples there and labels; returns the points that it has found.
Peer = Callable[[nn.Module, Tensor, Tensor], Tensor]
_STEPS = 100


def peers(norm: str) -> dict[str, Peer]:
    """The attacks of adv-lib and secml-torch that seek the nearest misclassified point, as far as installed."""
    found: dict[str, Peer] = {}
    order = math.inf if norm == "linf" else 2
    if importlib.util.find_spec("adv_lib"):
        if "visdom" not in sys.modules and not importlib.util.find_spec("visdom"):
            # It draws curves for those who ask; it no longer installs, and adv-lib imports its name.
            stub: Any = types.ModuleType("visdom")
            stub.Visdom, stub.__spec__ = object, importlib.machinery.ModuleSpec("visdom", None)
            sys.modules["visdom"] = stub
        from adv_lib import attacks

        found["adv-lib FMN"] = partial(attacks.fmn, norm=order, steps=_STEPS)
        if norm == "l2":
            found["adv-lib DDN"] = partial(attacks.ddn, steps=_STEPS, levels=None)
            found["adv-lib SuperDeepFool"] = attacks.sdf
    if importlib.util.find_spec("secmlt"):
        found["secml-torch FMN"] = partial(_secml, norm=norm)
    return found


def _secml(network: nn.Module, z: Tensor, y: Tensor, *, norm: str) -> Tensor:
    from secmlt.adv.backends import Backends
    from secmlt.adv.evasion.fmn import FMN
    from secmlt.models.pytorch.base_pytorch_nn import BasePyTorchClassifier
    from torch.utils.data import DataLoader, TensorDataset

    how = {"perturbation_model": norm, "num_steps": _STEPS, "step_size": 1.0, "backend": Backends.NATIVE}
    done = FMN(**how)(BasePyTorchClassifier(network), DataLoader(TensorDataset(z, y), batch_size=len(z)))
    return torch.cat([points for points, _ in done])


class _OnUnits(nn.Module):
    """A network for samples that were scaled into [0, 1]."""

    def __init__(self, network: nn.Module, low: float, width: float) -> None:
        super().__init__()
        self.network, self.low, self.width = network, low, width

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.network(z * self.width + self.low)
        return out


def distance_of(peer: Peer, network: nn.Module, x: Tensor, y: Tensor, norm: str, box: Box) -> Tensor:
    """Distance (B,) from x to the point that a peer has found; 0 where x is misclassified, infinite where it failed."""
    room = float(x.max() - x.min())
    low, high = box if box is not None else (float(x.min()) - room, float(x.max()) + room)
    scaled = _OnUnits(network, low, high - low).eval()
    trainable = [p for p in network.parameters() if p.requires_grad]
    for p in trainable:
        p.requires_grad_(False)
    points = peer(scaled, (x - low) / (high - low), y).detach() * (high - low) + low
    for p in trainable:
        p.requires_grad_(True)
    with torch.no_grad(), attack_mode(network):
        clean, wrong = predicted(network(x)) != y, predicted(network(points)) != y
    size = norms.length(points - x, norm).masked_fill(~wrong, math.inf)
    return size.masked_fill(clean, 0.0)


def optimality(found: dict[str, Tensor]) -> dict[str, float]:
    """AttackBench's measure (Cinà et al., AAAI 2025) of attacks by the distances (N,) that they have found.

    The area between an attack's curve of robust accuracy and that of the best attack for each sample, up to the largest
    of the best distances, as a share of the area above the best curve; 1 is the best, 0 an attack that breaks nothing.
    """
    best = torch.stack(list(found.values())).amin(0).double()
    known = best.isfinite()
    farthest = best[known].max()
    # The area under a curve of steps is the mean distance.
    least, most = best[known].mean(), (best[known] > 0).double().mean() * farthest
    return {
        name: float(1 - (distance[known].double().clamp_max(farthest).mean() - least) / (most - least))
        for name, distance in found.items()
    }


def opened(path: Path, samples: int) -> tuple[Config, nn.Module, Tensor, Tensor, Tensor, Box]:
    """A run's configuration and network; ``samples`` test samples, their labels and keys; the box."""
    run = RunDir(path)
    config = run.config()
    data = load(config.data, config.seed)
    network = make_network(config, data)
    load_weights(run, config.epochs, data.digest(), network)
    indices = to_attack(data.test, samples, "stratified")
    x, y = Resident(data.test, "cpu", DTYPES[config.dtype], data.box).batch(indices)
    return config, network.eval(), x, y, noise.sample_keys(config.seed, 0, noise.Phase.EVALUATE, indices), data.box


def compared(path: Path, samples: int, levels: tuple[float, ...], steps: int, most: int) -> dict[str, Any]:
    config, network, x, y, keys, box = opened(path, samples)
    config = with_options(config, {"norm": "linf", "eval.noise": (0.0, *levels), "eval.steps": steps})
    strict = strictest(network, x, y, keys, config, box)
    ours = minimal_norm(network, x, y, keys, config, box).distance
    assert ours is not None
    found = {"minimal": ours}
    found |= {name: distance_of(peer, network, x, y, "linf", box) for name, peer in peers("linf").items()}
    row: dict[str, Any] = {"run": path.name, "samples": samples, "clean": int((strict["both", 0.0] == y).sum())}
    for eps in levels:
        left = strict["both", eps] == y
        rows = left.nonzero()[:, 0][:most]
        at: dict[str, Any] = {"worst": int(left.sum())}
        at |= {name: int((left & (distance <= eps)).sum()) for name, distance in found.items()}
        if len(rows):
            answers = autoattack(network, x[rows], y[rows], eps, norm="linf", seed=config.seed, box=box)
            at |= {"AutoAttack": int((answers != y[rows]).sum())}
        row[f"{eps:g}"] = at | {"AutoAttack on": len(rows)}
    row["optimality"] = {name: round(value, 4) for name, value in optimality(found).items()}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--levels", default="0.1,0.2")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--autoattack", type=int, default=200, help="samples left by worst that AutoAttack attacks")
    a = parser.parse_args()
    torch.set_num_threads(1)
    for path in a.runs:
        levels = tuple(float(level) for level in a.levels.split(","))
        print(json.dumps(compared(path, a.samples, levels, a.steps, a.autoattack)), flush=True)


if __name__ == "__main__":
    main()
