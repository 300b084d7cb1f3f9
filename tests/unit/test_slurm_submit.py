"""What is submitted, mistakes that are noticed before sbatch is asked, and how submitted jobs are shown."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from pathlib import Path

import pytest

from cluster import partitions, ray_node, slurm, status, submit, watch
from cluster.records import progress_of, write_private
from ima_dist.config.errors import ConfigError
from ima_dist.launch import temporary
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
        "job-name": "table11", "mem": "160G", "nodes": "4", "ntasks": "4", "ntasks-per-node": "1",
        "open-mode": "append", "output": f"{tmp_path}/runs/cluster/table11/%A_%a_0_log.out", "partition": "v100",
        "requeue": "", "reservation": "night", "signal": "USR2@180", "time": "1440",
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
        (SWEEP, ["--autocast", "bfloat16"], "have no bfloat16: use --autocast float16"),
        (SWEEP, ["--rows", "ima"], "The sweep has no trial 'ima'"),
        (SWEEP, ["--rows", "ima", "--one-job"], "--one-job runs the whole sweep: leave --rows out."),
        (f"{SWEEP}search: optuna\nsamples: 3\noptions: {{eval.val_noise: 0.1}}\n", [], "submit it with --one-job"),
        (f"{SWEEP}asha: {{grace: 2}}\noptions: {{eval.val_noise: 0.1}}\n", [], "asha compares trials"),
        ("title: t\npreset: moons\nrows: {a: {}}\n", ["--one-job"], "is not a sweep file"),
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
        (["--partition", "v100", "--scale", "huge"], "there is no scale 'huge': the file has small, tiny."),
        (["--partition", "v100", "--autocast", "bfloat16"], "The cards of partition v100 have no bfloat16: use"),
        (["--partition", "v100", "--time", "5"], "a time of 5 min is too short for a notice of 180 s"),
        (["--partition", "v100", "--cards", "0"], "Partition v100: cards must be at least 1, not 0."),
        (["--partition", "v100", "--time", "soon"], "'soon' is not a time limit"),
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
        ("[v100]\ncards = '4'\n", "cards must be a whole number, not '4'"),
        ("[v100]\nsetup = 'module load'\n", "setup must be a list, not 'module load'"),
        ("[v100]\nautocast = 'bfloat16'\n", "have no bfloat16"),
        ("[v100]\nautocast = 'float8'\n", "autocast must be one of float16, bfloat16, not 'float8'"),
        ("[v100]\ncompute_capability = '7'\n", 'must look like "7.0", not'),
        ("[v100]\ncards = 0\n", "cards must be at least 1, not 0"),
        ("[v100]\nnotice = 1\n", "notice must be at least 10, not 1"),
        ("[v100]\nname = 'x'\n", "unknown entry 'name'"),
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


@pytest.fixture
def short():
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as short:  # as the paths of sockets must be
        yield Path(short)


def test_private_directories(short):
    """Nobody else may look in; it vanishes with its maker, or when the next one comes."""
    tmp_path = short
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


def test_a_long_temporary_directory_is_reached_by_a_short_link(tmp_path, monkeypatch):
    monkeypatch.setenv("MINE", str(tmp_path / ("x" * 90)))
    base = ray_node.temporary_base("$MINE/job")
    assert base == f"{os.environ['MINE']}/job"
    with ray_node.private_directory(base, "123") as inner:
        assert len(str(inner)) + temporary.ROOM_FOR_RAY <= temporary.SOCKET_PATH
        assert Path(os.path.realpath(inner)).is_relative_to(base)
        (inner / "session").mkdir()
        (private,) = Path(base).iterdir()
        for place in (private, inner.parent):
            assert place.stat().st_mode & 0o777 == 0o700
    assert not list(Path(base).iterdir())
    assert not inner.parent.exists()
    with pytest.raises(ConfigError, match=r"temp in partitions.toml is \$NOWHERE/x, but the variable is not set on"):
        ray_node.temporary_base("$NOWHERE/x")


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


@pytest.fixture
def two_rows(tmp_path, monkeypatch):
    """A submission of two rows, of which "good" has a result."""
    rows = [{"name": name, "id": str(i), "run": str(tmp_path / name)} for i, name in enumerate(("good", "lost"))]
    write_private(tmp_path / "job.json", {"rows": rows})
    write_private(tmp_path / "good" / "result.json", {"status": 0, "message": ""})
    monkeypatch.setattr(watch, "LOOK_EVERY", 0.01)
    return tmp_path


def test_waiting_ends_for_a_job_that_left_without_a_result(two_rows, monkeypatch):
    monkeypatch.setattr(slurm, "queue", dict)
    monkeypatch.setattr(watch, "_FILE_SECONDS", 0.0)
    seen: list[tuple[str, str]] = []
    found = watch.wait(two_rows, lambda row, state: seen.append((row, state)))
    assert {name: result["status"] for name, result in found.items()} == {"good": 0, "lost": 1}
    assert found["lost"]["message"].startswith("it left SLURM without a result before it started")
    assert seen[0] == ("good", "finished")
    assert watch.watch(two_rows) == 1
    log = two_rows / "1_0_log.out"
    log.write_text("a\nb\n\nsrun: error:  no node\nlast\n")
    assert watch.wait(two_rows)["lost"]["message"].endswith(f"see {log}, which ends: b / srun: error: no node / last")
    monkeypatch.setattr(slurm, "last_state", lambda job: "CANCELLED by 0")
    assert watch.wait(two_rows)["lost"] == {"status": 75, "message": "cancelled", "run": str(two_rows / "lost")}
    assert (two_rows / "lost" / "result.json").exists()


def test_the_queue_is_asked_seldom_and_its_silence_is_borne(two_rows, monkeypatch):
    """A waiting row, then a controller that fails for a while, then the row's result."""
    asked: list[int] = []

    def queue() -> dict[str, dict[str, str]]:
        asked.append(1)
        if len(asked) > 1:
            raise ConfigError("squeue: Socket timed out.")
        return {"1": {"id": "1", "state": "PENDING", "node": "", "reason": "Resources"}}

    looks: list[int] = []

    def sleep(seconds: float) -> None:
        looks.append(1)
        if len(looks) == 50:
            write_private(two_rows / "lost" / "result.json", {"status": 75, "message": "cancelled"})

    monkeypatch.setattr(watch.time, "monotonic", lambda: 31.0 * max(0, len(looks) - 39))
    monkeypatch.setattr(slurm, "queue", queue)
    monkeypatch.setattr(watch.time, "sleep", sleep)
    seen: list[tuple[str, str]] = []
    found = watch.wait(two_rows, lambda row, state: seen.append((row, state)))
    waits = "PENDING: waits for free nodes (Resources)"
    assert seen == [("good", "finished"), ("lost", waits), ("lost", "ended: cancelled")]
    assert found["lost"]["status"] == 75
    assert 10 <= len(asked) <= 13


def test_a_controller_that_is_silent_at_first_and_for_too_long(monkeypatch):
    def silent() -> dict[str, dict[str, str]]:
        raise ConfigError("squeue: Socket timed out.")

    monkeypatch.setattr(slurm, "queue", silent)
    held = watch.Queue(0.0)
    assert held.jobs() is None
    monkeypatch.setattr(slurm, "queue", dict)
    assert held.jobs() == {}
    monkeypatch.setattr(slurm, "queue", silent)
    assert held.jobs() == {}
    monkeypatch.setattr(watch, "_SILENCE", -1.0)
    with pytest.raises(ConfigError, match="Socket timed out"):
        held.jobs()
