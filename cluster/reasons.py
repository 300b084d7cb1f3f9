"""Why a job waits, by SLURM's reason, as people say it, and what to do about it."""

import re

_WORDS = {
    "Priority": "jobs of higher priority come first",
    "Resources": "waits for free nodes",
    "Dependency": "waits for other rows or jobs to end",
    "DependencyNeverSatisfied": "can never start, because a job that it depends on has failed: cancel it",
    "JobArrayTaskLimit": "waits for other rows to end (--at-once)",
    "BeginTime": "starts later: after a requeue SLURM waits a minute or two",
    "JobHeldUser": "is held: scontrol release {job}",
    "JobHeldAdmin": "is held by an administrator: ask them",
    "JobHoldMaxRequeue": "was requeued too often and is held: scontrol release {job}",
    "Reservation": "waits until its reservation begins",
    "ReservationDeleted": "its reservation is gone: cancel it and submit it without",
    "BadConstraints": "no node has what it asks for: cancel it, and correct partitions.toml",
    "PartitionNodeLimit": "asks for more nodes than the partition gives or has up: use fewer --nodes",
    "PartitionTimeLimit": "asks for more time than the partition gives: cancel it, and use a shorter --time",
    "PartitionDown": "the partition is down: waits until it is up",
    "PartitionInactive": "the partition is inactive: ask the administrators, or use another",
    "InvalidAccount": "the account is not valid: cancel it, and correct --account",
    "InvalidQOS": "the QOS is not valid: cancel it, and correct --qos",
    "AccountNotAllowed": "the partition does not take this account: cancel it, and correct --account",
    "QOSNotAllowed": "the partition does not take this QOS: cancel it, and correct --qos",
    "Licenses": "waits for licences",
    "NodeDown": "a node that it needs is down",
    "Cleaning": "SLURM is cleaning up after its last start",
    "MaxMemPerLimit": "asks for more memory than is allowed: cancel it, and lower memory in partitions.toml",
}
_RESOURCES = {
    "GRES": "GPUs", "Gres": "GPUs", "Cpu": "CPUs", "CPU": "CPUs", "Mem": "memory", "Node": "nodes",
    "Billing": "billing units", "Energy": "energy", "BB": "burst buffer", "Wall": "time", "License": "licences",
}  # fmt: skip


def words_of(reason: str, job: str) -> str:
    """What the reason of a waiting job means, with the reason itself in brackets where that helps a search.

    reason: as squeue shows it, "" or "None" for none yet. job: its id.
    """
    name = re.split(r"[,\s(]", reason.strip("()"))[0]
    if name in ("", "None"):
        return "SLURM has not looked at it yet"
    if name == "ReqNodeNotAvail":
        return f"nodes that it needs are down, drained or reserved for maintenance: waits for them ({reason})"
    if re.search("launch.failed.*held", reason, re.IGNORECASE):
        return f"a node could not start it, and it is held: scontrol release {job}"
    if name in _WORDS:
        return f"{_WORDS[name].format(job=job)} ({name})"
    limit = re.fullmatch(r"(Assoc|Association|QOS)(Grp|Max)?(\w*?)(?:Limit)?", name)
    if limit:
        return f"{_limit(limit[1], limit[2] or '', limit[3])} ({name})"
    return reason


def _limit(whose: str, kind: str, what: str) -> str:
    """A limit of the account (Assoc) or QOS: on all of its jobs (Grp), or on each user or job (Max)."""
    owner = "the QOS" if whose == "QOS" else "the account"
    resource = next((word for part, word in _RESOURCES.items() if part in what), "jobs")
    if "PerJob" in what or "PerNode" in what or (kind == "Max" and resource == "time" and "Min" not in what):
        return f"asks for more {resource} than {owner} allows one job: cancel it, and ask for less"
    if kind == "Grp" and (what.endswith(("Min", "Minutes")) or resource in ("billing units", "energy")):
        return f"{owner}'s budget ({resource}) is used up: use another, or ask the administrators"
    whom = "all its users" if kind == "Grp" else "each user"
    return f"waits until other jobs end: {owner} limits the {resource} of {whom} at a time"
