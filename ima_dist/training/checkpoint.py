"""Checkpoints: whole or absent, readable without unpickling, newest whole one first.

``checkpoints/epoch=EEEE`` is the state after EEEE complete epochs, ``checkpoints/epoch=EEEE-step=SSSSSS`` one in
the middle of the next epoch. Each holds model.safetensors, optimizer.safetensors, with --ema the weights that are
trained (raw.safetensors; model.safetensors then has their average), the margin proposals that await the end of the
epoch (one file per worker), what the equilibrium's diagnostics have gathered until then (gathered.safetensors), and
state.json: position, counters, and the SHA-256 of every file that belongs to it,
including the margin shards. A checkpoint is written in a directory beside its place, whose name has the mark of the
run's lease, and moved there when state.json is complete and the lease is still held. ``checkpoint.json`` in the run
directory names the newest.

Kept: the weights of every epoch; the optimiser states of the newest ``pruning.KEEP`` epochs; of the
checkpoints within an epoch the newest, the one before it, and the last one of the epoch before, which needs older
margins.
Damage to one file then costs the steps between two checkpoints, or the unfinished epoch if it is a file of margins.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import torch as safetensors
from torch import Tensor, nn

from ima_dist.core import distributed
from ima_dist.margins.store import MarginStore
from ima_dist.margins.update import Proposals
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import move_directory, sync
from ima_dist.training import noted, tensors
from ima_dist.training.aside import Asides, naming, or_lost
from ima_dist.training.pruning import place_in_run
from ima_dist.training.pruning import prune as _prune
from ima_dist.training.state import Position, State


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk. counters, scaler: state dicts; the scaler's is {} without loss scaling.

    files: all that belong to it but state.json, by their paths below the run.
    """

    path: Path
    position: Position
    margins: Path
    counters: dict[str, float]
    scaler: dict[str, float]
    files: tuple[str, ...]


@dataclass(frozen=True)
class Identity:
    """The run that a checkpoint belongs to: fingerprint of its configuration and digest of its data."""

    fingerprint: str
    data: str


class Damaged(Exception):
    """A checkpoint cannot be used; the message names the file and says why."""


# ---- writing


def save(run: RunDir, identity: Identity, state: State) -> None:
    """Write a checkpoint of ``state`` at its position. Collective.

    Raises:
        LeaseLost: another process has become the run's writer; nothing of what it has written was changed.
        OSError: on the worker where writing failed; nothing that existed before is lost, and worker 0 leaves nothing
            unfinished behind.
    """
    distributed.together(run.check_lease)
    position = state.position
    place, margins_place = run.checkpoints_dir / position.name, _margins_dir(run, position)
    asides = Asides(run, place, margins_place)
    counters = state.counters.state_dict()
    gathered = state.equilibrium.state_dict() if state.equilibrium is not None and position.step else {}
    try:
        distributed.together(asides.make)
        # What fails on one worker alone ends the others; see ``worker.failure``.
        alone = distributed.world_size() == 1
        mine = or_lost(run, lambda: _write_margins(run, identity, state, asides), alone)
        files = {name: digest for part in distributed.gather_objects(mine) for name, digest in part.items()}

        def finish() -> None:
            layout = _write_tensors(asides.checkpoint, state, gathered)
            written = (asides.checkpoint / name for name in _SHARED)
            tree = {
                "epoch": position.epoch,
                "step": position.step,
                "counters": counters,
                **asdict(identity),
                "workers": distributed.world_size(),
                "optimizer": layout,
                "scaler": state.scaler.state_dict(),
                "files": files | {_relative(run, place / f.name): _digest(f) for f in written if f.exists()},
            }
            with naming(asides.checkpoint / "state.json") as file:
                file.write_text(json.dumps(tree, indent=1))
            if state.store is not None and position.step == 0:
                move_directory(asides.margins, margins_place, run.check_lease)
            move_directory(asides.checkpoint, place, run.check_lease)
            noted.note(run, place)
            _prune(run, position)

        distributed.together(lambda: or_lost(run, finish))
    finally:
        if distributed.rank() == 0:
            asides.clear()


_SHARED = ("model.safetensors", "raw.safetensors", "optimizer.safetensors", "gathered.safetensors")


