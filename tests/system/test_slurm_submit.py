"""What sbatch is told, and mistakes that are noticed before it is asked; the record of failures."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import node, partitions, processes, ray_node, status, submit
from cluster.node import Task
from cluster.records import Row, RowRecord, failures_after, progress_of, write_private
from ima_dist.config.errors import ConfigError
from tests.support.commands import ROOT


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def flags(text: str) -> dict[str, str]:
    """The #SBATCH lines of a submission file."""
    found = re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", text, re.MULTILINE)
    return {name: value.strip("'") for name, value in found}


def test_dry_run_shows_what_sbatch_gets(tmp_path, capsys):
    Path("partitions.toml").write_text(
        '[v100]\naccount = "lab42"\nsetup = ["module load cuda/12.6"]\nsbatch = {exclude = "node7"}\n'
        'python = "apptainer exec --nv image.sif python"\nsrun = ["--mpi=none"]\n'
        '[mine]\npartition = "gpu-long"\ncards = 8\ncpus_per_card = 3\ntime = "2-12"\nqos = "long"\n'
    )
    table = ROOT / "jobs" / "table11.yaml"
    words = [str(table), "--partition", "v100", "--nodes", "4", "--dry-run"]
    assert submit.main([*words, "--reservation", "night", "--at-once", "2"]) == 0
    text = capsys.readouterr().out
    assert flags(text) == {
        "account": "lab42", "array": "0-3%2", "cpus-per-task": "32", "exclude": "node7", "gres": "gpu:v100:4",
        "job-name": "table11", "mem": "160G", "nodes": "4", "ntasks-per-node": "1", "open-mode": "append",
        "output": f"{tmp_path}/runs/cluster/table11/%A_%a_0_log.out", "partition": "v100", "requeue": "",
        "reservation": "night", "signal": "USR2@180", "time": "1440", "wckey": "submitit",
    }  # fmt: skip
    lines = text.splitlines()
    setup = lines.index("module load cuda/12.6")
    run = next(i for i, line in enumerate(lines) if line.startswith("srun "))
    assert setup < run
    assert " --cpus-per-task=32 --mpi=none apptainer exec --nv image.sif python -u -m submitit" in lines[run]
    commands = [line for line in lines if line.startswith("# ")][-4:]
    assert [line.split(":")[0] for line in commands] == ["# ima_s0", "# ima_s1", "# mma-32-sd0", "# mma-32-sd1"]
    assert all(line.endswith("--device cuda") for line in commands)
    assert not Path("runs").exists()

    assert submit.main([str(table), "--partition", "mine", "--rows", "ima_s0", "--dry-run"]) == 0
    found = flags(capsys.readouterr().out)
    assert (found["partition"], found["time"], found["qos"], found["cpus-per-task"]) == (
        "gpu-long",
        "3600",
        "long",
        "24",
    )
    assert not {"gres", "array", "account"} & set(found)


def test_each_row_with_each_seed(tmp_path):
    rows = submit.plan(ROOT / "jobs" / "table02.yaml", "titanv", rows=["ima", "ce"], seeds=[0, 3]).rows
    assert [row.name for row in rows] == ["ima-seed0", "ce-seed0", "ima-seed3", "ce-seed3"]
    assert len({row.run for row in rows}) == 4
    assert rows[2].command[-2:] == ["--seed", "3"]
    assert "seed3" in rows[2].run


def test_half_precision_that_the_cards_have(tmp_path):
    file = ROOT / "jobs" / "table02.yaml"
    rows = submit.plan(file, "v100", rows=["ima"], options={"autocast": "float16"}).rows
    assert rows[0].command[-4:-2] == ["--autocast", "float16"]
    newer = tmp_path / "partitions.toml"
    newer.write_text('[new]\ncards = 1\ncpus_per_card = 1\ntime = 60\ngres = "gpu:a"\nautocast = "bfloat16"\n')
    for name in ("float16", "bfloat16"):
        assert submit.plan(file, "new", options={"autocast": name}, partitions_file=newer).rows
    table = '[new]\ncards = 1\ncpus_per_card = 1\ntime = 60\ngres = "gpu:a"\ncompute_capability = "{}"\n'
    for capability, device, refused in (("8.0", "cuda", False), ("7.5", "cuda", True), ("7.5", "cpu", False)):
        newer.write_text(table.format(capability))
        options = {"autocast": "bfloat16", "device": device}
        with pytest.raises(ConfigError, match="no bfloat16") if refused else contextlib.nullcontext():
            assert submit.plan(file, "new", options=options, partitions_file=newer).rows


