"""Checkpoints: whole or absent, readable without unpickling, newest whole one first.

``checkpoints/epoch=EEEE`` is the state after EEEE complete epochs, ``checkpoints/epoch=EEEE-step=SSSSSS``
one in the middle of the next epoch. Each holds model.safetensors, optimizer.safetensors, the margin
proposals that await the end of the epoch (one file a worker), what the equilibrium's diagnostics have
gathered until then (gathered.safetensors), and state.json: position, counters, and the
SHA-256 of every file that belongs to it, the margin shards included. A checkpoint is written in a
directory beside its place and moved there when state.json is complete.

Kept: every epoch's weights; optimiser states of the newest ``KEEP_OPTIMIZER`` epochs; mid-epoch, the newest
checkpoint, the one before it, and the last one of the epoch before, which needs older margins: damage to one file
then costs the steps between two checkpoints, or the unfinished epoch if it is a file of margins.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import torch as safetensors
from torch import Tensor, nn

from ima_dist.core import distributed
from ima_dist.margins.store import MarginStore
from ima_dist.margins.update import Proposals
from ima_dist.rundir.directory import RunDir

KEEP_OPTIMIZER = 3


@dataclass
class Position:
    """Where a run is.

    Attributes:
        epoch: complete epochs. step: global batches done in the next one.
        counters: sums over the unfinished epoch, for its row in the history.
    """

    epoch: int = 0
    step: int = 0
    counters: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"epoch={self.epoch:04d}" + (f"-step={self.step:06d}" if self.step else "")


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk. scaler: state of the loss scaling, {} without."""

    path: Path
    position: Position
    margins: Path
    scaler: dict[str, float]


@dataclass(frozen=True)
class Identity:
    """What a checkpoint belongs to: a configuration's fingerprint and the digest of its data."""

    fingerprint: str
    data: str


class Damaged(Exception):
    """A checkpoint cannot be used; the message names the file and says why."""


def save(
    run: RunDir,
    position: Position,
    identity: Identity,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    store: MarginStore | None,
    labels: Tensor,
    gathered: dict[str, Tensor] | None = None,
    scaler: dict[str, float] | None = None,
) -> None:
    """Write a checkpoint; all workers call it together. ``labels`` (N,) of the training set go with the margins.

    gathered: sums over the unfinished epoch and all workers that are too large for ``position.counters``.
    scaler: state of the loss scaling.

    Raises:
        OSError: on the worker where writing failed; nothing that existed before is lost.
    """
    lead = distributed.rank() == 0
    aside, place = run.checkpoints_dir / f".writing-{position.name}", run.checkpoints_dir / position.name
    margins_aside, margins_place = _margins_dirs(run, position)
    if lead:
        for old in (aside, margins_aside):
            shutil.rmtree(old, ignore_errors=True)
            old.mkdir(parents=True)
    distributed.barrier()

    mine: dict[str, str] = {}
    if store is not None:
        if position.step == 0:
            digests = store.save(margins_aside, labels, identity.fingerprint)
            mine = {_relative(run, margins_place / name): digest for name, digest in digests.items()}
        else:
            name = f"pending-{store.rank:04d}-of-{store.world:04d}.safetensors"
            safetensors.save_file({k: v.cpu().contiguous() for k, v in asdict(store.pending()).items()}, aside / name)
            mine[_relative(run, place / name)] = _digest(aside / name)
    if lead:
        if store is not None and position.step and position.epoch:
            # The margins this one continues from are part of it: damage to them must show.
            state = _read_state(run.checkpoints_dir / Position(position.epoch).name)
            mine.update({k: v for k, v in state["files"].items() if k.startswith("margins/")})
        safetensors.save_model(network, str(aside / "model.safetensors"))  # copes with tied weights
        tensors, layout = _flatten_optimizer(optimizer)
        safetensors.save_file(tensors, aside / "optimizer.safetensors")
        names = ["model.safetensors", "optimizer.safetensors"]
        if gathered:
            names.append("gathered.safetensors")
            safetensors.save_file({k: v.cpu() for k, v in gathered.items()}, aside / names[-1])
        for name in names:
            mine[_relative(run, place / name)] = _digest(aside / name)
    files = {k: v for part in distributed.gather_objects(mine) for k, v in part.items()}
    if lead:
        state = {
            "epoch": position.epoch,
            "step": position.step,
            "counters": position.counters,
            **asdict(identity),
            "workers": distributed.world_size(),
            "optimizer": layout,
            "scaler": scaler or {},
            "files": files,
        }
        (aside / "state.json").write_text(json.dumps(state, indent=1))
        _sync(aside)
        if store is not None and position.step == 0:
            _move(margins_aside, margins_place)
        else:
            shutil.rmtree(margins_aside, ignore_errors=True)
        _move(aside, place)
        _prune(run, position)
    distributed.barrier()


