"""A job's first task without SLURM and Ray: what it makes of the ways in which a run can end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cluster.records import RowRecord
from tests.support.commands import ROOT, alive, wait_for

# In a process of its own, which becomes the parent of orphans and ends all that is below it.
PROGRAM = """
import json, subprocess, sys
from pathlib import Path
from cluster import ray_node
from cluster.node import Task
from cluster.records import Row

class Stub:
    def __init__(self, temp, log, token, address, cpus, head=None):
        self.process = subprocess.Popen(["sleep", "600"])
        self.dashboard_port, self.gcs_address = 1, "127.0.0.1:2"
        print("token", oct(token.stat().st_mode & 0o777), flush=True)
    def up(self):
        return True

ray_node.RayNode = Stub
folder, command = Path(sys.argv[1]), json.loads(sys.argv[2])
task = Task(folder, Row("ima", command, str(folder / "run")), 0.0, 30, 1, "lo", sys.argv[3])
print("answer", task()["status"])
"""


# Shows the records in the file "records", in which a requeue that is not refused raises Restarts, as SLURM's does.
SCONTROL = """#!/bin/sh
cd {folder}
case "$*" in
*"show job {job}") cat records ;;
"requeue {job}") cat refusal >&2 && exit 1; sed -i "s/Restarts=[0-9]*/Restarts=99/" records; echo "$1" >> requeued ;;
*) exit 1 ;;
esac
"""


class Job:
    """The last element of an array, which has the array's own id, of a SLURM that is played by a script."""

    def __init__(self, folder: Path, temp: str) -> None:
        self.folder, self.record, self.temp = folder, RowRecord(folder, "ima"), temp
        self.program = folder / "bin" / "scontrol"
        self.program.parent.mkdir()
        self.program.write_text(SCONTROL.format(folder=folder, job="7_1"))
        self.program.chmod(0o755)

    def says(self, **fields: object) -> None:
        """What scontrol shows from now on; another element has been cancelled, and comes last."""
        ours = {"JobId": 7, "ArrayJobId": 7, "ArrayTaskId": 1, "JobState": "RUNNING", "Restarts": 0, **fields}
        other = {**ours, "JobId": 8, "ArrayTaskId": 0, "JobState": "CANCELLED", "Restarts": 5, "Requeue": 0}
        lines = (" ".join(f"{key}={value}" for key, value in record.items()) for record in (ours, other))
        (self.folder / "new").write_text("\n".join(lines))
        (self.folder / "new").rename(self.folder / "records")

    def requeued(self) -> int:
        """How often, since the last question, the job was requeued."""
        file = self.folder / "requeued"
        count = len(file.read_text().splitlines()) if file.exists() else 0
        file.unlink(missing_ok=True)
        return count

    def start(self, code: str, number: int = 0, nodes: str = "n1", before: str = "") -> subprocess.Popen[str]:
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "7",
            "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_NODELIST": nodes, "SLURM_PROCID": "0",
            "SLURM_RESTART_COUNT": str(number), "PATH": f"{self.program.parent}:{os.environ['PATH']}",
        }  # fmt: skip
        self.says(Restarts=number)
        return subprocess.Popen(
            [sys.executable, "-c", before + PROGRAM, str(self.folder), json.dumps(["-c", code]), self.temp],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, code: str, number: int = 0, nodes: str = "n1", before: str = "") -> tuple[int, str, str]:
        process = self.start(code, number, nodes, before)
        out, err = process.communicate(timeout=300)
        assert not list(Path(self.temp).glob("ima-*")), "the temporary directory is left"
        assert not (self.record.start(number) / "token").exists()
        return process.returncode, out, err


@pytest.fixture
def job(tmp_path):
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as short:  # as the paths of sockets must be
        yield Job(tmp_path, short)


def test_a_run_that_ends_well(job):
    code = "import os; print('here', os.environ['RAY_ADDRESS'], os.environ['RAY_AUTH_MODE'])"
    status, out, err = job.run(code)
    assert (status, out.splitlines()[0], out.splitlines()[-1]) == (0, "token 0o600", "answer 0"), err
    assert "here 127.0.0.1:2 token" in job.record.output.read_text()
    assert job.record.result()["status"] == 0
    assert (job.record.start(0) / "over").read_text() == "done"


def test_faulty_input_is_not_tried_again(job):
    status, _, err = job.run("import sys; sys.exit(2)")
    assert (status, job.requeued()) == (1, 0)
    assert "ima ended with status 2: see" in err.splitlines()[-1]
    assert job.record.result()["status"] == 2


def test_what_was_wrong_with_the_input_is_in_the_result(job):
    job.record.path.mkdir(parents=True)
    job.record.output.write_text("error: an earlier start's.\n")
    code = "import sys; print('error: No such method.'); print('error: These rows failed.'); sys.exit(2)"
    _, _, err = job.run(code)
    assert job.record.result()["message"] == "No such method."
    assert err.splitlines()[-1].endswith("ima ended with status 2: No such method.")