SWEEP = "title: t\npreset: moons\nsweep: {method: [ima, ce], beta: [0.3, 0.7]}\nseeds: [0, 1]\n"


def test_a_sweep_is_an_array_of_its_trials_or_one_job(tmp_path, capsys):
    file = tmp_path / "sweep_x.yaml"
    file.write_text(SWEEP + "scales: {tiny: {epochs: 2}}\n")
    planned = submit.plan(file, "titanv", scale="tiny", seeds=[5, 7], options={"dtype": "float64"})
    out = tmp_path / "runs" / "sweeps" / "sweep_x-tiny"
    assert [Path(row.run).parent for row in planned.rows] == [out] * 6  # 2 β of ima, and ce, with 2 seeds each
    assert len({row.run for row in planned.rows}) == 6
    words = ["--out", str(out), "--scale", "tiny", "--seeds", "5,7", "--dtype", "float64", "--device", "cuda"]
    row = planned.rows[0]
    assert row.command == ["-m", "ima_dist.sweep", str(planned.folder / "job.yaml"), *words, "--trials", row.name]
    assert planned.table == ["ima_dist.sweep", str(planned.folder / "job.yaml"), *words]

    (alone,) = submit.plan(file, "titanv", one_job=True, nodes=4, out="there").rows
    assert (alone.name, alone.run) == ("sweep", str(tmp_path / "there"))
    assert alone.command[-4:] == ["--out", str(tmp_path / "there"), "--device", "cuda"]

    for text, words, sentence in (
        (SWEEP, ["--autocast", "bfloat16"], "have no bfloat16: say --autocast float16"),
        (SWEEP, ["--rows", "ima"], "The sweep has no trial 'ima'"),
        (SWEEP, ["--rows", "ima", "--one-job"], "--one-job runs the whole sweep: leave --rows out."),
        (f"{SWEEP}search: optuna\nsamples: 3\noptions: {{eval.val_noise: 0.1}}\n", [], "submit it with --one-job"),
        (f"{SWEEP}asha: {{grace: 2}}\noptions: {{eval.val_noise: 0.1}}\n", [], "asha compares trials"),
        ("title: t\npreset: moons\nrows: {a: {}}\n", ["--one-job"], "is no sweep file"),
    ):
        file.write_text(text)
        assert submit.main([str(file), "--partition", "titanv", "--dry-run", *words]) == 2
        error = capsys.readouterr().err
        assert sentence in error
        assert error.count("\n") == 1


