"""The verdict on gradient obfuscation from the outcomes of SPSA and PGD."""

from __future__ import annotations

from ima_dist import evaluate, train
from ima_dist.config.presets import make_config
from ima_dist.results.comparison import comparison_table
from ima_dist.results.obfuscation import Level, compare, verdict
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import write_json, write_parquet
from ima_dist.rundir.run import Run
from tests.support.inline import without_ray
from tests.support.summaries import curve, outcomes, outcomes_table


def test_only_samples_that_both_have_attacked_are_compared():
    found = compare(
        outcomes_table(
            outcomes("pgd100", 0.1, {0: True, 1: False, 2: False, 3: True, 7: True}),
            outcomes("spsa", 0.1, {3: False, 2: True, 1: True, 0: True, 9: False}),
            outcomes("pgd100", 0.3, {0: False}),
            outcomes("spsa", 0.3, {0: True}),
            outcomes("pgd100", 0.0, {0: True}),
            outcomes("spsa", 0.0, {0: False}),
            outcomes("spsa", 0.2, {0: False}),
            outcomes("worst", 0.1, {0: False}),
            outcomes("pgd100", 0.1, {0: False}, epoch=2),
            outcomes("pgd100", 0.1, {0: False}, loss="ce"),
        ),
        epoch=3,
    )
    assert found == [Level(0.1, 4, 0.75, 0.5, 1, 2), Level(0.3, 1, 1.0, 0.0, 0, 1)]


def test_verdict_of_the_paper_and_its_opposites():
    weaker, equal = Level(0.1, 100, 0.99, 0.98, 0, 1), Level(0.2, 100, 0.5, 0.5, 3, 3)
    assert verdict([weaker, equal]) == (
        "SPSA is not stronger than PGD on the same 100 samples: no sign of gradient obfuscation."
    )
    # One-sided sign test: 5 of 5 has probability 1/32, 6 of 6 has 1/64. Two levels share the 5 %.
    five, six = Level(0.3, 100, 0.90, 0.95, 5, 0), Level(0.3, 90, 0.90, 0.96, 6, 0)
    assert "at noise 0.3 (0.9000 against 0.9500): chance explains the difference" in verdict([weaker, five])
    assert "do not trust" in verdict([five])
    assert "do not trust" in verdict([weaker, six])
    assert "same 90 to 100 samples" in verdict([weaker, six])


def make_run(path, attacks=("spsa", "pgd100")) -> Run:
    run = RunDir.create(make_config("mnist", {"epochs": 3}), path)
    curves = [c for a in attacks for c in curve({0.1: 0.5}, attack=a, norm="linf", samples=2, epoch=3)]
    write_json(run.summary_path, {"curves": curves})
    write_parquet(run.outcomes_path, outcomes_table(*(outcomes(a, 0.1, {0: True, 1: False}) for a in attacks)))
    return Run(run)


def test_the_comparison_of_a_job_ends_with_the_verdict(tmp_path):
    text = comparison_table({"ima_s0": make_run(tmp_path / "a")}, 9)
    assert text.splitlines()[-1].startswith("ima_s0: SPSA is not stronger than PGD on the same 2 samples")
    assert "SPSA" not in comparison_table({"ima_s0": make_run(tmp_path / "b", ("pgd100",))}, 9)


def test_evaluate_shows_the_verdict_when_both_attacks_are_there(tmp_path, monkeypatch, capsys):
    without_ray(monkeypatch)
    out = tmp_path / "run"
    options = "--data.subset 40 --epochs 1 --method ce --eval.steps 1 --eval.noise 0,0.3 --device cpu"
    assert train.main(["moons", *options.split(), "--out", str(out)]) == 0
    assert "Black-box" not in capsys.readouterr().out
    assert evaluate.main([str(out), "--attack", "spsa", "--eval.spsa-samples", "4", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "Black-box and white-box attack on the same samples" in shown
    assert "SPSA is" in shown
    spsa = [c for c in RunDir(out).summary()["curves"] if c["attack"] == "spsa"]
    assert {c["spsa_samples"] for c in spsa} == {4}
    assert {c["noise"] for c in spsa} == {0.0, 0.3}
