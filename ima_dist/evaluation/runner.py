"""Attack a network's test samples on all workers, and continue where an interrupted evaluation stopped.

Every worker takes a block of the samples that are left to do and writes the outcomes of each batch to
``evaluation/<attack>-…/`` in the run directory as soon as it has been attacked at all noise levels. These files are
read at the start, whatever the number of workers was, so an interruption costs at most one batch per worker.
The workers finish one attack together before they begin the next, so that its outcomes can be stored.

Storage that nodes share may show a node an old list of a directory's files. So the workers tell each other the names
of the files, and worker 0 waits until it sees them.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from ima_dist.config.attacks import ATTACK_TABLE, SMOOTHING
from ima_dist.config.errors import ConfigError, first_line
from ima_dist.config.schema import Config
from ima_dist.config.smoothing import sigma_of
from ima_dist.core import distributed
from ima_dist.core.distributed import Interrupted
from ima_dist.data.types import Samples, Taken
from ima_dist.evaluation.batch import Met, add_up, attack_batch
from ima_dist.evaluation.smoothing import certify_batch, samples_at_once
from ima_dist.evaluation.stopping import Stop, stoppable
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import read_parquet, wait_for
from ima_dist.rundir.lease import LeaseLost


def evaluate(
    network: nn.Module,
    test: Samples,
    config: Config,
    run: RunDir,
    *,
    samples: torch.Tensor,
    epoch: int,
    digest: str,
    batch_size: int,
    on_finished: Callable[[pa.Table, list[str], Met], None],
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, str]:
    """Attack test samples at every noise level, with one attack after the other. Collective.

    Args:
        samples: ascending indices (M,) of the test samples to attack, on the CPU.
        epoch: complete epochs behind the network's weights. digest: of the data (``DataSet.digest``).
        batch_size: samples attacked at once.
        on_finished: called on worker 0 after each attack, with a row per sample, loss and noise level, sorted,
            the names of the warnings of ``autoattack.remarks``, and what the attack met.
        should_stop: asked by every worker, so it must look at something that all can see.
        on_progress: told (samples attacked, samples to attack) of this worker, summed over the attacks.

    Returns:
        Why an attack failed, by attack, on every worker; {} if none did. The others are not affected.

    Raises:
        Interrupted: a worker was asked to stop; what was finished is kept for the next call.
        LeaseLost: another process has become the run's writer.
        OSError: outcomes cannot be written; on the worker that met it. Or worker 0 does not see those of another.
    """
    # Long: a third of it explains its arguments.
    places = {attack: _place(run, attack, config, epoch, digest) for attack in config.eval.attacks}
    found = _gathered([file for place in places.values() for file in place.glob("from-*.parquet")])
    # One worker reads: another may be unable to, and all must have the same samples left to do.
    kept = distributed.together(lambda: _kept(run, found))
    files = {attack: [file for file in kept if file.parent == place] for attack, place in places.items()}
    mine = {attack: _mine(samples, [i for file in files[attack] for i in kept[file]]) for attack in places}
    count, finished = sum(map(len, mine.values())), 0
    on_progress(finished, count)
    failed = {}
    for attack, place in places.items():

        def attack_mine(attack: str = attack, place: Path = place) -> None:
            nonlocal finished
            stopping = stoppable(network, lambda: should_stop() or _lost(run))
            parts = _parts(attack, mine[attack], config, batch_size)
            with stopping, contextlib.closing(test.batches(parts)) as batches:
                for batch in batches:
                    where = (config, run, place, epoch, batch_size)
                    files[attack].append(_attack_batch(attack, network, test, batch, *where))
                    on_progress(finished := finished + len(batch.indices), count)

        reason = _reason(attack_mine, run)
        if reason:
            failed[attack] = reason
        else:
            written = _gathered(files[attack])
            distributed.together(lambda written=written: on_finished(*_found(written, samples)))  # type: ignore[misc]
    return failed


def _parts(attack: str, mine: torch.Tensor, config: Config, batch_size: int) -> Sequence[torch.Tensor]:
    """The samples between two files."""
    size = samples_at_once(config, batch_size) if attack == SMOOTHING else batch_size
    return mine.split(size) if len(mine) else ()


def _reason(attack_mine: Callable[[], None], run: RunDir) -> str | None:
    """Why an attack failed on any worker, or None. Collective. Raises as ``evaluate`` does."""
    stopped, reason = False, None
    try:
        attack_mine()
    except Stop:
        stopped = True
    except (OSError, LeaseLost):
        raise
    except Exception as error:
        reason = first_line(error)
    answers = distributed.gather_objects((stopped, reason))
    distributed.together(run.check_lease)
    if any(stopped for stopped, _ in answers):
        raise Interrupted("stopped during the evaluation")
    return next((reason for _, reason in answers if reason), None)


def _attack_batch(
    attack: str,
    network: nn.Module,
    test: Samples,
    batch: Taken,
    config: Config,
    run: RunDir,
    place: Path,
    epoch: int,
    at_once: int,
) -> Path:
    """Attack or certify a batch of ``test``, and write the outcomes; returns the file."""
    indices, x, y = batch
    part = indices.cpu()
    # Each sample is done once, so the first index of a batch is a unique name.
    file = place / f"from-{int(part[0]):09d}.parquet"
    if attack == SMOOTHING:
        run.write_parquet(file, certify_batch(network, batch, config, epoch, at_once))
        return file
    found = attack_batch(attack, network, x, y, part, config, test.box, epoch)
    about = {"remarks": " ".join(sorted(found.remarks)), "met": json.dumps(list(found.met.items()))}
    run.write_parquet(file, found.outcomes.replace_schema_metadata(about))
    return file


def _joined(files: list[Path], samples: torch.Tensor) -> pa.Table:
    """The outcomes of ``samples`` for one attack, sorted, from the files of all workers. Raises FileNotFoundError."""
    wait_for(files)
    total, missing = len(samples), np.zeros(int(samples.max()) + 1, dtype=bool)
    missing[samples.numpy()] = True
    parts = []
    for part in map(read_parquet, files):
        index = part["index"].to_numpy()
        # An earlier call may have begun with other samples, or not have seen all files of the one before it.
        fresh = (index < len(missing)) & missing[np.minimum(index, len(missing) - 1)]
        missing[index[fresh]] = False
        parts.append(part.filter(pa.array(fresh)))
    # An earlier version, which was interrupted, has written neither implied rows nor probabilities.
    table = pa.concat_tables(parts, promote_options="default")
    # One outcome of every sample per loss and level: a duplicate or gap would falsify the accuracy.
    by = [name for name in ("loss", "noise") if name in table.column_names]
    counts = table.group_by(by).aggregate([("index", "count_distinct"), ("index", "count")])
    for row in counts.to_pylist():
        distinct, count = row["index_count_distinct"], row["index_count"]
        if not distinct == count == total:
            raise RuntimeError(f"{count} outcomes of {distinct} samples, not {total}")
    return table.sort_by([(name, "ascending") for name in (*by, "index")]).replace_schema_metadata()


def _found(files: list[Path], samples: torch.Tensor) -> tuple[pa.Table, list[str], Met]:
    """The arguments of ``on_finished``: outcomes, warnings, and what the attack met."""
    return _joined(files, samples), _remarks(files), _met(files)


def _remarks(files: list[Path]) -> list[str]:
    """The names of the warnings that were logged while the batches in these files were attacked."""
    found = [pq.read_schema(file).metadata or {} for file in files]
    return sorted({name for metadata in found for name in metadata.get(b"remarks", b"").decode().split()})


def _met(files: list[Path]) -> Met:
    """What the attack met in the batches in these files; {} if an earlier version attacked one of them."""
    found = []
    for file in files:
        written = (pq.read_schema(file).metadata or {}).get(b"met")
        if written is None:
            return {}
        found += json.loads(written)
    return add_up(found)


def forget(run: RunDir, config: Config, epoch: int, digest: str, failed: Collection[str] = ()) -> None:
    """Remove the files of single batches, once all outcomes are saved; one worker calls it.

    Those of attacks that ``failed`` are kept: the next evaluation continues with them.
    """
    for attack in set(config.eval.attacks) - set(failed):
        run.check_lease()
        shutil.rmtree(_place(run, attack, config, epoch, digest), ignore_errors=True)
    with contextlib.suppress(OSError):  # another evaluation's batches may be left
        (run.path / "evaluation").rmdir()


def _lost(run: RunDir) -> bool:
    try:
        run.check_lease()
    except LeaseLost:
        return True
    return False


def _place(run: RunDir, attack: str, config: Config, epoch: int, digest: str) -> Path:
    """Directory for the batches of one attack; its name changes with every setting that matters."""
    if attack == SMOOTHING:
        own: list[object] = [sigma_of(config), config.smoothing.draws, config.smoothing.alpha]
    else:
        version = ATTACK_TABLE[attack].version
        own = [getattr(config.eval, name) for name in ("noise", "steps", "step_scale", "spsa_samples")]
        own += [version] if version > 1 else []
    name = hashlib.sha256(json.dumps([config.fingerprint(), digest, *own]).encode()).hexdigest()[:12]
    return run.path / "evaluation" / f"{attack}-epoch={epoch:04d}-{name}"


def _gathered(files: list[Path]) -> list[Path]:
    """The files that any worker knows, sorted. Collective."""
    return sorted({file for part in distributed.gather_objects(files) for file in part})


def _kept(run: RunDir, files: list[Path]) -> dict[Path, list[int]]:
    """The samples in each file that can be read; one that cannot is removed, and its samples are done again.

    Raises LeaseLost.
    """
    kept = {}
    for file in files:
        try:
            kept[file] = read_parquet(file)["index"].unique().to_pylist()
        except FileNotFoundError:
            continue  # another worker's list was old
        except ConfigError:
            run.remove(file)
    return kept


def _mine(samples: torch.Tensor, done: list[int]) -> torch.Tensor:
    """This worker's block of the ``samples`` that are left to do."""
    left = samples[~torch.isin(samples, torch.tensor(done, dtype=torch.int64))]
    return distributed.share_of_batch(left)