def test_a_sweep_gets_on_if_one_of_its_trials_does(tmp_path):
    before = progress_of(tmp_path)
    (tmp_path / "moons-ima" / "checkpoints" / "epoch=0001").mkdir(parents=True)
    assert progress_of(tmp_path) != before


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--partition", "v10"], "No partition 'v10' is described (did you mean v100?)"),
        (["--partition", "v100", "--nodes", "0"], "--nodes and --at-once must be at least 1."),
        (["--partition", "v100", "--rows", "trade"], "has no row 'trade' (did you mean trades?)"),
        (["--partition", "v100", "--seeds", "a"], "--seeds must be whole numbers, not 'a'."),
        (["--partition", "v100", "--scale", "huge"], "has no scale 'huge': it has small, tiny."),
        (["--partition", "v100", "--autocast", "bfloat16"], "The cards of partition v100 have no bfloat16: say"),
        (["--partition", "v100", "--time", "5"], "a time of 5 min leaves too little beside the notice of 180 s"),
        (["--partition", "v100", "--time", "soon"], "'soon' is no time limit"),
        (["--partition", "v100", "--partitions", "nowhere.toml"], "nowhere.toml cannot be read"),
    ],
)
def test_mistakes_get_one_sentence(words, sentence, capsys):
    assert submit.main([str(ROOT / "jobs" / "table02.yaml"), *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not Path("runs").exists()


def test_a_row_that_differs_from_another_in_nothing(tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text("title: t\npreset: moons\nrows:\n  a: {method: ce}\n  b: {method: ce}\n")
    with pytest.raises(ConfigError, match="Two rows would write to"):
        submit.plan(file, "v100")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[own]\ncards = 1\n", "lacks the entry 'cpus_per_card'"),
        ("[v100]\ncard = 1\n", r"unknown entry 'card' \(did you mean cards\?\)"),
        ("[v100]\ncards = '4'\n", "cards is of the wrong kind"),
        ("[v100]\nsetup = 'module load'\n", "setup is of the wrong kind"),
        ("[v100]\nautocast = 'bfloat16'\n", "have no bfloat16"),
        ("[v100]\nautocast = 'float8'\n", "float16 or bfloat16"),
        ("[v100]\ncompute_capability = '7'\n", 'look like "7.0"'),
        ("[v100]\ncards = 0\n", "at least 1"),
        ("[v100]\nnotice = 1\n", "at least 10 seconds"),
        ("cards = 1\n", "outside a table"),
        ("[v100\n", "not valid TOML"),
    ],
)
def test_faulty_partitions(text, sentence):
    Path("partitions.toml").write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        partitions.load()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("90", 90), ("1:30", 2), ("1:30:00", 90), ("0:00:30", 1), ("2-00", 2880), ("1-12:30", 2190), (15, 15)],
)
def test_time_limits(text, wanted):
    assert partitions.minutes(text) == wanted


def test_no_slurm_here(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="sinfo is missing: run this on a login node"):
        submit.submit(submit.plan(ROOT / "jobs" / "moons.yaml", "v100"))
    assert not Path("runs").exists()


