"""The script that sbatch gets, and the call of sbatch.

submitit runs our function on each node (``python -m submitit.core._submit``). The script is our own, because every
directive of it can be replaced or left out.
"""

import os
import re
import shlex
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster import slurm
from cluster.directives import Directives, lines
from cluster.partitions import Partition
from cluster.records import REQUEUE_FILE
from ima_dist.config.errors import ConfigError
from ima_dist.rundir.files import write_text_atomic

# Of a surrounding allocation, these say where SLURM is.
_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS")

# Runs where SLURM's commands are, also if the Python of the job has none (in a container). A trap, so that the shell
# outlives SLURM's SIGTERM; srun and what it runs get the signal as always.
_BEFORE = """\
trap : TERM
job=$SLURM_JOB_ID
if [ -n "${{SLURM_ARRAY_TASK_ID:-}}" ]; then job=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID; fi
export {variable}={folder}/requeue-$job
rm -f "${variable}"
# With --export=NONE srun would start its tasks without this environment.
unset SLURM_EXPORT_ENV
export SUBMITIT_EXECUTOR=slurm
status=0"""
_AFTER = """\
if [ -e "${variable}" ]; then
    row=$(cat "${variable}")
    for pause in 1 2 5 10 20 30 60 60; do
        scontrol requeue "$job" && exit 0
        sleep $pause
    done
    mv {folder}/"$row"/refused.json {folder}/"$row"/result.json
fi
exit $status"""


def script(
    asked: Directives, partition: Partition, folder: Path, command: str, output: str, exports: Sequence[str] = ()
) -> str:
    """A batch script that runs ``command`` (for the shell, after the partition's python) in a task on each node.

    asked: the directives. folder: of the records. output: of srun, with %t for the number of the task. exports: lines
    after the partition's own.
    """
    python = partition.python or shlex.quote(sys.executable)
    cpus = asked.get("cpus-per-task")
    # srun does not take the CPUs of a task from sbatch since SLURM 22.05.
    words = ["srun", "--unbuffered", "--output", output, "--export=ALL", *([f"--cpus-per-task={cpus}"] if cpus else [])]
    names = {"folder": shlex.quote(str(folder)), "variable": REQUEUE_FILE}
    return "\n".join(
        [
            "#!/bin/bash",
            *lines(asked),
            *partition.setup,
            *exports,
            _BEFORE.format(**names),
            f"{shlex.join([*words, *partition.srun])} {python} -u {command} || status=$?",
            _AFTER.format(**names),
            "",
        ]
    )


def job_script(
    partition: Partition, nodes: int, name: str, folder: Path, count: int, at_once: int, after: str = "",
    exports: Sequence[str] = (),
) -> str:  # fmt: skip
    """The script of an array of ``count`` rows (a single job for one), of which ``at_once`` run at a time.

    after: id of the array that must have ended before; "" for none. exports: as for ``script``.
    """
    asked = partition.asked(nodes)
    many = count > 1
    log = str(folder / ("%A_%a_%t_log.out" if many else "%j_%t_log.out"))
    before = ",".join(filter(None, [str(asked.get("dependency", "")), after and f"afterany:{after}"]))
    directives: Directives = {
        "job-name": name,
        "open-mode": "append",
        "output": log.replace("%t", "0"),
        **({"array": f"0-{count - 1}%{min(at_once, count)}"} if many else {}),
        **asked,
        **({"dependency": before} if before else {}),
    }
    command = f"-m submitit.core._submit {shlex.quote(str(folder))}"
    return script(dict(sorted(directives.items())), partition, folder, command, log, exports)


def clean_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment for sbatch: inside an allocation without what SLURM has set for that.

    Otherwise the allocation's memory, GPUs and so on would be taken for options of the new job.
    """
    inside = "SLURM_JOB_ID" in variables
    return {
        name: value
        for name, value in variables.items()
        if not (inside and name.startswith(("SLURM_", "SBATCH_", "SRUN_")) and name not in _KEPT)
    }


def send(text: str, folder: Path, tasks: Sequence[Callable[[], Any]]) -> list[str]:
    """Submit a script whose rows run ``tasks``; SLURM's id of each. Raises ConfigError if SLURM refuses."""
    from submitit.core.utils import DelayedSubmission

    file = folder / f"{uuid.uuid4().hex}.sh"
    write_text_atomic(file, text)
    try:
        said = slurm.command("sbatch", str(file), environment=clean_environment(os.environ))
    except ConfigError as error:
        file.unlink(missing_ok=True)
        raise ConfigError(f"sbatch refused the job: {str(error).removeprefix(f'sbatch {file}: ')}") from None
    found = re.search(r"job (\d+)", said)
    if not found:
        raise ConfigError(f"sbatch gave no id for the job but said {said.strip()!r}: see squeue --me.")
    job = found[1]
    file.rename(folder / f"{job}_submission.sh")
    ids = [f"{job}_{i}" for i in range(len(tasks))] if len(tasks) > 1 else [job]
    for number, task in zip(ids, tasks, strict=True):
        # A job that starts at once waits a minute for its file.
        DelayedSubmission(task).dump(folder / f"{number}.tmp")
        (folder / f"{number}.tmp").rename(folder / f"{number}_submitted.pkl")
    return ids
