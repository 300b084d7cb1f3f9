"""Hand a plan's rows to SLURM: in arrays that it takes, as many as it takes now, the rest later."""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cluster import sbatch, slurm, snapshot
from cluster.plan import Plan
from cluster.records import Row, RowRecord, write_private
from cluster.task import Task
from ima_dist.config.errors import ConfigError
from ima_dist.rundir.files import read_json

# Words of a refusal that fewer rows may avoid: limits of SLURM's own, and of sites' plugins.
_TOO_MANY = re.compile(r"limit|too many|maxim|exceed|job array spec|policy", re.IGNORECASE)
# Rows of one array where SLURM does not say how many it takes.
_USUAL_ARRAY = 1000


def begin(plan: Plan) -> "Submission":
    """Write the records of a new submission, none of whose rows SLURM has yet. Raises ConfigError."""
    os.makedirs(plan.folder, mode=0o700)
    shutil.copyfile(plan.job_file, plan.folder / "job.yaml")
    code = snapshot.take(plan.folder, plan.configs) if plan.snapshot else None
    said = {
        "name": plan.name, "submitted": time.time(), "partition": plan.partition.asked(plan.nodes).get("partition"),
        "nodes": plan.nodes, "code": code, "request": request(plan), "here": os.getcwd(),
    }  # fmt: skip
    rows = [{**asdict(row), "id": ""} for row in plan.rows]
    write_private(plan.folder / "job.json", {**said, "rows": rows, "table": plan.table})
    return Submission(plan)


def request(plan: Plan) -> str:
    """Digest of what is asked for; equal if the same command is given again."""
    commands = [[word.replace(str(plan.folder), "") for word in row.command] for row in plan.rows]
    parts = [plan.job_file.read_text(), commands, plan.partition.model_dump(mode="json"), plan.nodes, plan.at_once]
    return hashlib.sha256(json.dumps([*parts, plan.snapshot]).encode()).hexdigest()


def unfinished(plan: Plan) -> Plan | None:
    """An earlier submission of the same plan of which SLURM has not taken all rows yet."""
    asked = request(plan)
    for file in sorted(plan.folder.parent.glob("*/job.json")):
        said = read_json(file) or {}
        if said.get("request") == asked and _waiting(file.parent, said):
            rows = [Row(row["name"], row["command"], row["run"]) for row in said["rows"]]
            return replace(plan, name=said["name"], folder=file.parent, rows=rows, table=said["table"])
    return None


def _waiting(folder: Path, said: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows that are still to be submitted; one that was cancelled before has a result."""
    return [row for row in said["rows"] if not row["id"] and RowRecord(folder, row["name"]).result() is None]


def largest_array() -> int:
    """Rows that one array may have: SLURM's MaxArraySize, which is one more than the largest index."""
    try:
        found = re.search(r"MaxArraySize\s*=\s*(\d+)", slurm.command("scontrol", "show", "config"))
    except ConfigError:
        found = None
    return max(1, int(found[1])) if found else _USUAL_ARRAY


class Submission:
    """A plan of which SLURM has taken some rows. refusal: why it does not take the next, "" if it has not refused."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.refusal = plan, ""
        self._largest = largest_array()
        self._room: int | None = None
        self._said: dict[str, Any] = read_json(plan.folder / "job.json") or {}

    def held_back(self) -> list[str]:
        """Names of the rows that are still to be submitted."""
        return [row["name"] for row in _waiting(self.plan.folder, self._said)]

    def send(self, ended: Collection[str] = ()) -> list[str]:
        """Submit what SLURM takes; the ids of these rows.

        ended: names of the rows that have ended. After a refusal nothing is tried until half of the rows that SLURM
        holds have ended. Raises ConfigError if SLURM refuses the first row of all.
        """
        rows = self._said["rows"]
        alive = [row for row in rows if row["id"] and row["name"] not in ended]
        if self._room is not None and len(alive) > self._room // 2:
            return []
        size = self._largest if self._room is None else max(1, min(self._largest, self._room - len(alive)))
        sent: list[str] = []
        self.refusal = ""
        waiting = _waiting(self.plan.folder, self._said)
        while waiting:
            part = waiting[:size]
            try:
                ids = self._submit(part, alive[-1]["id"].split("_")[0] if alive else "")
            except ConfigError as error:
                if len(part) > 1 and _TOO_MANY.search(str(error)):
                    size = len(part) // 2
                    continue
                if not any(row["id"] for row in rows):
                    raise
                self.refusal, self._room = str(error), max(len(alive), 1)
                break
            sent += ids
            alive += part
            waiting = waiting[len(part) :]
            if self._room is not None and len(alive) >= self._room:
                # As many as before: not asked for more now, but the limit may be further up.
                self._room += max(1, self._room // 4)
                break
        return sent

    def _submit(self, rows: list[dict[str, Any]], after: str) -> list[str]:
        """Submit rows as one array. after: the array that must have ended before, so that not too many run."""
        plan, p = self.plan, self.plan.partition
        text = sbatch.job_script(
            p, plan.nodes, plan.name, plan.folder, len(rows), plan.at_once, after, exports_of(self._said)
        )
        tasks = [
            Task(plan.folder, Row(row["name"], row["command"], row["run"]), time.time(), p.notice, p.join_timeout,
                 p.interface, p.temp)
            for row in rows
        ]  # fmt: skip
        ids = sbatch.send(text, plan.folder, tasks)
        for row, number in zip(rows, ids, strict=True):
            row["id"] = number
        write_private(plan.folder / "job.json", self._said)
        return ids


def exports_of(said: dict[str, Any]) -> list[str]:
    """Lines of the batch script with which a job takes its code from the submission's copy, if it has one."""
    code = said.get("code")
    return snapshot.exports(code["path"], Path(said["here"])) if code else []