def test_failures_are_counted_until_something_new_is_saved(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints" / "epoch=0001").mkdir(parents=True)
    before = progress_of(run)
    tries = {"failures": 1, "progress": before}
    assert failures_after(tries, progress_of(run)) == 2
    (run / "checkpoints" / "epoch=0001-step=000020").mkdir()
    assert failures_after(tries, progress_of(run)) == 1
    (run / "summary.json").write_text('{"curves": [1, 2]}')
    assert progress_of(run)[2] == 2


def task(tmp_path, command: list[str]) -> Task:
    return Task(tmp_path / "job", Row("ima", command, str(tmp_path / "run")), 0.0, 30, 5)


def test_a_job_that_keeps_failing_is_given_up(tmp_path):
    ours = task(tmp_path, [])
    ours.record, ours.number = RowRecord(ours.folder, "ima"), 7
    for failures, asked, given_up in ((2, True, False), (1, False, False), (2, False, True)):
        tries = {"failures": failures, "asked": asked, "progress": progress_of(tmp_path / "run")}
        write_private(ours.record.tries_path, tries)
        if given_up:
            with pytest.raises(ConfigError, match="It has failed 3 times without getting further"):
                ours._count_tries()
        else:
            assert ours._count_tries()["failures"] == failures + (not asked)


@pytest.mark.parametrize(
    ("said", "last", "will"),
    [
        ({"JobState": "RUNNING"}, signal.SIGTERM, "save"),  # pre-empted, with a grace time
        ({"JobState": "RUNNING"}, signal.SIGUSR2, "save"),
        ({"JobState": "COMPLETING", "Restarts": "3"}, signal.SIGTERM, "again"),
        ({"JobState": "CANCELLED", "Restarts": "2"}, signal.SIGTERM, "cancel"),
        ({}, signal.SIGTERM, "cancel"),  # the controller does not answer
    ],
)
def test_how_long_a_task_stays_after_a_signal(tmp_path, monkeypatch, said, last, will):
    """As long as the run needs if SLURM does not kill it; else the time to end what it has started."""
    ours = task(tmp_path, [])
    ours.job, ours.number = "7", 2
    monkeypatch.setattr(node.slurm, "job", lambda job_id: said)
    monkeypatch.setattr(node, "_LEAVE_WITHIN", -1.0)
    assert (ours._hear(), ours._must_leave()) == (False, False)
    ours.signals.append(last)
    assert (ours._hear(), ours.will, ours._hear()) == (True, will, False)
    assert ours._must_leave() == (will != "save")
    # The grace time is over, and the run is still there.
    said.update(JobState="CANCELLED")
    ours.signals.append(signal.SIGTERM)
    assert ours._hear() == (will == "save")
    assert ours._must_leave()


def test_submitit_gets_the_same_task_again(tmp_path):
    ours = task(tmp_path, ["x"])
    again = ours.checkpoint().function
    assert (again.row, again.folder, again.notice, again.signals) == (ours.row, ours.folder, 30, [])


def test_private_directories(tmp_path):
    """Nobody else may look in; it vanishes with its maker, or when the next one comes."""
    with ray_node.private_directory(str(tmp_path), "123456789012") as inner:
        path = inner.parent
        inner.chmod(0o777)  # as Ray does
        assert path.stat().st_mode & 0o777 == 0o700
        assert path.name.startswith("ima-56789012-")
        with ray_node.private_directory(str(tmp_path), "1") as other:
            assert inner.exists()  # it is in use
            assert other.exists()
    assert not path.exists()
    left = tmp_path / "ima-9-abc"
    left.mkdir()
    (left / "lock").touch()
    (tmp_path / "ima-not-ours").mkdir()
    with ray_node.private_directory(str(tmp_path), "1"):
        assert not left.exists()
        assert (tmp_path / "ima-not-ours").exists()


def test_a_token_is_for_its_owner_alone(tmp_path):
    before = os.umask(0)
    try:
        ray_node.new_token(tmp_path / "token")
    finally:
        os.umask(before)
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600
    assert re.fullmatch(r"[0-9a-f]{64}", (tmp_path / "token").read_text())
    with pytest.raises(FileExistsError):
        ray_node.new_token(tmp_path / "token")


def test_what_becomes_a_daemon_is_ended_too():
    """In a process of its own, which becomes the parent of orphans."""
    code = (
        "import os, subprocess; from cluster import processes, ray_node; processes.adopt_orphans(); "
        "subprocess.run(['sh', '-c', 'setsid sleep 600 & exit 0']); subprocess.Popen(['sleep', '600']); "
        "print(*processes.descendants(os.getpid()), flush=True); ray_node.end_descendants(); "
        "print(len(processes.descendants(os.getpid())))"
    )
    done = subprocess.run(
        ["python3", "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    ids, left = done.stdout.splitlines()
    assert (len(ids.split()), left) == (2, "0"), done.stderr
    assert not any(processes.alive(int(pid)) for pid in ids.split())


def test_own_address(monkeypatch):
    assert ray_node.own_address(None, None) == "127.0.0.1"
    assert ray_node.own_address("127.0.0.1", None) == "127.0.0.1"
    assert ray_node.own_address("192.0.2.9", "lo") == "127.0.0.1"


def test_status_of_a_job_that_slurm_has_forgotten(tmp_path, monkeypatch, capsys):
    folder, run = tmp_path / "runs" / "cluster" / "t", tmp_path / "run"
    row = {"name": "ima", "id": "12_0", "run": str(run), "command": []}
    write_private(folder / "job.json", {"rows": [row, {**row, "name": "ce", "id": "12_1"}]})
    progress = {"stage": "training", "epoch": 3, "epochs": 9, "samples_per_second": 1234.4, "val_accuracy": 0.5}
    write_private(run / "progress.json", progress)
    queue = {"12_0": {"id": "12_0", "state": "RUNNING", "node": "n1", "reason": "None"}}
    monkeypatch.setattr(status.slurm, "queue", lambda: queue)
    assert status.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["job", "state", "node", "start", "epoch", "samples/s", "accuracy", "message"]
    assert lines[1].split() == ["t/ima", "RUNNING", "n1", "-", "3/9", "1,234", "0.5000"]
    assert lines[2].split()[:2] == ["t/ce", "ENDED"]
    write_private(folder / "ce" / "result.json", {"status": 1, "message": "it broke"})
    assert status.main(["t/ce"]) == 0
    assert re.search("t/ce +FAILED .* it broke", capsys.readouterr().out)
    for words, sentence in (
        (["tt"], "no job 'tt' (did you mean t?)"),
        (["t/im"], "no row 'im'"),
        (["cancel"], "Say what to cancel"),
        (["t", "--follow"], "name one of t/ima, t/ce"),
    ):
        assert status.main(words) == 2
        assert sentence in capsys.readouterr().err


def test_a_node_that_is_slow_is_started_again(tmp_path):
    """Ray's own limit of 30 s for a node is short on a busy one. In a process of its own, which ends all below it."""
    stub = tmp_path / "ray" / "scripts"
    stub.mkdir(parents=True)
    for package in (stub, stub.parent):
        (package / "__init__.py").touch()
    (stub / "scripts.py").write_text(
        "import os, pathlib, sys, time\n"
        f"tries = pathlib.Path({str(tmp_path / 'tries')!r})\n"
        "n = len(tries.read_text()) if tries.exists() else 0\n"
        "tries.write_text('x' * (n + 1))\n"
        "if n < int(os.environ['FAILURES']): sys.exit('The current node timed out during startup.')\n"
        "print('Ray runtime started.', flush=True)\n"
        "time.sleep(600)\n"
    )
    code = (
        "import pathlib, sys; from cluster import processes, ray_node; processes.adopt_orphans(); "
        "place = pathlib.Path(sys.argv[1]); "
        "node = ray_node.RayNode(place, place / 'log', place / 'token', '127.0.0.1', 1, *sys.argv[2:])\n"
        "try:\n    processes.wait_for(node.up, 120)\n    print('up', node.attempts, node.gcs_address)\n"
        "except ray_node.RayEnded as error:\n    print(error)\n"
        "ray_node.end_descendants()"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    for failures, head, answer in (
        (2, ["127.0.0.1:9"], "up 3 127.0.0.1:9"),
        # A head's address is known as soon as it is up: Ray's own file of it comes later.
        (1, [], r"up 2 127.0.0.1:\d+$"),
        (9, [], "Ray ended on .*timed out during startup"),
    ):
        (tmp_path / "tries").unlink(missing_ok=True)
        (tmp_path / "log").unlink(missing_ok=True)
        environment["FAILURES"] = str(failures)
        command = [sys.executable, "-c", code, str(tmp_path), *head]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert re.match(answer, done.stdout), done.stdout + done.stderr


def test_waiting_ends_for_a_job_that_left_without_a_result(tmp_path, monkeypatch):
    rows = [{"name": name, "id": str(i), "run": str(tmp_path / name)} for i, name in enumerate(("good", "lost"))]
    write_private(tmp_path / "job.json", {"rows": rows})
    write_private(tmp_path / "good" / "result.json", {"status": 0, "message": ""})
    monkeypatch.setattr(submit.slurm, "queue", dict)
    monkeypatch.setattr(submit, "_FILE_SECONDS", 0.0)
    monkeypatch.setattr(submit, "_LOOK_EVERY", 0.01)
    seen: list[tuple[str, str]] = []
    found = submit.wait(tmp_path, lambda row, state: seen.append((row, state)))
    assert {name: result["status"] for name, result in found.items()} == {"good": 0, "lost": 1}
    assert found["lost"]["message"] == f"it left SLURM without a result: see {tmp_path / 'lost' / 'output.txt'}"
    assert seen[0] == ("good", "finished")
    assert submit._watch(tmp_path) == 1
    log = tmp_path / "1_0_log.out"
    log.write_text("srun: error")
    assert submit.wait(tmp_path)["lost"]["message"].endswith(f"see {log}")
