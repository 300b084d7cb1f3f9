"""Sweep files: what is planned, what one run answers for several, and the tables; without Ray Tune."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ima_dist import sweep as command
from ima_dist.config.errors import ConfigError
from ima_dist.config.presets import make_config
from ima_dist.config.schema import METHODS, ONLY_NORM
from ima_dist.config.values import option_values, with_options
from ima_dist.launch.cluster import settled, share_of_cpus, trials_at_once
from ima_dist.plans.pending import next_command
from ima_dist.plans.sweepfile import READ_BY, asked_text, canonical, is_sweep, read_sweep
from ima_dist.results.candidates import best_text, rows_of_directory, rows_of_points
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import write_json
from tests.support import workers
from tests.support.commands import ROOT
from tests.support.inline import without_ray

FILES = sorted((ROOT / "jobs").glob("sweep_*.yaml"))
TINY = {"data.subset": 40, "epochs": 2, "eval.samples": 8, "eval.steps": 2, "attack.steps": 2, "dtype": "float64"}


def sweep_file(tmp_path: Path, **entries: Any) -> Path:
    tree = {"title": "test", "preset": "moons", "options": TINY, "sweep": {"beta": [0.3, 0.7]}, **entries}
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in tree.items() if value is not None}))
    return path


def test_combinations_that_a_method_cannot_tell_apart_are_one_run(tmp_path):
    found = read_sweep(ROOT / "jobs" / "sweep_moons.yaml")
    assert [(p.config.method, p.values.get("beta"), p.seed) for p in found.points] == [
        *(("ima", beta, seed) for beta in (0.3, 0.5, 0.7) for seed in (0, 1)),
        *(("adv", None, seed) for seed in (0, 1)),
        *(("trades", None, seed) for seed in (0, 1)),
    ]
    assert len(found.runs) == 10
    (note,) = found.notes
    assert note == (
        "8 of 18 combinations differ from another one only in options that their method does not read: 10 are left."
    )


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_reads(method, tmp_path):
    """Training with another value of an option gives other weights exactly if the method reads it."""
    other = {
        "eps_max": 0.5, "delta_eps": 0.3, "beta": 0.9, "margin_update": "online", "trades.inverse_lambda": 1.0,
        "iaat.warmup": 2, "iaat.smoothing": 0.5, "fat.tau": 3, "nfgsm.noise": 1.0,
        "attack.steps": 4, "attack.step_scale": 1.0, "attack.bisections": 0, "attack.boundary_side": "outside",
        "margin_rule": "journal", "rand.kind": "gaussian",
    }  # fmt: skip
    assert set(other) == set(READ_BY)
    shared = {"norm": ONLY_NORM.get(method, "l2"), "method": method, "dtype": "float64"}
    shared |= {"data__subset": 200, "epochs": 3, "batch_size": 16}

    def weights(name: str, **options: Any) -> dict[str, torch.Tensor]:
        given = {"attack__steps": 3, "eps_max": 0.6, "optimizer__lr": 0.01, **options}
        config, _ = workers.start_run(tmp_path / name, "moons", **{**shared, **given})
        workers.train(config, tmp_path / name)
        return workers.final_state(config, tmp_path / name)[0]

    usual = weights("usual")
    read = [option for option in other if method in READ_BY[option]]
    for option in read:
        changed = weights(option, **{option.replace(".", "__"): other[option]})
        assert workers.largest_difference(usual, changed) > 0, option
    unread = {option.replace(".", "__"): value for option, value in other.items() if option not in read}
    assert workers.largest_difference(usual, weights("unread", **unread)) == 0


def test_unread_options_take_the_presets_value():
    config = make_config("moons", {"method": "ce", "eps_max": 0.1, "beta": 0.9, "epochs": 7})
    assert canonical(config) == make_config("moons", {"method": "ce", "epochs": 7})
    same = make_config("moons", {"method": "ima", "eps_max": 0.1, "beta": 0.9})
    assert canonical(same) == same


def test_every_margin_is_an_epoch_of_one_run(tmp_path):
    path = sweep_file(
        tmp_path,
        options={**TINY, "epochs": None, "delta_eps": 0.1},
        sweep={"method": ["ima", "adv"], "eps_max": [0.1, 0.2, 0.4]},
    )
    tree = yaml.safe_load(path.read_text())
    del tree["options"]["epochs"]
    path.write_text(yaml.safe_dump(tree))
    found = read_sweep(path)
    ima = [p for p in found.points if p.config.method == "ima"]
    assert [(p.values["eps_max"], p.epoch, p.config.epochs, p.config.eps_max) for p in ima] == [
        (0.1, 1, 4, 0.4), (0.2, 2, 4, 0.4), (0.4, 4, 4, 0.4),
    ]  # fmt: skip
    assert [epochs for config, epochs in found.runs.values() if config.method == "ima"] == [(1, 2, 4)]
    assert sorted(p.config.eps_max for p in found.points if p.config.method == "adv") == [0.1, 0.2, 0.4]
    assert "so 4 runs give the results of 6" in found.notes[0]

    path.write_text(yaml.safe_dump({**tree, "all_epochs": True, "options": {**tree["options"], "epochs": 3}}))
    other = read_sweep(path)
    assert [(p.config.eps_max, p.epoch, p.config.epochs) for p in other.points if p.config.method == "ima"] == [
        (0.1, 3, 3), (0.2, 3, 3), (0.4, 3, 3),
    ]  # fmt: skip
    assert other.notes == ()


def test_an_epoch_of_the_long_run_is_the_run_with_that_margin(tmp_path):
    """ε_max = M·Δε at equal Δε: M epochs from scratch end with the weights of epoch M."""
    shared = {"data__subset": 400, "batch_size": 32, "dtype": "float64", "delta_eps": 0.1, "attack__steps": 5}
    for margin_update in ("epoch", "online"):
        both = {**shared, "margin_update": margin_update}
        long, _ = workers.start_run(tmp_path / margin_update / "long", "moons", eps_max=0.5, epochs=5, **both)
        workers.train(long, tmp_path / margin_update / "long")
        for epochs in (1, 3):
            path = tmp_path / margin_update / str(epochs)
            short, _ = workers.start_run(path, "moons", eps_max=0.1 * epochs, epochs=epochs, **both)
            workers.train(short, path)
            weights, margins = workers.final_state(short, path)
            there = with_options(long, {"epochs": epochs})
            weights_2, margins_2 = workers.final_state(there, tmp_path / margin_update / "long")
            assert workers.largest_difference(weights, weights_2) < 1e-9
            assert margins is not None
            assert margins_2 is not None
            assert float((margins - margins_2.clamp_max(0.1 * epochs)).abs().max()) < 1e-9


def test_random_combinations_are_the_same_again(tmp_path):
    space = {
        "beta": {"uniform": [0.2, 0.8]}, "optimizer.lr": {"loguniform": ["1e-4", "1e-2"]},
        "attack.steps": {"randint": [1, 3]}, "method": ["ima", "adv"],
    }  # fmt: skip
    path = sweep_file(tmp_path, search="random", samples=20, sweep=space)
    first, again = read_sweep(path), read_sweep(path)
    assert [p.config for p in first.points] == [p.config for p in again.points]
    configs = [p.config for p in first.points]
    assert all(1e-4 <= c.optimizer.lr <= 1e-2 and c.attack.steps in (1, 2, 3) for c in configs)
    assert {c.attack.steps for c in configs} == {1, 2, 3}
    assert {c.method for c in configs} == {"ima", "adv"}
    more = read_sweep(sweep_file(tmp_path, search="random", samples=21, sweep=space))
    assert [p.config for p in more.points][:20] == configs


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"swep": {}}, r"unknown entry 'swep' \(did you mean sweep\?\)"),
        ({"preset": None}, "the file lacks the entry 'preset'"),
        ({"sweep": {"betta": [1]}}, r"unknown entry 'betta'"),
        ({"sweep": {"beta": [0.5, 2]}}, "with beta 2: --beta must lie between 0 and 1"),
        ({"sweep": {"beta": 0.5}}, "sweep, beta: give a list of values"),
        ({"sweep": {"beta": {"unifrom": [0, 1]}}}, r"not 'unifrom' \(did you mean uniform\?\)"),
        ({"sweep": {"beta": {"uniform": [0, 1]}}}, "a grid needs a list of values"),
        ({"sweep": {"beta": {"uniform": [1, 0]}}, "search": "random", "samples": 2}, "a smaller number first"),
        ({"sweep": {"beta": {"uniform": [0.1]}}, "search": "random", "samples": 2}, "uniform needs two numbers"),
        ({"search": "bayes"}, "search must be one of grid, random, optuna, not 'bayes'"),
        ({"search": "random"}, "samples must be a whole number of at least 1 for random and optuna"),
        ({"samples": 3}, "left out for a grid"),
        ({"search": "random", "samples": 0}, "samples must be at least 1, not 0"),
        ({"seeds": 3}, "seeds must be a list, not 3"),
        ({"sweep": {}}, "sweep must have at least one entry, not {}"),
        ({"seeds": [0, 0]}, "seeds must be a list of different whole numbers"),
        ({"options": {"seed": 3}}, "in place of the option seed"),
        ({"asha": {"grace": 1}}, "asha compares validation samples .* give the option eval.val_noise"),
        ({"asha": {"graze": 1}, "options": {"eval.val_noise": 0.1}}, r"unknown entry 'asha.graze'"),
        ({"asha": {"reduction": 1}, "options": {"eval.val_noise": 0.1}}, "asha.reduction must be above 1, not 1"),
        ({"search": "optuna", "samples": 2}, "search: optuna compares validation samples"),
        (
            {"search": "optuna", "samples": 2, "seeds": [0, 1], "asha": {"grace": 1},
             "options": {"eval.val_noise": 0.1}},
            "with asha there can be only one seed",
        ),
        (
            {"search": "optuna", "samples": 2, "sweep": {"beta": {"uniform": [0.5, 1.5]}},
             "options": {"eval.val_noise": 0.1}},
            "--beta must lie between 0 and 1, not 1.5",
        ),
        ({"options": {"delta_eps": 0.1}, "sweep": {"eps_max": [0.25]}}, "0.25 is not a whole number of delta_eps 0.1"),
        (
            {"options": {"delta_eps": 0.1, "epochs": 5}, "sweep": {"eps_max": [0.1, 0.2]}},
            "eps_max / delta_eps gives 2 epochs, and the option epochs says 5",
        ),
    ],
)  # fmt: skip
def test_mistakes_get_one_sentence(entries, says, tmp_path, capsys):
    path = sweep_file(tmp_path, **entries)
    with pytest.raises(ConfigError, match=says):
        read_sweep(path)
    assert command.main([str(path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: In {path}: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "Give a sweep file"),
        (["nowhere.yaml"], "There is no file nowhere.yaml here"),
        (["--resume", "nowhere"], "is not the directory of a sweep"),
        (["--resume", "a", "--scale", "tiny"], "reads the sweep from DIR"),
        ([str(FILES[0]), "--scale", "huge"], "there is no scale 'huge'"),
        ([str(FILES[0]), "--seeds", "a"], "--seeds must be whole numbers"),
        ([str(FILES[0]), "--trials", "a"], "has no trial 'a'"),
        (["best", "nowhere", "--min-clean", "0.9"], "nowhere is not a directory"),
        (["best", ".", "--min-clean", "9"], "--min-clean must lie between 0 and 1"),
        (["best", ".", "--min-clean", "0.9", "--attack", "wors"], "did you mean worst?"),
        (["best", ".", "--min-clean", "0.9", "--noise", "x"], "--noise must be numbers"),
        (["best", "."], "--min-clean"),
    ],
)
def test_mistakes_on_the_command_line(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command.main(words) == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_the_files_can_be_planned_in_every_scale(file):
    scales = yaml.safe_load(file.read_text())["scales"]
    assert {"small", "tiny"} <= set(scales)
    for scale in (None, *scales):
        found = read_sweep(file, scale)
        assert found.points
        # What is kept in the results directory asks for the same.
        tree = yaml.safe_load(asked_text(found))
        assert "scales" not in tree
    assert is_sweep(file)
    assert not is_sweep(ROOT / "jobs" / "table02.yaml")


def test_trials_are_run_once_and_give_one_table(tmp_path, monkeypatch, capsys):
    without_ray(monkeypatch)
    monkeypatch.chdir(tmp_path)
    path = sweep_file(tmp_path, seeds=[0, 1], sweep={"beta": [0.3]})
    sweep = read_sweep(path)
    names = list(sweep.runs)
    assert command.main([str(path), "--list"]) == 0
    assert capsys.readouterr().out.count("python -m ima_dist.train moons --method ima") == 2
    for name in names:
        assert command.main([str(path), "--device", "cpu", "--trials", name, "--out", "out"]) == 0
    capsys.readouterr()
    recorded = {path.stem for path in (tmp_path / "out" / "dataset" / "runs").iterdir()}
    assert recorded == set(names)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}

    # Everything is there: no cluster is needed for the table.
    assert command.main([str(path), "--out", "out"]) == 0
    table = capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == before
    lines = [line.split() for line in table.splitlines() if "worst" in line]
    assert [line[:3] for line in lines] == [["0.3", "worst", "2/2"]]
    runs = [RunDir(tmp_path / "out" / name) for name in names]
    accuracies = [
        c["accuracy"] for run in runs for c in run.summary()["curves"]
        if (c["attack"], c["loss"], c["noise"]) == ("worst", "both", 0.0)
    ]  # fmt: skip
    assert float(lines[0][3]) == pytest.approx(sum(accuracies) / 2, abs=5e-5)

    # More noise levels: evaluated again, not trained.
    weights = runs[0].checkpoints_dir / "epoch=0002" / "model.safetensors"
    time = weights.stat().st_mtime_ns
    options = {**TINY, "eval.noise": [0.0, 0.15, 0.9]}
    more = sweep_file(tmp_path, seeds=[0, 1], sweep={"beta": [0.3]}, options=options)
    flags = ["--device", "cpu", "--out", "out"]
    assert command.main([str(more), *flags, "--trials", names[0]]) == 0
    assert weights.stat().st_mtime_ns == time
    assert 0.9 in {c["noise"] for c in runs[0].summary()["curves"]}

    write_json(runs[1].summary_path, {**runs[1].summary(), "status": "interrupted"})
    config, epochs = sweep.runs[names[1]]
    module, words = next_command(config, runs[1].path, epochs) or ("", [])
    assert (module, words[:2]) == ("ima_dist.train", ["--resume", str(runs[1].path)])
    (row,) = rows_of_points(sweep.points, tmp_path / "out")
    assert (len(row.seeds), len(row.networks)) == (2, 1)
    with pytest.raises(ConfigError, match="holds the run of another configuration: move it away"):
        next_command(config, runs[0].path, epochs)


CPU_NODE, GPU_NODE = {"CPU": 8.0}, {"CPU": 16.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("options", "nodes", "cpus", "count"),
    [
        ({}, [CPU_NODE], 1, 8),
        ({"workers": 3}, [CPU_NODE], 1, 2),
        ({"workers": 3, "cpus_per_worker": 2}, [CPU_NODE, CPU_NODE], 1, 2),
        ({}, [GPU_NODE, GPU_NODE], 4, 8),
        ({"workers": 2}, [GPU_NODE, CPU_NODE], 4, 2),
        ({"workers": 8}, [GPU_NODE, GPU_NODE], 4, 1),
        ({"device": "cpu"}, [GPU_NODE], 1, 16),
        ({"workers": "2-9"}, [GPU_NODE], 4, 2),
    ],
)
def test_how_many_trials_run_at_a_time(options, nodes, cpus, count):
    config = make_config("moons", options)
    assert share_of_cpus(config, nodes) == cpus
    assert trials_at_once([settled(config, cpus)], nodes) == count


def test_a_trial_that_no_cluster_of_this_size_holds():
    with pytest.raises(ConfigError, match="use at most 8"):
        trials_at_once([settled(make_config("moons", {"workers": 9}), 1)], [CPU_NODE])


def fake_run(path: Path, options: dict[str, Any], clean: float, robust: float, **changes: Any) -> RunDir:
    """A finished run of which only the results are there; robust: accuracy at noise 0.2."""
    config = make_config("moons", {"epochs": 3, "eval.noise": [0.0, 0.1, 0.2], **options})
    run = RunDir.create(config, path)
    accuracies = {0.0: clean, 0.1: (clean + robust) / 2, 0.2: robust}
    curves = [
        {"attack": attack, "loss": "both", "norm": "linf", "noise": x, "split": "test", "accuracy": a,
         "samples": 2000, "steps": 20, "step_scale": 4.0, "epoch": 3}
        for attack in ("pgd100", "worst") for x, a in accuracies.items()
    ]  # fmt: skip
    write_json(run.summary_path, {"status": "finished", "curves": curves, **changes})
    return run


def test_best_of_any_directory(tmp_path, capsys):
    for seed, shift in ((0, 0.0), (1, 0.001)):
        common = {"seed": seed}
        fake_run(tmp_path / f"a/ima3-{seed}", {**common, "beta": 0.3}, 0.97, 0.70 + shift)
        fake_run(tmp_path / f"b/ima7-{seed}", {**common, "beta": 0.7}, 0.96, 0.701 + shift)
        # β is not read by adv: one candidate.
        fake_run(tmp_path / f"b/adv-{seed}", {**common, "method": "adv", "beta": 0.1 + seed / 2}, 0.95, 0.5 + shift)
        fake_run(tmp_path / f"b/ce-{seed}", {**common, "method": "ce"}, 0.99, 0.1 + shift)
        fake_run(tmp_path / f"b/trades-{seed}", {**common, "method": "trades"}, 0.85, 0.8 + shift)
    unfinished = fake_run(tmp_path / "b/unfinished", {"beta": 0.4}, 0.9, 0.9, status="running")
    (tmp_path / "b/broken").mkdir()
    (tmp_path / "b/broken/config.yaml").write_text("{")
    rows, problems = rows_of_directory(tmp_path)
    assert sorted(row.name for row in rows) == [
        "method=adv", "method=ce", "method=ima beta=0.3", "method=ima beta=0.7", "method=trades",
    ]  # fmt: skip
    assert len(problems) == 2
    assert any(str(unfinished.path) in problem for problem in problems)

    assert command.main(["best", str(tmp_path), "--min-clean", "0.90"]) == 0
    out, err = capsys.readouterr()
    assert err.count("warning: ") == 2
    assert "Attack: worst." in out
    marks = {line[:3].strip(): line[3:].split()[0:2] for line in out.splitlines() if "method=" in line[:15]}
    assert marks["P*"] == ["method=ima", "beta=0.3"]
    assert "Choice: method=ima beta=0.3, the highest score" in out
    assert "Equal to it within noise: method=ima beta=0.7." in out

    text = best_text(rows, 0.8, (0.2,), "pgd100")
    assert "Choice: method=trades" in text
    assert "All other candidates with that accuracy differ from it by more than noise." in text
    assert "No candidate has a clean accuracy of 0.999 or more: the best has 0.9900." in best_text(rows, 0.999)
    with pytest.raises(ConfigError, match=r"no accuracy at noise 0.5"):
        best_text(rows, 0.9, (0.5,))
    with pytest.raises(ConfigError, match=r"Not every candidate was evaluated with spsa\. Attacks they all share: "):
        best_text(rows, 0.9, attack="spsa")
    fake_run(tmp_path / "c/l2", {"norm": "l2"}, 0.9, 0.9)
    assert command.main(["best", str(tmp_path), "--min-clean", "0.90"]) == 2
    assert "holds runs of moons under l2 and moons under linf" in capsys.readouterr().err


def test_best_opens_without_torch(tmp_path):
    fake_run(tmp_path / "one", {}, 0.95, 0.5)
    code = (
        "import sys, ima_dist.sweep as s; s.main(['best', sys.argv[1], '--min-clean', '0.9']); "
        "print([m for m in ('torch', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert "Choice: all" in done.stdout
    assert "Each candidate has one seed" in done.stdout


def test_options_of_the_file_reach_the_runs(tmp_path):
    path = sweep_file(tmp_path, scales={"tiny": {"epochs": 1, "seeds": [4], "sweep": {"beta": [0.2]}}})
    (point,) = read_sweep(path, "tiny", {"workers": 2}).points
    values = option_values(point.config)
    assert (values["epochs"], values["seed"], values["beta"], values["workers"]) == (1, 4, 0.2, 2)
    assert read_sweep(path, "tiny", seeds=(7, 8)).seeds == (7, 8)
