"""More rows than SLURM takes at a time, without SLURM: split into arrays, held back, and submitted later."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cluster import slurm, snapshot, status, submission, submit, watch
from cluster.records import write_private
from ima_dist.config.errors import ConfigError
from ima_dist.rundir.files import read_json

REFUSAL = "sbatch: error: QOSMaxSubmitJobPerUserLimit sbatch: error: Batch job submission failed: Job violates policy"
WORDS = ["many.yaml", "--partition", "v100", "--device", "cpu"]


class Slurm:
    """Takes arrays of at most ``largest`` rows, and at most ``most`` rows together; rows end when told to."""

    def __init__(self, largest: int, most: int) -> None:
        self.largest, self.most = largest, most
        self.held: dict[str, str] = {}  # id of a row -> state
        self.arrays: list[int] = []
        self.scripts: list[str] = []
        self.requeued: list[str] = []
        self.calls = 0

    def command(self, *words: str, **_: object) -> str:
        self.calls += words[0] == "sbatch"
        if words[0] == "sbatch":
            return self._sbatch(Path(words[1]).read_text())
        if words[:3] == ("scontrol", "show", "config"):
            return f"MaxArraySize            = {self.largest}\n"
        if words[:2] == ("scontrol", "requeue"):
            if words[2] not in self.held:
                raise ConfigError("scontrol: error: Job has already finished.")
            self.requeued.append(words[2])
        if words[0] == "squeue":
            return "".join(f"{row}|{state}||Priority\n" for row, state in self.held.items())
        if words[0] == "scancel":
            for row in words[1:]:
                self.held.pop(row, None)
        return ""

    def _sbatch(self, text: str) -> str:
        found = re.search(r"--array='?0-(\d+)%", text)
        count = int(found[1]) + 1 if found else 1
        if count > self.largest:
            raise ConfigError("sbatch: error: Batch job submission failed: Invalid job array specification.")
        if len(self.held) + count > self.most:
            raise ConfigError(f"{REFUSAL}.")
        self.arrays.append(count)
        self.scripts.append(text)
        job = str(100 * len(self.arrays))
        self.held.update(dict.fromkeys([f"{job}_{i}" for i in range(count)] if count > 1 else [job], "PENDING"))
        return f"Submitted batch job {job}\n"


@pytest.fixture
def many(tmp_path, monkeypatch):
    """Starts a SLURM, in a directory with a job file of so many rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(snapshot, "take", lambda folder, configs: {"path": str(folder / "code")})
    monkeypatch.setattr(submission, "Task", lambda *entries: None)

    def start(rows: int, largest: int, most: int) -> Slurm:
        lines = "".join(f"  r{i:04d}: {{seed: {i}}}\n" for i in range(rows))
        Path("many.yaml").write_text(f"title: t\npreset: moons\noptions: {{method: ce, epochs: 2}}\nrows:\n{lines}")
        found = Slurm(largest, most)
        monkeypatch.setattr(slurm, "command", found.command)
        return found

    return start


def finish(found: Slurm, folder: Path, count: int) -> None:
    """The oldest rows that SLURM holds end well."""
    names = {row["id"]: row["name"] for row in watch.rows_of(folder)}
    for row in list(found.held)[:count]:
        del found.held[row]
        write_private(folder / names[row] / "result.json", {"status": 0, "message": ""})


def test_1320_rows_are_split_into_arrays(many):
    found = many(1320, 1001, 10**6)
    begun = submit.start(submit.plan("many.yaml", "v100", options={"device": "cpu"}))
    assert found.arrays == [1001, 319]
    # No more than --at-once run: the second array waits for the first.
    assert "dependency" not in found.scripts[0]
    assert "#SBATCH --dependency=afterany:100\n" in found.scripts[1]
    assert not begun.held_back()
    ids = [row["id"] for row in watch.rows_of(begun.plan.folder)]
    assert (ids[0], ids[1000], ids[1001], ids[-1]) == ("100_0", "100_1000", "200_0", "200_318")
    assert len(list(begun.plan.folder.glob("*_submitted.pkl"))) == 1320