def newest(run: RunDir, identity: Identity) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint, or None; and a sentence for each newer one that is damaged.

    Raises:
        Damaged: checkpoints exist but none is whole and of this configuration and these data.
    """
    complaints: list[str] = []
    found = sorted(run.checkpoints_dir.glob("epoch=*"), key=_place_in_run, reverse=True)
    for path in found:
        try:
            state = _read_state(path)
            if state["fingerprint"] != identity.fingerprint:
                raise Damaged(f"{path} belongs to another configuration than {run.path / 'config.yaml'}")
            if state["data"] != identity.data:
                raise Damaged(f"{path} was trained on other data than those that are there now")
            for name, digest in state["files"].items():
                file = run.path / name
                if not file.exists():
                    raise Damaged(f"{file} is missing")
                if _digest(file) != digest:
                    raise Damaged(f"{file} is damaged (its checksum differs from the one in state.json)")
        except Damaged as error:
            complaints.append(str(error))
            continue
        position = Position(int(state["epoch"]), int(state["step"]), dict(state["counters"]))
        margins = run.margins_dir / Position(position.epoch).name
        return Checkpoint(path, position, margins, state["scaler"]), list(dict.fromkeys(complaints))
    if complaints:
        # Several checkpoints may need the same file.
        said = "; ".join(dict.fromkeys(complaints))
        raise Damaged(f"{said}. No whole checkpoint is left: restore one from a copy, or start a new run")
    return None, []


def restore(checkpoint: Checkpoint, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load weights and optimiser state in place."""
    device = next(network.parameters()).device
    safetensors.load_model(network, checkpoint.path / "model.safetensors", device=str(device))
    layout = _read_state(checkpoint.path)["optimizer"]
    tensors = _load(checkpoint.path / "optimizer.safetensors")
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, _, key = name.partition(".")
        state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": layout})


def restore_pending(checkpoint: Checkpoint, store: MarginStore) -> None:
    """Give each worker the proposals of an unfinished epoch for the samples it owns, whoever made them."""
    for file in sorted(checkpoint.path.glob("pending-*.safetensors")):
        pending = Proposals(**{k: v.to(store.device) for k, v in _load(file).items()})
        own = (pending.indices >= store.first) & (pending.indices < store.last)
        store.propose(
            pending.indices[own],
            pending.values[own],
            correct=pending.correct[own],
            crossed=pending.crossed[own],
        )


def gathered(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """What ``save`` was given as ``gathered``; {} if nothing was."""
    file = checkpoint.path / "gathered.safetensors"
    return _load(file) if file.exists() else {}


def weights_file(run: RunDir, epoch: int, data: str) -> Path:
    """Undamaged weights after ``epoch`` complete epochs on the data with this digest. Raises Damaged."""
    file = run.checkpoints_dir / Position(epoch).name / "model.safetensors"
    if not file.exists():
        raise Damaged(f"{file} is missing")
    state = _read_state(file.parent)
    if state["files"].get(_relative(run, file)) != _digest(file):
        raise Damaged(f"{file} is damaged (its checksum differs from the one in state.json)")
    if state["data"] != data:
        raise Damaged(f"{file.parent} was trained on other data than those that are there now")
    return file


def load_weights(run: RunDir, epoch: int, data: str, network: nn.Module) -> None:
    """Load the weights of ``weights_file`` in place. Raises Damaged."""
    file = weights_file(run, epoch, data)
    safetensors.load_model(network, file, device=str(next(network.parameters()).device))


def _load(file: Path) -> dict[str, Tensor]:
    # Not load_file: it maps the file, and a mapped file that changes or vanishes kills the process.
    return safetensors.load(file.read_bytes())


_STATE = ("epoch", "step", "counters", "fingerprint", "data", "optimizer", "scaler", "files")


def _read_state(path: Path) -> dict[str, Any]:
    file = path / "state.json"
    try:
        state = {"scaler": {}, **json.loads(file.read_text())}
        return {key: state[key] for key in _STATE}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{file} cannot be read ({type(error).__name__}: {error})") from error


def _flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    packed = optimizer.state_dict()
    tensors = {
        f"{number}.{key}": torch.as_tensor(value).contiguous()
        for number, entry in packed["state"].items()
        for key, value in entry.items()
        if value is not None
    }
    return tensors, packed["param_groups"]


def _place_in_run(path: Path) -> tuple[int, int]:
    """(epoch, step) in the name of a checkpoint directory; (-1, 0) for a name that is none."""
    match = re.fullmatch(r"epoch=(\d+)(?:-step=(\d+))?", path.name)
    return (int(match[1]), int(match[2] or 0)) if match else (-1, 0)


def clear_unfinished(run: RunDir) -> None:
    """Remove what a save that was cut off has left behind; for the run's only writer."""
    for directory in (run.checkpoints_dir, run.margins_dir):
        for path in directory.glob(".writing-*"):
            shutil.rmtree(path, ignore_errors=True)


def clear_partial(run: RunDir) -> None:
    """Remove the mid-epoch checkpoints of a training that is complete; for the run's only writer."""
    for path in run.checkpoints_dir.glob("epoch=*-step=*"):
        shutil.rmtree(path, ignore_errors=True)


def _margins_dirs(run: RunDir, position: Position) -> tuple[Path, Path]:
    name = Position(position.epoch).name
    return run.margins_dir / f".writing-{name}", run.margins_dir / name


def _relative(run: RunDir, file: Path) -> str:
    return file.relative_to(run.path).as_posix()


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise Damaged(f"{file} cannot be read ({error.strerror})") from error


def _sync(directory: Path) -> None:
    for path in [*directory.iterdir(), directory]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _move(aside: Path, place: Path) -> None:
    if place.exists():
        shutil.rmtree(place)
    aside.rename(place)


def _prune(run: RunDir, position: Position) -> None:
    whole = sorted((p for p in run.checkpoints_dir.glob("epoch=*") if "-step=" not in p.name), key=_place_in_run)
    partial = {_place_in_run(p): p for p in run.checkpoints_dir.glob("epoch=*-step=*")}
    now = (position.epoch, position.step)
    before = max((place for place in partial if place < now), default=None)
    epoch_before = max((place for place in partial if place[0] < position.epoch), default=None)
    for place, path in partial.items():
        if place not in (now, before, epoch_before):
            shutil.rmtree(path, ignore_errors=True)
    for path in whole[:-KEEP_OPTIMIZER]:
        (path / "optimizer.safetensors").unlink(missing_ok=True)
