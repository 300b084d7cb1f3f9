"""The report: its numbers are those of the runs and of the paper, and it opens anywhere."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from ima_dist import train
from ima_dist.config.presets import make_config, train_command
from ima_dist.report import __main__
from ima_dist.results import paper
from ima_dist.results.statistics import wilson_interval
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import write_json
from tests.support.browser import CHROMIUM, DRIVER, chromium, needs_chromium
from tests.support.commands import ROOT, environment
from tests.support.datafiles import write_idx
from tests.support.inline import without_ray
from tests.support.reports import read_csv, report_on
from tests.support.summaries import make_run

# ---- real runs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods on the moons, and one on images, each with all the files that a run leaves behind."""
    root = tmp_path_factory.mktemp("runs")
    data = write_idx(root.parent / "report-data")
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        tiny = ["--data.subset", "40", "--epochs", "2", "--eval.steps", "2", "--attack.steps", "2", "--device", "cpu"]
        for method in ("ima", "ce"):
            assert train.main(["moons", "--method", method, *tiny, "--out", str(root / method)]) == 0
        images = ["fashion_mnist", "--method", "adv", "--eval.samples", "10", "--eval.noise", "0,0.1"]
        assert train.main([*images, *tiny, "--data.dir", str(data), "--out", str(root / "images")]) == 0
    return root


def test_numbers_are_those_of_the_runs_and_of_the_paper(runs, tmp_path, capsys):
    page = report_on(tmp_path, runs)
    written = sorted(p.name for p in tmp_path.iterdir())
    assert written == ["classes.csv", "curves.csv", "margins.csv", "report.html", "table01.csv", "table02.csv"]
    assert [Path(line).name for line in capsys.readouterr().out.split()][-1] == "report.html"
    rows = read_csv(tmp_path / "table01.csv")
    for method in ("ima", "ce"):
        entries = [c for c in RunDir(runs / method).summary()["curves"] if c["loss"] == "both"]
        for c in entries:
            (found,) = [
                r for r in rows if (r["row"], r["attack"], float(r["noise"])) == (method, c["attack"], c["noise"])
            ]
            assert float(found["ours"]) == c["accuracy"]
            low, high = wilson_interval(c["accuracy"], c["samples"])
            assert (float(found["low95"]), float(found["high95"])) == (low, high)
            assert (found["samples"], found["runs"], found["reduced"]) == ("20", method, "yes")
        shown = page.row(f"{method} seed 0", "pgd100")
        pgd = sorted((c for c in entries if c["attack"] == "pgd100"), key=lambda c: c["noise"])
        assert [cell[:6] for cell in shown[3:]] == [f"{c['accuracy']:.4f}" for c in pgd]
        assert "reduced" in shown[0]
        assert "epochs 2 (paper: 30)" in shown[0]
        assert "20 of 2,000 test samples" in shown[0]
    given = {(r["row"], float(r["noise"])): float(r["paper"]) for r in rows if r["attack"] == "pgd100"}
    assert given == {(c.method, c.noise): c.accuracy for c in paper.cells(table=1)}
    for r in rows:
        if r["ours"] and r["paper"]:
            assert float(r["difference"]) == pytest.approx(float(r["ours"]) - float(r["paper"]), abs=1e-6)
    curves = read_csv(tmp_path / "curves.csv")
    assert len(curves) == sum(len(RunDir(runs / name).summary()["curves"]) for name in ("ima", "ce", "images"))
    margins = [int(r["samples"]) for r in read_csv(tmp_path / "margins.csv") if r["run"] == "ima"]
    assert (len(margins), sum(margins)) == (50, 40)


def test_the_paper_s_figures_are_redrawn_and_every_setting_is_in_the_page(runs, tmp_path):
    page = report_on(tmp_path, runs)
    assert all(a.startswith(("data:image/png;base64,", "#")) for a in page.addresses)
    assert all(page.alts)
    # Two of the paper's, and on the classes of each run two.
    assert len(page.texts["caption"]) == len(page.texts["table"]) == 2 + 2 * 3
    headings = [h for h in page.texts["h3"] if "Figure" in h]
    assert [re.match(r"(Like )?Figures? [0-9]+\. \w+ \w+", h)[0] for h in headings] == [
        "Figure 6. Accuracy by",
        *["Figure 6. Decision boundary"] * 2,
        "Figure 7. Accuracy by",
        *[f"Like Figure 10. Sample {i}" for i in examples_of(runs / "images")],
        "Figure 11. Training and",
        "Like Figure 14. Estimated margins",
        "Figure 15. Training and",
    ]
    commands = page.texts["code"]
    assert train_command(RunDir(runs / "ima").config(), "ima") in commands
    assert f"{RunDir(runs / 'images').summary()['parameters']:,}" in page.texts["body"][0]
    assert "Instance norm has no parameters" in page.texts["body"][0]
    assert "WRN-28-4" not in page.texts["body"][0]  # no run on CIFAR-10


