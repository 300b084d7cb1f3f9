"""Ask SLURM, through its commands. Works without accounting (sacct)."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from datetime import datetime

from ima_dist.config.errors import ConfigError

_TIMEOUT = 60.0


def command(*words: str, timeout: float = _TIMEOUT) -> str:
    """Output of a SLURM command. Raises ConfigError with its error message, in one sentence.

    timeout: seconds to wait for an answer.
    """
    if shutil.which(words[0]) is None:
        raise ConfigError(f"The command {words[0]} is missing: run this on a login node of the SLURM cluster.")
    # The variable changes how times are written.
    environment = {name: value for name, value in os.environ.items() if name != "SLURM_TIME_FORMAT"}
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, env=environment)
    except subprocess.TimeoutExpired:
        silent = f"{words[0]} did not answer within {timeout:.0f} s: SLURM's controller may be down."
        raise ConfigError(silent) from None
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise ConfigError(f"{' '.join(words)}: {lines[0] if lines else f'status {done.returncode}'}.")
    return done.stdout


def fields(line: str) -> dict[str, str]:
    """``Key=value`` words of a line of scontrol -o."""
    return dict(word.split("=", 1) for word in line.split() if "=" in word)


def own_job() -> str:
    """Id of the job that this process is part of, ``12``, or ``12_3`` for an element of an array."""
    array, element = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{element}" if array and element else os.environ.get("SLURM_JOB_ID", "0")


def job(job_id: str, timeout: float = _TIMEOUT) -> dict[str, str]:
    """What the controller says about a job (``12``, ``12_3``); {} if it does not know it or does not answer."""
    with contextlib.suppress(ConfigError):
        return own_record(command("scontrol", "--oneliner", "show", "job", job_id, timeout=timeout), job_id)
    return {}


def own_record(text: str, job_id: str) -> dict[str, str]:
    """The job's own record in the output of ``scontrol --oneliner show job``, {} if it is not there.

    One element of an array has the array's own id as its job id, and for that id scontrol shows all elements.
    """
    array, _, element = job_id.partition("_")
    for record in map(fields, text.splitlines()):
        ours = (record.get("ArrayJobId"), record.get("ArrayTaskId")) == (array, element)
        if ours if element else record.get("JobId") == job_id:
            return record
    return {}


def end_time(record: Mapping[str, str]) -> float | None:
    """Unix time at which a job's time limit ends, by its record; None if that is not known or there is no limit."""
    with contextlib.suppress(ValueError):
        return datetime.fromisoformat(record.get("EndTime", "")).timestamp()
    return None


def node_address(name: str) -> str:
    """Address or name under which SLURM itself reaches a node."""
    with contextlib.suppress(ConfigError):
        return fields(command("scontrol", "--oneliner", "show", "node", name)).get("NodeAddr", name)
    return name


def queue(*options: str) -> dict[str, dict[str, str]]:
    """The user's jobs that SLURM still holds: id (``12``, or ``12_3`` in an array) -> state, node, reason.

    Raises ConfigError if SLURM cannot be reached.
    """
    names = ("id", "state", "node", "reason")
    lines = command("squeue", "--noheader", "--me", "--array", "--format=%i|%T|%N|%r", *options).splitlines()
    rows = [dict(zip(names, line.split("|"), strict=False)) for line in lines]
    return {row["id"]: row for row in rows}
