"""Jobs on a real SLURM, run on this machine: what SLURM does to them, and what becomes of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from cluster import local, processes, slurm, submit
from cluster.records import RowRecord
from ima_dist.config.schema import Config
from ima_dist.plans.jobfile import read_job
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import read_json
from tests.support import commands, workers
from tests.support.runs import check_files
from tests.support.slurm import LEAVES_WITHIN, local_slurm, needs_slurm, of_job, seconds_to_leave, training

# Five starts of a Ray cluster, one after the other, on a machine that may be busy.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600), needs_slurm]
# Long enough for two waits in mid-training: for a time limit, and until SLURM gives a node up for dead.
STEPS, EPOCHS, WAIT = 40, 20, 600
OPTIONS = {
    "model.factory": "tests.support.user_code:unhurried", "data.subset": 1280, "batch_size": 32, "epochs": EPOCHS,
    "dtype": "float64", "eval.steps": 2, "eval.noise": [0.0, 0.1],
}  # fmt: skip
SWEPT = {**OPTIONS, "epochs": 2, "data.subset": 128}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory to submit from, with a local SLURM that has a directory of its own."""
    place = tmp_path_factory.mktemp("jobs")
    directory = Path(f"/tmp/slurm-test-{os.getpid()}")
    rows = "".join(f"  {method}: {{method: {method}}}\n" for method in ("ima", "ce"))
    options = "".join(f"  {name}: {value}\n" for name, value in OPTIONS.items())
    for name in ("moons", "short"):
        (place / f"{name}.yaml").write_text(f"title: test\npreset: moons\noptions:\n{options}rows:\n{rows}")
    gone = '[elsewhere]\npartition = "gone"\ncards = 1\ncpus_per_card = 1\ntime = 60\n'
    with local_slurm(directory, place, TEST_PAUSE="0.15", TEST_HANG=str(place / "hang")):
        (place / "partitions.toml").write_text((directory / "partitions.toml").read_text() + gone)
        yield place


