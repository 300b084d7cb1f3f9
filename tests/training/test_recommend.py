"""``recommend --run``: plain adversarial training at the recommended noise levels, compared with the other methods."""

from __future__ import annotations

from ima_dist import recommend, train
from ima_dist.results.rivals import beside_the_best
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.run import Run
from tests.support.inline import without_ray
from tests.support.summaries import make_run

TINY = {
    "data.subset": 60, "epochs": 2, "batch-size": 20, "attack.steps": 2, "eval.steps": 2, "eval.samples": 20,
    "device": "cpu", "dtype": "float64", "workers": 1,
}  # fmt: skip
OPTIONS = [word for name, value in TINY.items() for word in (f"--{name}", str(value))]


def test_the_recommended_networks_are_trained_and_compared(tmp_path, capsys, monkeypatch):
    without_ray(monkeypatch)
    runs = {method: tmp_path / method for method in ("ima", "mma")}
    for method, path in runs.items():
        assert train.main(["moons", "--method", method, *OPTIONS, "--out", str(path)]) == 0
    capsys.readouterr()
    words = [str(runs["ima"]), "--run", "--beside", str(runs["mma"]), "--out", str(tmp_path / "adv")]
    assert recommend.main(words) == 0
    printed = capsys.readouterr().out
    trained = sorted(path for path in (tmp_path / "adv").iterdir() if (path / "config.yaml").exists())
    assert trained
    for path in trained:
        config = RunDir(path).config()
        assert (config.method, config.data.subset, config.eval.samples) == ("adv", 60, 20)
        assert f"adv{config.eps_max:g} under worst: " in printed
    table = printed[printed.rindex("\nnoise ") + 1 :]
    assert {line.split()[0] for line in table.splitlines()} >= {"ima", "paper", "mma", f"adv{config.eps_max:g}"}
    assert "another seed gives other ones" in printed
    # Again: nothing is left to train.
    before = {path: (path / "summary.json").stat().st_mtime_ns for path in trained}
    assert recommend.main(words) == 0
    assert before == {path: (path / "summary.json").stat().st_mtime_ns for path in trained}


def test_what_cannot_be_compared_is_refused(tmp_path, capsys, monkeypatch):
    without_ray(monkeypatch)
    path, other = tmp_path / "ima", make_run(tmp_path / "other", "mnist", {0.1: 0.5}).path
    assert train.main(["moons", *OPTIONS, "--out", str(path)]) == 0
    assert recommend.main([str(path), "--beside", str(path)]) == 2
    assert "go with --run" in capsys.readouterr().err
    assert recommend.main([str(path), "--run", "--beside", str(other)]) == 2
    assert "other data or under another norm" in capsys.readouterr().err


def test_the_verdict_compares_level_by_level_with_the_best_of_the_others(tmp_path):
    accuracies = {
        "ima": {0.0: 0.92, 0.1: 0.80, 0.2: 0.40},
        "mma": {0.0: 0.90, 0.1: 0.77, 0.2: 0.50},
        "adv0.1": {0.0: 0.93, 0.1: 0.79, 0.2: 0.10},
        "adv0.15": {0.0: 0.925, 0.1: 0.85, 0.2: 0.49},
    }
    found = {name: Run(make_run(tmp_path / name, "moons", row, {"samples": 400})) for name, row in accuracies.items()}
    assert beside_the_best(found, ["adv0.1", "adv0.15"]) == [
        "adv0.1 under pgd100: below the best of the others at 1 of 3 noise levels: 0.2 (0.1000 against 0.5000 of mma).",
        "adv0.15 under pgd100: as good as the best of the others at all 3 noise levels, within noise.",
    ]


def test_runs_without_a_shared_attack_are_not_compared(tmp_path):
    runs = {
        "ima": Run(make_run(tmp_path / "ima", "moons", {0.1: 0.5}, {"attack": "worst"})),
        "adv0.1": Run(make_run(tmp_path / "adv", "moons", {0.1: 0.5})),
    }
    assert beside_the_best(runs, ["adv0.1"]) == ["The runs share no attack, so nothing can be compared."]


def test_the_verdict_allows_for_the_number_of_comparisons(tmp_path):
    # 0.45 against 0.52 of 400 samples: z = 1.98, beyond chance if nothing else were compared.
    def said(levels: int) -> str:
        row = dict.fromkeys([0.0, 0.1, 0.2, 0.3][:levels], 0.9)
        found = {
            name: Run(make_run(tmp_path / f"{name}{levels}", "moons", {**row, 0.0: clean}, {"samples": 400}))
            for name, clean in (("ima", 0.52), ("adv0.1", 0.45))
        }
        return beside_the_best(found, ["adv0.1"])[0]

    assert "below the best of the others at 1 of 1 noise levels: 0 (0.4500 against 0.5200 of ima)" in said(1)
    assert "as good as the best of the others at all 4 noise levels" in said(4)