def test_130_rows_against_a_limit_with_one_command_left_running(many, monkeypatch, capsys):
    found = many(130, 20, 10)
    folder = Path("runs/cluster/many").absolute()
    most = []

    def sleep(seconds: float) -> None:
        most.append(len(found.held))
        finish(found, folder, 3)

    monkeypatch.setattr(watch.time, "sleep", sleep)
    monkeypatch.setattr(watch.subprocess, "run", lambda *words, **_: None)
    assert submit.main([*WORDS, "--watch", "--ask-every", "-1"]) == 0
    out = capsys.readouterr().out
    assert "rows are held back (sbatch refused the job: sbatch: error: QOSMaxSubmitJobPerUserLimit" in out
    assert sum(found.arrays) == 130
    assert max(most) <= 10
    # Not row by row: SLURM is not asked more often than is of use.
    assert len(found.arrays) <= 30
    assert found.calls <= 80
    rows = watch.rows_of(folder)
    assert len({row["id"] for row in rows}) == len(rows) == 130
    assert all(read_json(folder / row["name"] / "result.json") == {"status": 0, "message": ""} for row in rows)


def test_130_rows_with_a_command_that_is_interrupted_and_given_again(many, capsys):
    found = many(130, 20, 10)
    folder = Path("runs/cluster/many").absolute()
    for _ in range(40):
        assert submit.main(WORDS) == 0
        if "held back" not in capsys.readouterr().out:
            break
        finish(found, folder, 9)
    assert sum(found.arrays) == 130
    assert [path.name for path in folder.parent.iterdir()] == ["many"]
    assert all(row["id"] for row in watch.rows_of(folder))
    # Once all are submitted, the same command begins anew.
    found.held.clear()
    assert submit.main(WORDS) == 0
    assert {path.name for path in folder.parent.iterdir()} == {"many", "many-2"}


def test_from_python(many):
    many(3, 20, 10)
    jobs = submit.submit(submit.plan("many.yaml", "v100", options={"device": "cpu"}))
    assert [job.job_id for job in jobs] == ["100_0", "100_1", "100_2"]


def test_another_command_does_not_take_up_what_is_held_back(many):
    many(12, 20, 10)
    assert submit.main(WORDS) == 0
    plans = [
        submit.plan("many.yaml", "v100", options={"device": "cpu"}, **o) for o in ({}, {"nodes": 2}, {"at_once": 1})
    ]
    assert [submission.unfinished(plan) is not None for plan in plans] == [True, False, False]


def test_what_slurm_refuses_altogether(many, capsys):
    many(3, 20, 0)
    assert submit.main(WORDS) == 2
    assert "sbatch refused the job: sbatch: error: QOSMaxSubmit" in capsys.readouterr().err
    assert not list(Path("runs/cluster").iterdir())


def test_held_back_and_waiting_rows_are_shown_and_can_be_cancelled(many, capsys):
    found = many(4, 20, 2)
    assert submit.main(WORDS) == 0
    capsys.readouterr()
    assert status.main(["many"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.search("many/r0000 +PENDING .* jobs of higher priority come first", lines[1])
    assert re.search("many/r0003 +HELD BACK .* give the command of the submission again", lines[4])
    assert status.main(["cancel", "many"]) == 0
    assert not found.held
    assert status.main(["many"]) == 0
    assert capsys.readouterr().out.count("CANCELLED") == 4
    # What was cancelled is not submitted later.
    found.most = 100
    assert submit.main(WORDS) == 0
    assert sum(found.arrays) == 2 + 4
    assert {path.name for path in Path("runs/cluster").iterdir()} == {"many", "many-2"}


def test_rows_are_requeued_by_name(many, capsys):
    found = many(4, 20, 2)
    assert submit.main(WORDS) == 0
    capsys.readouterr()
    assert status.main(["requeue", "many/r0001"]) == 0
    assert found.requeued == ["100_1"]
    assert status.main(["requeue", "many/r0003"]) == 2
    assert "many/r0003 is not submitted yet: give the command of the submission again" in capsys.readouterr().err
    found.held.clear()
    assert status.main(["requeue", "many/r0000"]) == 2
    said = capsys.readouterr().err
    assert "many/r0000 cannot be requeued (scontrol: error: Job has already finished): submit " in said
    assert "with --rows to continue it from its last checkpoint." in said
