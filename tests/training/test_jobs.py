"""The job files: complete, readable, and each of them runs from end to end on small files in the genuine format."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from ima_dist import evaluate, job, models
from ima_dist.config.attacks import ATTACK_TABLE
from ima_dist.config.errors import ConfigError
from ima_dist.config.presets import make_config
from ima_dist.plans.jobfile import PACKAGED, find_file
from ima_dist.plans.pending import next_command
from ima_dist.plans.sweepfile import is_sweep
from ima_dist.results import paper
from ima_dist.rundir.curves import attack_rows
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import write_json
from tests.support.commands import ROOT
from tests.support.datafiles import write_cifar, write_covid, write_idx, write_pathmnist, write_svhn
from tests.support.inline import without_ray
from tests.support.jobfiles import TABLES, table_file
from tests.support.small_images import of_any_size, of_any_size_batch_norm

FILES = sorted(set((ROOT / "jobs").glob("*.yaml")) - set((ROOT / "jobs").glob("sweep_*.yaml")))
WRITERS = {
    "moons": lambda directory: directory,
    "fashion_mnist": write_idx,
    "mnist": write_idx,
    "svhn": write_svhn,
    "cifar10": write_cifar,
    "covid_ct": write_covid,
    "pathmnist": write_pathmnist,
}

_TINY = "title: own\npreset: moons\noptions: {data.subset: 40, epochs: 1, eval.steps: 1, eval.noise: [0.0]}\n"


def test_every_table_has_its_file():
    journal = [f"journal_{name}.yaml" for name in ("cifar10", "covid_ct", "pathmnist")]
    assert [f.name for f in FILES] == ["appendix_a.yaml", *journal, "moons.yaml", *(table_file(n).name for n in TABLES)]


@pytest.mark.parametrize("table", TABLES)
def test_rows_levels_and_epochs_are_those_of_the_paper(table):
    read = job.read_job(table_file(table))
    assert read.table == table
    cells = paper.cells(table=table)
    names = {cell.method for cell in cells}
    if read.epochs:
        assert {f"epsmax={e}de" for e in read.epochs} == names
    else:
        assert set(read.rows) == names
    for name, config in read.rows.items():
        assert (config.preset, config.norm) == (cells[0].dataset, cells[0].norm)
        levels = {round(cell.noise, 6) for cell in cells}
        assert {round(level, 6) for level in config.eval.noise} == levels
        attacks = {*config.eval.attacks, *(a for then in read.then for a in then["eval.attacks"])}
        assert {cell.attack for cell in cells} <= attacks, name
    assert {"small", "tiny"} <= set(yaml.safe_load(table_file(table).read_text())["scales"])


def test_noise_level_and_seed_of_a_row_stand_in_its_name():
    for table in TABLES:
        for name, config in job.read_job(table_file(table)).rows.items():
            if match := re.fullmatch(r"(?:adv|rand)([\d.]+)", name):
                assert config.eps_max == float(match[1])
            if match := re.fullmatch(r"(?:ima_s|mma-.*-sd)(\d)", name):
                assert config.seed == int(match[1])
            if match := re.fullmatch(r"beta=([\d.]+)", name):
                assert config.beta == float(match[1])


def _rows_to_run() -> dict[str, list[str]]:
    """File -> its first row of each method that no earlier file trains on the same data in the same norm, or one row.

    The others differ from these in numbers alone, which the tests above compare.
    """
    seen: set[tuple[str, str, str]] = set()
    chosen = {}
    for file in FILES:
        rows: dict[tuple[str, str, str], str] = {}
        for name, config in job.read_job(file, "tiny").rows.items():
            rows.setdefault((config.preset, config.norm, config.method), name)
        new = {kind: name for kind, name in rows.items() if kind not in seen}
        chosen[file.stem] = list((new or dict([next(iter(rows.items()))])).values())
        seen |= rows.keys()
    return chosen


ROWS = _rows_to_run()


# appendix_a is a row of table06's kind. The networks themselves: test_models and test_export.
@pytest.mark.parametrize("file", [f for f in FILES if f.stem != "appendix_a"], ids=lambda f: f.stem)
def test_tiny_form_runs_from_end_to_end(file, tmp_path, monkeypatch, capsys):
    without_ray(monkeypatch)
    for slow in ("wrn_28_4", "resnet18_in", "resnet18_gn", "fashion_mnist_cnn", "svhn_cnn"):
        monkeypatch.setattr(models, slow, of_any_size)
    monkeypatch.setattr(models, "resnet18_bn", of_any_size_batch_norm)
    read, rows = job.read_job(file, "tiny"), ROWS[file.stem]
    preset = next(iter(read.rows.values())).preset
    data = WRITERS[preset](tmp_path / "data")
    data.mkdir(exist_ok=True)
    command = [str(file), "--scale", "tiny", "--data.dir", str(data), "--out", str(tmp_path / "runs")]
    command += ["--device", "cpu", "--rows", ",".join(rows)]
    assert job.main(command) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert f"{read.title}, scale tiny" in out
    runs = [RunDir(p) for p in (tmp_path / "runs").iterdir()]
    assert sorted(run.config().fingerprint() for run in runs) == sorted(read.rows[name].fingerprint() for name in rows)
    for run in runs:
        assert run.status == "finished"
        curves = run.summary()["curves"]
        wanted = {*read.epochs} or {run.config().epochs}
        assert {c["epoch"] for c in curves} >= wanted
        assert {c["attack"] for c in curves} >= {a for then in read.then for a in then["eval.attacks"]}
    last = out[out.rindex(read.title) :]
    for name in rows:
        assert read.epochs or re.search(rf"^{re.escape(name)} ", last, re.MULTILINE)

    # Once more: nothing is left to be done.
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*.parquet")}
    assert job.main(command) == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*.parquet")} == before


def test_nothing_is_begun_near_the_end_of_a_slurm_job(tmp_path, monkeypatch, capsys):
    without_ray(monkeypatch)
    file = tmp_path / "own.yaml"
    file.write_text(_TINY + "rows:\n  ce: {method: ce}\nthen:\n  - {attacks: [white-noise]}\n")
    command = [str(file), "--out", str(tmp_path / "runs"), "--device", "cpu"]
    monkeypatch.setenv("IMA_DIST_LAST_START", "1")
    assert job.main(command) == 75
    assert "Run the same command again to continue." in capsys.readouterr().out
    monkeypatch.setenv("IMA_DIST_LAST_START", "1e12")
    assert job.main(command) == 0
    assert "white-noise" in capsys.readouterr().out


def test_done_means_evaluated_as_was_asked(tmp_path, monkeypatch):
    """A run that was evaluated with other settings is evaluated again, but only with the attacks that need it."""
    without_ray(monkeypatch)
    file, out = tmp_path / "own.yaml", tmp_path / "runs"

    def do(**evaluation: object) -> dict[str, set[tuple[object, ...]]]:
        """Run the job; returns (noise, samples, steps) of the row of each attack."""
        options = {"data.subset": 40, "epochs": 1, "method": "ce", "eval.steps": 1, "eval.noise": [0.0, 0.1]}
        options |= {f"eval.{name}": value for name, value in evaluation.items()}
        file.write_text(yaml.safe_dump({"title": "own", "preset": "moons", "options": options, "rows": {"ce": {}}}))
        assert job.main([str(file), "--out", str(out), "--device", "cpu"]) == 0
        found: dict[str, set[tuple[object, ...]]] = {}
        (run,) = map(RunDir, out.iterdir())
        for attack, row in attack_rows(run.points()).items():
            found[attack] = {(p.noise, p.samples, p.steps) for p in row.values()}
        return found

    first = do(samples=3)
    assert first == {attack: {(0.0, 3, 1), (0.1, 3, 1)} for attack in ("pgd100", "worst")}
    everything = do()
    size = next(iter(everything["worst"]))[1]
    assert size > 3
    assert everything == {attack: {(0.0, size, 1), (0.1, size, 1)} for attack in ("pgd100", "worst")}
    # Levels of one protocol stand together.
    everywhere = {(level, size, 1) for level in (0.0, 0.1, 0.2)}
    assert do(noise=[0.0, 0.2])["worst"] == everywhere
    assert do(noise=[0.0, 0.2], steps=2)["pgd100"] == {(0.0, size, 2), (0.2, size, 2)}
    (run,) = map(RunDir, out.iterdir())
    assert evaluate.main([str(run.path), "--attack", "worst", "--eval.samples", "2", "--device", "cpu"]) == 0
    untouched = run.summary()["curves"]
    assert do(noise=[0.0, 0.2], steps=2)["worst"] == {(0.0, size, 2), (0.2, size, 2)}
    assert run.summary()["curves"] == untouched
    before = run.outcomes_path.stat().st_mtime_ns
    do(noise=[0.0, 0.2], steps=2)
    do(noise=[0.2], steps=2, samples=size + 100)
    assert run.outcomes_path.stat().st_mtime_ns == before


def test_of_two_evaluations_with_one_attack_the_later_counts(tmp_path):
    config = make_config("moons", {"eval.steps": 5, "eval.noise": [0.1], "eval.order": "first"})
    run = RunDir.create(config, tmp_path / "run")
    curves = [
        {"attack": attack, "loss": "both", "norm": "linf", "noise": 0.1, "split": "test", "accuracy": 0.5,
         "samples": samples, "steps": 5, "step_scale": 4.0, "epoch": 30, "version": ATTACK_TABLE[attack].version}
        for attack, samples in (("pgd100", 10), ("worst", 100))
    ]  # fmt: skip
    write_json(run.summary_path, {"status": "finished", "curves": curves, "test_samples": 100})
    then = [{"eval.attacks": ["pgd100"], "eval.samples": 10}]
    assert next_command(config, run.path, (30,), then) is None
    module, words = next_command(config, run.path, (30,)) or ("", [])
    assert module == "ima_dist.evaluate"
    assert words[words.index("--eval.attacks") + 1] == "pgd100"
    assert words[words.index("--eval.samples") + 1] == "100"
    write_json(run.summary_path, {"status": "finished", "curves": curves})  # as earlier versions wrote it
    assert next_command(config, run.path, (30,), then) is None
    module, words = next_command(config, run.path, (20, 30), then) or ("", [])
    assert words[words.index("--epochs") + 1] == "20"
    assert words[words.index("--eval.attacks") + 1] == "pgd100,worst"
    assert "--eval.samples" not in words


def test_a_row_that_fails_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    without_ray(monkeypatch)
    file = tmp_path / "own.yaml"
    file.write_text(
        _TINY + "rows:\n  bad: {method: ce, model.factory: 'tests.support.user_code:nothing'}\n  good: {method: ce}\n"
    )
    assert job.main([str(file), "--out", str(tmp_path / "runs"), "--device", "cpu"]) == 1
    out, err = capsys.readouterr()
    assert "These rows failed: bad" in err
    assert re.search(r"^good ", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("title: [", "is not valid YAML"),
        ("- 1", "must hold a mapping"),
        ("title: a\npreset: moons\nrow: {}", "did you mean rows?"),
        ("title: a\npreset: moons", "the file lacks the entry 'rows'"),
        ("title: a\npreset: moons\nrows: {a: {betta: 1}}", "row a: The configuration has an unknown entry 'betta'"),
        ("title: a\npreset: moons\nrows: {a: {beta: 2}}", "row a: --beta must lie between"),
        ("title: a\npreset: moons\nrows: {a: {}}\nscales: {half: {}}", "there is no scale 'tiny': the file has half"),
    ],
)
def test_a_wrong_file_gets_one_sentence(tmp_path, text, says):
    file = tmp_path / "job.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        job.read_job(file, "tiny" if "scale" in says else None)
    assert says in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_missing_file_and_an_unknown_row(tmp_path, capsys):
    assert job.main([str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml cannot be read" in capsys.readouterr().err
    assert job.main([str(table_file(2)), "--rows", "adv0.4"]) == 2
    assert "has no row 'adv0.4' (did you mean adv0.3?)" in capsys.readouterr().err


def test_a_bare_name_is_a_file_here_or_one_that_comes_with_the_package(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert sorted(f.name for f in PACKAGED.glob("*.yaml")) == sorted(f.name for f in (ROOT / "jobs").glob("*.yaml"))
    assert find_file("table02") == find_file("table02.yaml") == PACKAGED / "table02.yaml"
    assert job.read_job("table02").table == 2
    assert is_sweep("sweep_moons")
    (tmp_path / "table02.yaml").write_text(_TINY + "rows:\n  ce: {method: ce}\n")
    assert job.read_job("table02").title == "own"
    assert find_file("jobs/table02.yaml") == Path("jobs/table02.yaml")
    assert job.main(["tabel03"]) == 2
    assert capsys.readouterr().err.endswith(
        "tabel03 here, nor among the job files of ima_dist (did you mean table03?).\n"
    )