def submitted(name: str, partition: str, *options: str, **environment: str) -> tuple[Path, dict[str, dict]]:
    words = [f"{name}.yaml", "--partition", partition, "--device", "cpu", "--out", f"runs/{name}", *options]
    done = commands.run("cluster.submit", *words, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = Path("runs/cluster", name).absolute()
    return folder, {row["name"]: row for row in (read_json(folder / "job.json") or {})["rows"]}


def said(folder: Path) -> str:
    """All that a job and submitit have printed."""
    files = [*folder.glob("*/output.txt"), *folder.glob("*_log.*"), *folder.glob("*/start-*/ray-*.log")]
    return "\n".join(f"--- {path}\n{path.read_text(errors='replace')}" for path in files)


def _sweep(name: str, *options: str) -> tuple[Path, dict[str, dict]]:
    """A sweep of two methods, submitted to the one node of titanv."""
    entries = "".join(f"  {option}: {value}\n" for option, value in SWEPT.items())
    Path(f"{name}.yaml").write_text(f"title: test\npreset: moons\noptions:\n{entries}sweep:\n  method: [ima, ce]\n")
    return submitted(name, "titanv", "--cards", "1", *options, TEST_PAUSE="0")


@pytest.fixture(scope="module")
def swept(place):
    """A sweep as an array, one trial after the other, each on a Ray cluster of its own; beside the other tests."""
    return _sweep("array", "--at-once", "1")


def _pid_of(directory: Path, node: str) -> int:
    """Process id of a node's slurmd."""
    return int((directory / f"slurmd.{node}.pid").read_text())


def equal_to_undisturbed(run: str, config: Config, path: Path, samples: int) -> None:
    os.environ["TEST_PAUSE"] = "0"
    RunDir.create(config, path)
    workers.train(config, path)
    (weights_1, margins_1), (weights_2, margins_2) = (workers.final_state(config, p) for p in (path, Path(run)))
    assert workers.largest_difference(weights_1, weights_2) < 1e-9
    if margins_1 is not None:
        assert float((margins_1 - margins_2).abs().max()) < 1e-9
    check_files(RunDir(run), config.epochs, samples)


def test_whatever_slurm_does_the_run_ends_like_an_undisturbed_one(place, swept, tmp_path):
    """One after the other, on two nodes: pre-emption without and with a grace time, a time limit by which the run has
    not saved, a dead slurmd."""
    directory = Path(os.environ["SLURM_CONF"]).parent
    words = ["--nodes", "2", "--workers", "2", "--rows", "ima"]
    folder, rows = submitted("moons", "v100", *words, MLFLOW_TRACKING_URI="http://127.0.0.1:9")  # it refuses
    row, record = rows["ima"], RowRecord(folder, "ima")
    job, run = row["id"], row["run"]

    def in_training(start: int) -> None:
        def there() -> bool:
            assert record.result() is None, record.output.read_text()
            return training(record, run, start, STEPS)

        commands.wait_for(there, WAIT, f"start {start} to train")

    in_training(0)
    urgent = ["sbatch", "--parsable", "--partition=urgent", "--nodes=3", "--exclusive", "--output=/dev/null"]
    first = subprocess.run([*urgent, "--wrap=true"], capture_output=True, text=True, check=True).stdout.strip()

    in_training(1)
    assert first not in slurm.queue()
    # Now the partition's jobs are told, and have a while to go by themselves; else they are cancelled for good.
    slurm.command("scontrol", "update", "PartitionName=v100", "PreemptMode=CANCEL", "GraceTime=300")
    subprocess.run([*urgent, "--wrap=true"], check=True)
    assert seconds_to_leave(record, 1, "SIGTERM: the run saves its state, then", WAIT) < LEAVES_WITHIN

    in_training(2)
    hang = Path(os.environ["TEST_HANG"])
    hang.touch()
    slurm.command("scontrol", "update", "PartitionName=v100", "PreemptMode=REQUEUE", "GraceTime=0")
    elapsed = slurm.job(job)["RunTime"]  # 00:MM:SS
    slurm.command("scontrol", "update", f"JobId={job}", f"TimeLimit={int(elapsed.split(':')[1]) + 1}")
    commands.wait_for(lambda: record.newest_start() == 3, WAIT, "the time limit")
    hang.unlink()
    slurm.command("scontrol", "update", f"JobId={job}", "TimeLimit=30")

    in_training(3)
    head = slurm.queue()[job]["node"]
    head = re.sub(r"\[(\d).*", r"\1", head)
    leftovers = [pid for pid in of_job(job) if processes.environment(pid).get("SLURMD_NODENAME") == head]
    assert leftovers
    os.kill(_pid_of(directory, head), 9)
    in_training(4)
    commands.wait_for(lambda: not any(map(processes.alive, leftovers)), WAIT, "the leftover to notice")
    local.start_node(directory, head)

    results = submit.wait(folder)
    output = record.output.read_text()
    assert results["ima"]["status"] == 0, output
    starts = re.split(r"Start \d of job", output)[1:]
    assert "SIGTERM: SLURM has requeued the job" in starts[0], output
    assert "SIGTERM: the run saves its state, then the job is requeued" in starts[1], output
    for sentence in ("SIGTERM: SLURM is ending the job, which asks to be requeued", "The run has not ended in time"):
        assert sentence in starts[2], output
    assert "cancelled" not in output
    assert "warning: not recorded: " in output
    # The leftover may learn of its successor, or that there will be one, from the end of its run.
    last_words = ("ends: the job has been started again", "SLURM starts the job again")
    assert any(words in starts[3] for words in last_words), output
    assert len(starts) >= 5
    assert "failure" not in output
    equal_to_undisturbed(run, read_job("moons.yaml").rows["ima"], tmp_path / "undisturbed", 128)
    times = read_json(record.start(0) / "times.json")
    assert list(times) == ["submitted", "began", "head", "joined", "driver", "first_step"]
    assert list(times.values()) == sorted(times.values())


def nobody_else_gets_in(record: RowRecord) -> None:
    """Without the token Ray refuses, over HTTP and as a client; another user cannot read the token."""
    start = record.start(0)
    token = start / "token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert record.path.parent.stat().st_mode & 0o777 == 0o700
    if os.geteuid() == 0:
        stranger = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        assert subprocess.run([*stranger, "cat", str(token)], capture_output=True).returncode
    address = f"http://127.0.0.1:{(start / 'dashboard').read_text()}/api/jobs/"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(address, timeout=60)
    assert refused.value.code in (401, 403)
    known = urllib.request.Request(address, headers={"Authorization": f"Bearer {token.read_text()}"})
    assert urllib.request.urlopen(known, timeout=60).status == 200
    wrong = record.path / "wrong-token"
    wrong.write_text("0123456789abcdef" * 4)
    code = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False); print('in', ray.nodes())"
    client = subprocess.run(
        [sys.executable, "-c", code, (start / "address").read_text()],
        env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(wrong)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    wrong.unlink()
    assert client.returncode
    assert "in" not in client.stdout
    assert "auth" in client.stderr.lower(), client.stderr


def test_a_sweep_as_an_array_and_in_one_job_gives_one_table(swept, tmp_path):
    """As an array; then all on the Ray cluster of one job; and each run as without SLURM."""
    tables = []
    for name, (folder, rows) in (("array", swept), ("together", _sweep("together", "--one-job"))):
        numbers = [row["id"].split("_")[1:] for row in rows.values()]
        assert numbers == ([["0"], ["1"]] if name == "array" else [[]])
        for row, result in submit.wait(folder).items():
            assert result["status"] == 0, f"{row}: {said(folder)}"
        done = commands.run("ima_dist.sweep", f"{name}.yaml", "--device", "cpu", "--out", f"runs/{name}")
        assert done.returncode == 0, done.stdout + done.stderr
        tables.append([line for line in done.stdout.splitlines() if re.match(r"(method|ima|ce) ", line)])
    assert tables[0] == tables[1]
    assert len(tables[0]) == 5
    assert all(" 1/1 " in line for line in tables[0][1:])
    for run in Path("runs/array").glob("moons-*"):
        config = RunDir(run).config()
        equal_to_undisturbed(str(run), config, tmp_path / run.name, 20)
        (weights_1, _), (weights_2, _) = (
            workers.final_state(config, p) for p in (run, Path("runs/together", run.name))
        )
        assert workers.largest_difference(weights_1, weights_2) < 1e-9
    shown = commands.run("cluster.status", "array").stdout
    assert len(re.findall(r"^array/\S+ +FINISHED +- +0 +2/2 +[\d,]+ +[01]\.\d{4}$", shown, re.MULTILINE)) == 2, shown


def test_what_sbatch_refuses(place):
    done = commands.run("cluster.submit", "moons.yaml", "--partition", "v100", "--constraint", "nosuch")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "sbatch refused the job: sbatch: error: Batch job submission failed: Invalid feature" in done.stderr
    assert not Path("runs/cluster/moons-2").exists()


def test_others_are_refused_and_scancel_leaves_no_process_and_no_directory(place):
    # Long enough for everything that is looked at.
    folder, rows = submitted("short", "titanv", "--rows", "ce", TEST_PAUSE="2")
    record, row = RowRecord(folder, "ce"), rows["ce"]
    commands.wait_for(lambda: training(record, row["run"], 0, STEPS), WAIT, "the run to train")
    ours = of_job(row["id"])
    assert len(ours) > 5
    nobody_else_gets_in(record)
    private = [p for p in Path("/tmp").glob(f"ima-{row['id']}-*") if p.is_dir()]
    assert [p.stat().st_mode & 0o777 for p in private] == [0o700]
    shown = commands.run("cluster.status", "short/ce").stdout
    assert re.search(rf"short/ce +RUNNING +titanv-0 +0 +\d+/{EPOCHS}", shown), shown
    assert commands.run("cluster.status", "cancel", "short").returncode == 0
    assert submit.wait(folder)["ce"]["message"] == "cancelled"
    commands.wait_for(lambda: not of_job(row["id"]), 60, "all processes to end")
    assert not any(map(processes.alive, ours))
    assert not any(p.exists() for p in private)
    assert not (record.start(0) / "token").exists()
    assert "CANCELLED" in commands.run("cluster.status", "short").stdout
    assert any((Path(row["run"]) / "checkpoints").glob("epoch=*"))
    followed = commands.run("cluster.status", "short/ce", "--follow")
    assert "Cancelled; submit the job again to continue" in followed.stdout


def test_doctor_on_nodes(place):
    """All is well here but for what placeholder cards and a torch for other cards lack."""
    done = commands.run("cluster.doctor", "--partition", "v100", "--on-node", "--nodes", "2")
    lines = re.findall(r"^(ok|warning|failure) +((?:v100-\d: )?[\w ]+): .+$", done.stdout, re.MULTILINE)
    assert len(lines) == len(done.stdout.splitlines()), done.stdout + done.stderr
    checks = {check: level for level, check in lines}
    nodes = {check.split(":")[0] for check in checks if ": " in check}
    assert len(nodes) == 2
    for node in nodes:
        assert checks[f"{node}: shared directory"] == checks[f"{node}: interface"] == checks[f"{node}: clock"] == "ok"
    assert checks["accounting"] == "warning"
    assert checks["partition"] == checks["cards"] == checks["SLURM"] == "ok"
    failed = {check.split(": ")[-1] for check, level in checks.items() if level == "failure"}
    assert failed <= {"driver and cards", "torch", "disk space"}
    assert done.returncode == bool(failed)
    missing = commands.run("cluster.doctor", "--partition", "elsewhere")
    assert missing.returncode == 1
    assert "SLURM has no partition gone; it has titanv, urgent, v100: correct 'partition'" in missing.stdout


def test_down_removes_every_trace(tmp_path):
    directory = Path(f"/tmp/slurm-test-{os.getpid()}-b")
    local.up(directory)
    pids = [_pid_of(directory, name) for name in local.node_names()]
    assert all(map(processes.alive, pids))
    again = commands.run("cluster.local", "up", "--dir", directory)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert commands.run("cluster.local", "down", "--dir", directory).returncode == 0
    assert not any(map(processes.alive, pids))
    assert not directory.exists()
    tmp_path.joinpath("file").touch()
    assert commands.run("cluster.local", "down", "--dir", tmp_path).returncode == 2
