"""Ask SLURM, through its commands. Works without accounting (sacct)."""

from __future__ import annotations

import shutil
import subprocess
from datetime import datetime

from ima_dist.config.errors import ConfigError

_TIMEOUT = 60


def command(*words: str) -> str:
    """Output of a SLURM command. Raises ConfigError with its complaint, in one sentence."""
    if shutil.which(words[0]) is None:
        raise ConfigError(f"The command {words[0]} is missing: run this on a login node of the SLURM cluster.")
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_TIMEOUT)
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{words[0]} gave no answer within {_TIMEOUT} s: SLURM's controller may be down.") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise ConfigError(f"{' '.join(words)}: {lines[0] if lines else f'status {done.returncode}'}.")
    return done.stdout


def fields(text: str) -> dict[str, str]:
    """``Key=value`` words of a line of scontrol -o."""
    return dict(word.split("=", 1) for word in text.split() if "=" in word)


def job(job_id: str) -> dict[str, str]:
    """What the controller says of a job; empty if it does not know it or does not answer."""
    try:
        return fields(command("scontrol", "--oneliner", "show", "job", job_id))
    except ConfigError:
        return {}


def node_address(name: str) -> str:
    """Address or name under which SLURM itself reaches a node."""
    try:
        return fields(command("scontrol", "--oneliner", "show", "node", name)).get("NodeAddr", name)
    except ConfigError:
        return name


def end_time(job_id: str) -> float | None:
    """Unix time at which the job's time limit ends; None if it is not known or has none."""
    try:
        return datetime.fromisoformat(job(job_id).get("EndTime", "")).timestamp()
    except ValueError:
        return None


def queue(*options: str) -> dict[str, dict[str, str]]:
    """The user's jobs that SLURM still holds: id (``12``, or ``12_3`` in an array) -> state, node, reason.

    Raises ConfigError if SLURM cannot be reached.
    """
    names = ("id", "state", "node", "reason")
    lines = command("squeue", "--noheader", "--me", "--array", "--format=%i|%T|%N|%r", *options).splitlines()
    rows = [dict(zip(names, line.split("|"), strict=False)) for line in lines]
    return {row["id"]: row for row in rows}