def test_a_run_that_fails_is_tried_three_times(job):
    for number in (0, 1):
        status, _, err = job.run("import sys; sys.exit(1)", number)
        assert (status, job.requeued(), job.record.result()) == (0, 1, None), err
    status, _, err = job.run("import sys; sys.exit(1)", 2)
    assert (status, job.requeued()) == (1, 0)
    assert "It failed 3 times in a row without saving anything new" in job.record.result()["message"]
    assert "failure 2 of 3 without progress" in job.record.output.read_text()


def test_progress_starts_the_count_anew(job):
    for number in range(4):
        place = job.folder / "run" / "checkpoints" / f"epoch={number:04d}"
        status, _, err = job.run(f"import os; os.makedirs({str(place)!r}); os._exit(1)", number)
        assert (status, job.requeued()) == (0, 1), err


def test_a_start_that_vanished_counts_as_a_failure(job):
    for number in range(3):
        process = job.start("import time; time.sleep(600)", number)
        wait_for(lambda number=number: (job.record.start(number) / "address").exists(), 120, "the task")
        process.kill()
        process.wait()
    status, _, _ = job.run("pass", 3)
    assert (status, job.requeued()) == (1, 0)
    assert "It failed 3 times in a row" in job.record.result()["message"]


def test_a_node_that_does_not_come_is_named(job):
    status, _, _ = job.run("pass", nodes="n[1-2]")
    assert (status, job.requeued()) == (0, 1)
    text = job.record.output.read_text()
    assert "Node n2 (task 1) did not join the Ray cluster, see" in text
    assert "within 1 s" in text
    (job.record.start(1)).mkdir(parents=True)
    (job.record.start(1) / "failed-1").write_text("Ray ended on n2: no such option")
    job.run("pass", 1, nodes="n[1-2]")
    assert "Ray ended on n2: no such option (failure 2 of 3" in job.record.output.read_text()


def test_a_file_that_cannot_be_written_is_a_failure_like_others(job):
    (job.record.start(0) / "address").mkdir(parents=True)
    status, _, err = job.run("pass")
    assert (status, job.requeued()) == (0, 1), err
    assert "Is a directory" in job.record.output.read_text()
    assert "failure 1 of 3 without progress" in job.record.output.read_text()


def test_a_full_temporary_directory_is_a_failure_like_others(job, tmp_path):
    stub = "import tempfile\ndef full(*a, **k): raise OSError(28, 'No space left on device')\ntempfile.mkdtemp = full\n"
    for number in range(3):
        status, _, err = job.run("pass", number, before=stub)
        assert (status, job.requeued()) == ((0, 1) if number < 2 else (1, 0)), err
    assert "No space left on device" in job.record.output.read_text()
    assert "It failed 3 times in a row" in job.record.result()["message"]


def test_times_that_cannot_be_written_cost_no_run(job):
    (job.record.start(0) / "times.json").mkdir(parents=True)
    status, out, err = job.run("pass")
    assert (status, out.splitlines()[-1]) == (0, "answer 0"), err
    assert job.record.result()["status"] == 0


def test_the_signal_before_the_end_reaches_the_run_once(job):
    code = (
        "import os, signal, sys, time\n"
        "heard = []\n"
        "for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2): signal.signal(s, lambda n, f: heard.append(n))\n"
        "print('pid', os.getpid(), flush=True)\n"
        "while not heard: time.sleep(0.05)\n"
        "time.sleep(1.5)\n"
        "print('heard', *heard, flush=True)\n"
        "os._exit(75)\n"
    )
    process = job.start(code)
    wait_for(lambda: job.record.output.exists() and "pid" in job.record.output.read_text(), 120, "the run")
    pid = int(job.record.output.read_text().split("pid ")[1].split()[0])
    for _ in range(2):
        os.kill(pid, signal.SIGUSR2)  # as SLURM does: to every process of the job
        process.send_signal(signal.SIGUSR2)
    _, err = process.communicate(timeout=300)
    assert (process.returncode, job.requeued()) == (0, 1), err
    assert f"heard {int(signal.SIGINT)}\n" in job.record.output.read_text()
    assert json.loads(job.record.tries_path.read_text())["asked"] is True


# The run hears of the end, and does not end.
DEAF = (
    "import os, signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('pid', flush=True); time.sleep(600)"
)
# As at the end of SLURM's patience, without waiting for it.
SHORT = "from cluster import policy\npolicy.LEAVE_WITHIN = 1.0\npolicy.REQUEUE_UNTIL = 3.0\n"
LIMIT = {"JobState": "COMPLETING", "Reason": "TimeLimit"}
PREEMPTED = {"JobState": "COMPLETING", "Reason": "None", "PreemptTime": "2026-11-27T06:44:15"}
CANCELLED = {"JobState": "COMPLETING", "Reason": "None", "PreemptTime": "None"}