def examples_of(run: Path) -> list[int]:
    """Two test samples of one run's images: those that it classifies correctly come first."""
    arrays = np.load(run / "examples" / "noisy.npz", allow_pickle=False)
    wrong = arrays["clean_prediction"] != arrays["label"]
    return arrays["index"][np.argsort(wrong, kind="stable")][:2].tolist()


@needs_chromium
def test_as_a_mail_attachment_it_shows_the_figures_and_loads_nothing(runs, tmp_path):
    report_on(tmp_path, runs)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(text) < 2_600_000  # plotly.js alone has five million characters
    assert text.count('packed-plotly">') == 1
    with chromium() as browser:
        browser.get((tmp_path / "report.html").as_uri())
        count = len(browser.find_elements(By.CSS_SELECTOR, "figure"))
        drawn = "return document.querySelectorAll('figure .main-svg:first-child').length"
        WebDriverWait(browser, 60).until(lambda b: b.execute_script(drawn) == count)
        shown = browser.execute_script(
            "const data = document.querySelector('#figure0')._fullData;"
            "return data.filter(t => t.mode === 'lines+markers').map(t => Array.from(t.y))"
        )
        history = [c["accuracy"] for c in RunDir(runs / "ima").summary()["curves"]
                   if (c["attack"], c["loss"]) == ("pgd100", "both")]  # fmt: skip
        assert history in shown
        sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        urls = [m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"]
        assert [url for url in urls if not url.startswith(("data:", "blob:", "file:", "chrome:", "about:"))] == []
        assert not [m for m in browser.get_log("browser") if m["level"] == "SEVERE"]


def test_it_works_where_there_is_no_torch(runs, tmp_path):
    code = (
        "import sys\n"
        "for name in ('torch', 'ray', 'torchvision'): sys.modules[name] = None\n"
        "from ima_dist.report.__main__ import main\n"
        f"sys.exit(main([{str(runs)!r}, '--out', {str(tmp_path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "report.html").exists()


def test_the_selected_epoch_is_the_last_above_the_threshold(tmp_path):
    for name, method, values in (("a", "ima", [0.5, 0.92, 0.89, 0.91, 0.6]), ("b", "ce", [0.5, 0.6])):
        run = make_run(tmp_path / name, "svhn", {0.01: 0.5}, method=method)
        run.write_history([{"epoch": e, "train_accuracy": 0.9, "val_accuracy": v} for e, v in enumerate(values, 1)])
    captions = report_on(tmp_path / "out", tmp_path).texts["figcaption"]
    assert any(
        text.startswith("Star: epoch 4, the last with a validation accuracy of at least 0.9,") for text in captions
    )
    assert any(text.startswith("No epoch has a validation accuracy of at least 0.9,") for text in captions)


def test_steps_that_loss_scaling_has_skipped_are_shown(tmp_path):
    run = make_run(tmp_path / "half", "svhn", {0.01: 0.5})
    write_json(run.summary_path, {**run.summary(), "skipped_steps": 3})
    make_run(tmp_path / "whole", "svhn", {0.01: 0.5})
    told = [text for text in report_on(tmp_path / "out", tmp_path).texts["p"] if "loss scaling" in text]
    assert len(told) == 1
    assert "(half): loss scaling in float16 skipped 3 training steps." in told[0]


# ---- what goes wrong -----------------------------------------------------------------------------------


def test_a_broken_run_is_named_and_the_others_are_shown(tmp_path, capsys):
    make_run(tmp_path / "runs" / "good", "moons", {0.1: 0.5})
    for name, text in (("torn", '{"status": "fin'), ("odd", '{"status": "finished", "curves": [{"attack": 1}]}')):
        make_run(tmp_path / "runs" / name, "moons", {0.1: 0.5}).summary_path.write_text(text)
    make_run(tmp_path / "runs" / "bare", "moons", {0.1: 0.5}).config_path.unlink()
    running = make_run(tmp_path / "runs" / "running", "moons", {0.1: 0.5})
    write_json(running.summary_path, {**running.summary(), "status": "running"})
    page = report_on(tmp_path / "out", tmp_path / "runs")
    err = capsys.readouterr().err
    for name in ("torn", "odd", "bare", "running"):
        assert f"{name}" in err
        assert any(f"runs/{name}" in item for item in page.texts["li"])
    assert {r["run"] for r in read_csv(tmp_path / "out" / "curves.csv")} == {"good"}


def test_a_damaged_part_is_named_and_the_rest_of_the_run_is_shown(tmp_path, capsys):
    run = make_run(tmp_path / "run", "fashion_mnist", {0.1: 0.5})
    run.examples_dir.mkdir()
    (run.examples_dir / "noisy.npz").write_bytes(b"PK damaged")
    np.savez(run.examples_dir / "boundary.npz", **{n: np.zeros(3) for n in ("grid_x", "grid_y", "points", "labels")})
    run.history_path.write_bytes(b"no")
    page = report_on(tmp_path / "out", run.path)
    err = capsys.readouterr().err
    for name in ("noisy.npz", "boundary.npz", "history.parquet"):
        assert name in err
        assert any(name in item for item in page.texts["li"])
    assert page.row("ima seed 0", "pgd100")


def test_nothing_usable_writes_nothing(tmp_path, capsys):
    unfinished = RunDir.create(make_config("moons"), tmp_path / "run")
    for path in (tmp_path / "none", unfinished.path):
        assert __main__.main([str(path), "--out", str(tmp_path / "out")]) == 2
        err = capsys.readouterr().err
        assert "There is no finished run" in err
        assert str(path) in err
    assert not (tmp_path / "out").exists()
    assert __main__.main([str(unfinished.path)]) == 2
    (tmp_path / "file").touch()
    assert __main__.main([str(unfinished.path), "--out", str(tmp_path / "file")]) == 2
    assert "is a file" in capsys.readouterr().err


def test_other_files_of_the_directory_stay(tmp_path):
    run = make_run(tmp_path / "run", "moons", {0.1: 0.5})
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "report.html").write_text("<title>ima_dist report: an old one</title>")
    report_on(out, run.path, run.path, tmp_path)
    assert (out / "notes.txt").read_text() == "mine"
    assert sorted(p.name for p in out.iterdir()) == ["curves.csv", "notes.txt", "report.html", "table01.csv"]
    assert len(read_csv(out / "curves.csv")) == 1  # a run named several times counts once


def test_nothing_that_a_run_contains_becomes_html(tmp_path):
    code = (
        "</script><script>document.title = 'taken'<\\script>"
        "<img src=x onerror=\"document.title = 'taken'\"> & 'x' $\\frac$"
    )
    name = code.replace("/", "")
    run = make_run(tmp_path / "runs" / name, "moons", {0.1: 0.5}, model__factory="mine:build", data__dir=code)
    write_json(run.summary_path, {**run.summary(), "parameters": code, "message": code})
    run.write_history([{"epoch": 1, "train_accuracy": 0.9, "val_accuracy": 0.9, code: 1.0}])
    run.figures_dir.mkdir()
    (run.figures_dir / "equilibrium.png").write_bytes(b"\x89PNG")
    image = np.zeros((1, 1, 4, 4), np.float16)
    run.examples_dir.mkdir()
    np.savez(
        run.examples_dir / "noisy.npz",
        index=np.array([0]),
        label=np.array([0]),
        clean=image,
        clean_prediction=np.array([0]),
        noise=np.array([0.1]),
        noisy=image[:, None],
        prediction=np.array([[0]]),
        class_names=np.array([code]),
    )
    page = report_on(tmp_path / "out", tmp_path / "runs", run.path)
    assert name in page.texts["h3"]
    assert any(name in str(alt) for alt in page.alts)
    assert all(a.startswith(("data:image/png;base64,", "#")) for a in page.addresses)
    assert len([h for h in page.texts["h3"] if name in h and "Figure 10" in h]) == 1
    assert read_csv(tmp_path / "out" / "curves.csv")[0]["run"] == name
    assert page.handlers == []
    assert not any("document.title" in text for text in page.texts["script"])
    if CHROMIUM and DRIVER:
        with chromium() as browser:
            browser.get((tmp_path / "out" / "report.html").as_uri())
            drawn = "return document.querySelectorAll('figure .main-svg:first-child').length"
            WebDriverWait(browser, 60).until(lambda b: b.execute_script(drawn) == len(page.texts["figure"]))
            assert browser.title == "ima_dist report: 1 finished run"
