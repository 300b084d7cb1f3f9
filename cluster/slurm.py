"""Ask SLURM, through its commands. Works without accounting (sacct)."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from datetime import datetime

from ima_dist.config.errors import ConfigError

_TIMEOUT = 60.0


# The user's variables that change what these commands print, or leave out.
_FORMS = ("SLURM_TIME_FORMAT", "SQUEUE_", "SINFO_", "SACCT_", "SCONTROL_", "SACCTMGR_")
_MOST_WORDS = 300


def command(*words: str, timeout: float = _TIMEOUT, environment: Mapping[str, str] | None = None) -> str:
    """Output of a SLURM command. Raises ConfigError with its error message, in one line.

    timeout: seconds to wait for an answer. environment: default: this process's.
    """
    if shutil.which(words[0]) is None:
        raise ConfigError(f"The command {words[0]} is missing: run this on a login node of the SLURM cluster.")
    env = {k: v for k, v in (environment or os.environ).items() if not k.startswith(_FORMS)}
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, env=env)
    except subprocess.TimeoutExpired:
        silent = f"{words[0]} did not answer within {timeout:.0f} s: SLURM's controller may be down."
        raise ConfigError(silent) from None
    if done.returncode:
        said = " ".join(done.stderr.split())[:_MOST_WORDS] or f"status {done.returncode}"
        raise ConfigError(f"{' '.join(words)}: {said.rstrip('.')}.")
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


def last_state(job_id: str) -> str:
    """State of a job that is no longer in the queue: of the controller, which forgets it after minutes, or of the
    accounting; "" if neither knows."""
    if state := job(job_id).get("JobState"):
        return state
    with contextlib.suppress(ConfigError):
        lines = command("sacct", "--noheader", "--allocations", "--parsable2", "--format=State", "-j", job_id)
        return lines.strip().splitlines()[-1] if lines.strip() else ""
    return ""


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