@pytest.mark.parametrize(
    ("signals", "fields", "requeued", "message"),
    [
        ((signal.SIGUSR2, signal.SIGTERM), LIMIT, 1, None),
        ((signal.SIGTERM, signal.SIGTERM), PREEMPTED, 1, None),
        ((signal.SIGUSR2, signal.SIGTERM), CANCELLED, 0, "cancelled"),
        ((signal.SIGTERM,), {"JobState": "COMPLETING", "Restarts": 1}, 0, None),
        ((signal.SIGTERM,), {**LIMIT, "Requeue": 0}, 0, "could not be requeued (Requeue=0 in its record). Its last"),
    ],
)
def test_a_run_that_does_not_save_in_time(job, signals, fields, requeued, message):
    process = job.start(DEAF, before=SHORT)
    wait_for(lambda: job.record.output.exists() and "pid" in job.record.output.read_text(), 120, "the run")
    for number in signals[:-1]:
        process.send_signal(number)
        wait_for(
            lambda: "the run saves its state, then" in job.record.output.read_text(), 120, "the notice to be heard"
        )
    job.says(**fields)
    process.send_signal(signals[-1])
    _, err = process.communicate(timeout=300)
    assert (job.requeued(), process.returncode) == (requeued, int("not be" in str(message))), err
    result = job.record.result()
    assert (result is None) if message is None else (message in result["message"] and result["status"] == 75), result
    assert "The run has not ended in time" in job.record.output.read_text()
    assert json.loads(job.record.tries_path.read_text())["asked"] is True


def test_a_requeue_that_slurm_refuses_at_first(job):
    """While the controller is away: tried again as long as there is time, and the run's failure is still known."""
    refusal = job.folder / "refusal"
    refusal.write_text("slurm_load_jobs error: Unable to contact slurm controller")
    process = job.start("import sys; sys.exit(1)")
    wait_for(lambda: (job.record.start(0) / "over").exists(), 120, "the first request")
    refusal.unlink()
    _, err = process.communicate(timeout=300)
    assert (job.requeued(), process.returncode) == (1, 0), err
    assert "requeued" not in job.record.output.read_text().split("failure 1 of 3")[0]

    refusal.write_text("scontrol: error: Access denied")
    status, _, err = job.run(
        "import sys; sys.exit(1)", 1, before="import cluster.leader as l; l._REQUEUE_SECONDS = 0.0\n"
    )
    assert (status, job.requeued()) == (1, 0), err
    message = job.record.result()["message"]
    assert (
        "could not be requeued (scontrol requeue 7_1: scontrol: error: Access denied). Its last checkpoint" in message
    )


def test_without_scontrol_the_batch_script_is_asked_to_requeue(job):
    """As in a container: the run asks the script around it, and leaves the result that is true if SLURM refuses."""
    asked = job.folder / "requeue-7_1"
    (job.folder / "sleep").symlink_to(str(shutil.which("sleep")))
    hidden = f"import os\nos.environ.update(PATH={str(job.folder)!r}, IMA_DIST_REQUEUE_FILE={str(asked)!r})\n"
    ended = "import os; print('dir', os.environ['IMA_DIST_LAST_START'], flush=True); os._exit(75)"
    status, _, err = job.run(ended, before=f"{hidden}os.environ['SLURM_JOB_END_TIME'] = '1800000000'\n")
    assert (status, job.requeued(), asked.read_text()) == (0, 0, "ima"), err
    output = job.record.output.read_text()
    assert "no scontrol here, so the job's batch script asks SLURM to requeue it" in output
    assert f"dir {1800000000 - 30 - 60}.0" in output
    assert job.record.result() is None
    refused = json.loads((job.record.path / "refused.json").read_text())
    assert refused["status"] == 75
    assert "could not be requeued by its batch script. Its last checkpoint is kept" in refused["message"]
    # A script of an earlier version does not listen.
    late = "import cluster.leader as l; l._REQUEUE_SECONDS = 0.0\n"
    status, _, err = job.run(
        "import os; os._exit(75)", 1, before=f"import os\nos.environ['PATH'] = {str(job.folder)!r}\n{late}"
    )
    assert (status, job.requeued()) == (1, 0), err
    assert "could not be requeued (The command scontrol is missing" in job.record.result()["message"]


def test_a_directory_of_data_on_the_node(job):
    code = "import sys; print('data', sys.argv[1:]); sys.exit(0)"
    words = ["-c", code, "--data.dir", "$MINE/images"]
    before = f"import os, sys\nos.environ['MINE'] = '/node'\nsys.argv[2] = {json.dumps(words)!r}\n"
    status, _, err = job.run(code, before=before)
    assert status == 0, err
    assert "data ['--data.dir', '/node/images']" in job.record.output.read_text()


def test_a_leftover_ends_when_the_job_has_been_started_again(job):
    process = job.start("import os, time; print('pid', os.getpid(), flush=True); time.sleep(600)")
    wait_for(lambda: job.record.output.exists() and "pid" in job.record.output.read_text(), 120, "the run")
    pid = int(job.record.output.read_text().split("pid ")[1].split()[0])
    job.record.start(1).mkdir()
    process.communicate(timeout=120)
    assert (process.returncode, alive(pid)) == (0, False)
    assert "ends: the job has been started again" in job.record.output.read_text()
    assert job.record.result() is None