def _write_margins(run: RunDir, identity: Identity, state: State, asides: Asides) -> dict[str, str]:
    """Write this worker's margins, or within an epoch its proposals. Collective.

    Returns the digests of these files, and of the margins that a checkpoint within an epoch continues from.
    """
    store, position = state.store, state.position
    if store is None:
        return {}
    if position.step == 0:
        with naming(asides.margins) as directory:
            digests = store.save(directory, state.labels, identity.fingerprint)
        return {_relative(run, _margins_dir(run, position) / name): digest for name, digest in digests.items()}
    file = asides.checkpoint / f"pending-{store.rank:04d}-of-{store.world:04d}.safetensors"
    with naming(file):
        safetensors.save_file({k: v.cpu().contiguous() for k, v in store.pending()._asdict().items()}, file)
        sync(file)  # here: another node cannot, and would not hear of an error
    digests = {_relative(run, run.checkpoints_dir / position.name / file.name): _digest(file)}
    if store.rank == 0 and position.epoch:
        # They are part of this checkpoint: damage to them must be noticed.
        before = _read_state(run.checkpoints_dir / Position(position.epoch).name)
        digests |= {name: digest for name, digest in before["files"].items() if name.startswith("margins/")}
    return digests


def _write_tensors(aside: Path, state: State, gathered: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Write what all workers have in common; returns the optimiser's parameter groups, which go into state.json."""
    with naming(aside / "model.safetensors") as file:
        tensors.save(state.result, file)
    if state.average is not None:
        with naming(aside / "raw.safetensors") as file:
            tensors.save(state.network, file)
    packed = state.optimizer.state_dict()
    moments = {
        f"{number}.{key}": torch.as_tensor(value).contiguous()
        for number, entry in packed["state"].items()
        for key, value in entry.items()
        if value is not None
    }
    with naming(aside / "optimizer.safetensors") as file:
        safetensors.save_file(moments, file)
    if gathered:
        with naming(aside / "gathered.safetensors") as file:
            safetensors.save_file({k: v.cpu() for k, v in gathered.items()}, file)
    groups: list[dict[str, Any]] = packed["param_groups"]
    return groups


# ---- reading


def newest(run: RunDir, identity: Identity) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint, or None; and a sentence for each newer one that is damaged or missing.

    One that another node has written is waited for, as a list of a directory may be old on shared storage.

    Raises:
        Damaged: checkpoints exist but none is whole and of this configuration and these data.
    """
    known = noted.newest(run)
    complaints = [f"{known} is missing"] if known and not known.exists() else []
    # A list of the directory may lack one that can be reached by its name.
    places = {*run.checkpoints_dir.glob("epoch=*"), *([known] if known and known.exists() else [])}
    for path in sorted(places, key=place_in_run, reverse=True):
        try:
            found = _whole(run, path, identity)
        except Damaged as error:
            complaints.append(str(error))
        else:
            return found, list(dict.fromkeys(complaints))
    if complaints:
        # Several checkpoints may need the same file.
        said = "; ".join(dict.fromkeys(complaints))
        raise Damaged(f"{said}. No whole checkpoint is left: restore one from a copy, or start a new run")
    return None, []


def result_of(run: RunDir, identity: Identity, epoch: int) -> Checkpoint:
    """The checkpoint after ``epoch`` complete epochs, for ``restore_result``. Raises Damaged."""
    return _whole(run, run.checkpoints_dir / Position(epoch).name, identity, without="optimizer.safetensors")


def _whole(run: RunDir, path: Path, identity: Identity, without: str = "none") -> Checkpoint:
    """The checkpoint in ``path``, every file checked but the one that may have been pruned. Raises Damaged."""
    state = _read_state(path)
    if state["fingerprint"] != identity.fingerprint:
        raise Damaged(f"{path} does not belong to the configuration in {run.path / 'config.yaml'}")
    _check_data(path, state, identity.data)
    names = tuple(name for name in state["files"] if not name.endswith(f"/{without}"))
    for name in names:
        _check(run.path / name, state["files"][name])
    position = Position(int(state["epoch"]), int(state["step"]))
    margins = _margins_dir(run, position)
    return Checkpoint(path, position, margins, dict(state["counters"]), state["scaler"], names)


def files(run: RunDir, checkpoint: Checkpoint) -> Iterator[Path]:
    """Every file of a whole checkpoint, state.json first."""
    yield checkpoint.path / "state.json"
    yield from (run.path / name for name in checkpoint.files)


def restore(checkpoint: Checkpoint, state: State) -> None:
    """Bring a fresh ``state`` to where the checkpoint stands, on any number of workers. Raises OSError, ValueError."""
    state.position = checkpoint.position
    restore_result(checkpoint, state)
    _restore_optimizer(checkpoint, state.optimizer)
    if checkpoint.scaler:
        state.scaler.load_state_dict(checkpoint.scaler)
    if checkpoint.position.step:
        state.counters.load_state_dict(checkpoint.counters)
    if state.store is not None:
        _restore_pending(checkpoint, state.store)
    gathered = checkpoint.path / "gathered.safetensors"
    if state.equilibrium is not None and gathered.exists():
        state.equilibrium.load_state_dict(_load(gathered))


def restore_result(checkpoint: Checkpoint, state: State) -> None:
    """Give ``state`` the weights and margins of the checkpoint; all else stays. Raises OSError, ValueError."""
    tensors.load(state.result, checkpoint.path / "model.safetensors")
    if state.average is not None:
        tensors.load(state.network, checkpoint.path / "raw.safetensors")
    if state.store is not None and checkpoint.position.epoch:
        state.store = MarginStore.load(checkpoint.margins, device=state.store.device)
        held, samples = state.store.num_samples, len(state.labels)
        if held != samples:
            raise ValueError(f"{checkpoint.margins} has the margins of {held} samples, not {samples}")


def _restore_optimizer(checkpoint: Checkpoint, optimizer: torch.optim.Optimizer) -> None:
    entries: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _load(checkpoint.path / "optimizer.safetensors").items():
        number, _, key = name.partition(".")
        entries.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({"state": entries, "param_groups": _read_state(checkpoint.path)["optimizer"]})


def _restore_pending(checkpoint: Checkpoint, store: MarginStore) -> None:
    """Give each worker the proposals of an unfinished epoch for the samples it owns, whoever made them."""
    # By name: one that a listing of the directory does not show would silently leave margins as they were.
    for file in (checkpoint.path / Path(name).name for name in checkpoint.files if "/pending-" in name):
        _check_exists(file)
        pending = Proposals(**{k: v.to(store.device) for k, v in _load(file).items()})
        own = pending.take((pending.indices >= store.first) & (pending.indices < store.last))
        store.propose(own.indices, own.values, correct=own.correct, crossed=own.crossed)


def weights_file(run: RunDir, epoch: int, data: str, name: str = "model.safetensors") -> Path:
    """Whole weights after ``epoch`` complete epochs on the data with this digest. Raises Damaged."""
    file = run.checkpoints_dir / Position(epoch).name / name
    _check_exists(file)
    state = _read_state(file.parent)
    _check(file, state["files"].get(_relative(run, file)))
    _check_data(file.parent, state, data)
    return file


def digest_of(file: Path) -> str | None:
    """The SHA-256 that a file of weights should have, as its state.json says. Raises Damaged."""
    found: str | None = _read_state(file.parent)["files"].get(f"checkpoints/{file.parent.name}/{file.name}")
    return found


def load_weights(run: RunDir, epoch: int, data: str, network: nn.Module, *, raw: bool = False) -> None:
    """Load the weights of ``weights_file`` in place; raw: in place of their average. Raises Damaged."""
    tensors.load(network, weights_file(run, epoch, data, "raw.safetensors" if raw else "model.safetensors"))


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


def _margins_dir(run: RunDir, position: Position) -> Path:
    """The margins after the complete epochs of ``position``."""
    return run.margins_dir / Position(position.epoch).name


def _relative(run: RunDir, file: Path) -> str:
    return file.relative_to(run.path).as_posix()


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise Damaged(f"{file} cannot be read ({error.strerror})") from error


def _check_exists(file: Path) -> None:
    if not file.exists():
        raise Damaged(f"{file} is missing")


def _check(file: Path, digest: str | None) -> None:
    _check_exists(file)
    if _digest(file) != digest:
        raise Damaged(f"{file} is damaged (its checksum differs from the one in state.json)")


def _check_data(path: Path, state: dict[str, Any], data: str) -> None:
    if state["data"] != data:
        raise Damaged(f"{path} was trained on data that differ from the present ones")
