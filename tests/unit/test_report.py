"""The report: its numbers are those of the runs and of the paper, and it opens anywhere."""

from __future__ import annotations

import csv
import json
import re
import statistics
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from ima_dist import job, train
from ima_dist.config.presets import PRESETS, make_config, options_of, preset_config, train_command
from ima_dist.report import __main__
from ima_dist.report.tables import make_tables, setting_differences
from ima_dist.report.write import collect
from ima_dist.results import paper
from ima_dist.results.statistics import wilson_interval
from ima_dist.rundir.curves import noise_key
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import write_json, write_parquet
from tests.support.browser import CHROMIUM, DRIVER, chromium, needs_chromium
from tests.support.commands import ROOT, environment
from tests.support.datafiles import write_idx
from tests.support.inline import without_ray
from tests.support.jobfiles import TABLES, table_file
from tests.support.summaries import curve, make_run, outcomes, outcomes_table


class Page(HTMLParser):
    """Cells of every table row, texts of each element, addresses, images; fails where tags do not nest."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.texts: dict[str, list[str]] = {}
        self.addresses: list[str] = []
        self.alts: list[str | None] = []
        self.handlers: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.addresses += [v for k, v in attributes if k in ("src", "href", "action", "data") and v is not None]
        self.handlers += [name for name in values if name.startswith("on")]
        if tag == "img":
            self.alts.append(values.get("alt"))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
        for tag in set(self.open):
            self.texts[tag][-1] += data

    def row(self, *starts: str) -> list[str]:
        (found,) = [r for r in self.rows if all(cell.startswith(s) for cell, s in zip(r, starts, strict=False))]
        return found


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def report_on(out: Path, *paths: Path) -> Page:
    assert __main__.main([*map(str, paths), "--out", str(out)]) == 0
    return Page((out / "report.html").read_text(encoding="utf-8"))


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
    assert written == ["curves.csv", "margins.csv", "report.html", "table01.csv", "table02.csv"]
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
    assert len(page.texts["caption"]) == len(page.texts["table"]) == 2
    headings = [h for h in page.texts["h3"] if "Figure" in h]
    assert [re.match(r"(Like )?Figures? [0-9]+\. \w+ \w+", h)[0] for h in headings] == [
        "Figure 6. Accuracy by",
        *["Figure 6. Decision boundary"] * 2,
        "Figure 7. Accuracy by",
        *[f"Figure 10. Sample {i}" for i in examples_of(runs / "images")],
        "Figure 11. Training and",
        "Like Figure 14. Estimated margins",
        "Figure 15. Training and",
    ]
    commands = page.texts["code"]
    assert train_command(RunDir(runs / "ima").config(), "ima") in commands
    assert f"{RunDir(runs / 'images').summary()['parameters']:,}" in page.texts["body"][0]
    assert "not affine" in page.texts["body"][0]
    assert "batches of 128" not in page.texts["body"][0]  # no run on CIFAR-10


def examples_of(run: Path) -> list[int]:
    """Two test samples of one run's images: those that it classifies correctly come first."""
    arrays = np.load(run / "examples" / "noisy.npz", allow_pickle=False)
    wrong = arrays["clean_prediction"] != arrays["label"]
    return arrays["index"][np.argsort(wrong, kind="stable")][:2].tolist()


@needs_chromium
def test_as_a_mail_attachment_it_shows_the_figures_and_loads_nothing(runs, tmp_path):
    report_on(tmp_path, runs)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count("plotly.js v") == 1  # inlined once
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


# ---- what belongs where --------------------------------------------------------------------------------


def test_titles_are_those_of_the_job_files():
    for number in TABLES:
        assert job.read_job(table_file(number)).title == paper.title(number)


@pytest.mark.parametrize("number", TABLES)
@pytest.mark.parametrize("scale", [None, "small"])
def test_every_row_of_every_job_finds_its_place(number, scale):
    read = job.read_job(table_file(number), scale)
    for name, config in read.rows.items():
        if read.epochs:
            whole = job.read_job(table_file(number)).epochs
            places = [paper.epoch_row_name(config, e) for e in read.epochs]
            assert places == [(number, f"epsmax={e}de") for e in whole]
        else:
            assert paper.rows_of(config)[number] == name


def test_runs_that_the_paper_lacks_have_no_place():
    for preset, options in (
        ("moons", {"norm": "l2"}),
        ("moons", {"beta": 0.1}),
        ("moons", {"eps_max": 0.2}),
        ("moons", {"method": "adv", "eps_max": 0.2}),
        ("moons", {"data.source": "mine:load"}),
        ("fashion_mnist", {"beta": 0.4}),
        ("mnist", {"method": "ce"}),
    ):
        assert paper.rows_of(make_config(preset, options)) == {}, options
    assert paper.rows_of(make_config("mnist", {"seed": 5, "method": "mma"})) == {8: "mma-0.45-sd5"}
    assert paper.epoch_row_name(make_config("fashion_mnist"), 15) == (17, "epsmax=15de")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_command_makes_the_configuration_again(preset, norm):
    own = {"norm": norm, "method": "ce", "epochs": 3, "data.subset": 50, "eps_max": 0.2, "eval.noise": (0.0, 0.1)}
    config = make_config(preset, own)
    assert make_config(preset, options_of(config)) == config
    assert setting_differences(preset_config(config)) == ()
    assert train_command(config, "a b").endswith("--out 'a b'")


def test_seeds_are_averaged_and_repeats_kept_apart(tmp_path):
    paths = []
    for i, (seed, accuracy) in enumerate([(0, 0.8), (1, 0.9), (2, 0.7), (1, 0.5)]):
        paths.append(make_run(tmp_path / f"run{i}", "moons", {0.1: accuracy}, seed=seed).path)
    paths.append(make_run(tmp_path / "short", "moons", {0.1: 0.1}, seed=3, epochs=3).path)
    (table,) = make_tables(collect(paths)[0])
    lines = [line for line in table.lines if line.results]
    first, second, reduced = [line.ours["test", 0.1] for line in lines]
    assert [len(line.results) for line in lines] == [3, 1, 1]
    assert first.accuracy == pytest.approx(0.8)
    assert first.spread == pytest.approx(statistics.stdev([0.8, 0.9, 0.7]))
    assert first.interval == wilson_interval(first.accuracy, 2000)
    assert (second.accuracy, second.spread) == (0.5, None)
    assert (reduced.accuracy, lines[2].differs) == (0.1, ("epochs 3 (paper: 30)",))
    assert lines[0].differs == ()
    page = report_on(tmp_path / "out", tmp_path)
    assert page.row("ima seeds 0, 1, 2")[3 + 2].startswith("0.8000 ± 0.1000[")


def test_what_differs_from_the_paper_is_said(tmp_path):
    fewer = {"samples": 300, "steps": 20, "step_scale": 2.0}
    run = make_run(tmp_path / "a", "fashion_mnist", {0.1: 0.5}, fewer, method="adv", eps_max=0.2, batch_size=64)
    (table,) = make_tables(collect([run.path])[0])
    (line,) = [line for line in table.lines if line.results]
    assert line.row == "adv0.2"
    assert line.differs == (
        "batch_size 64 (paper: 128)",
        "300 of 10,000 test samples",
        "eval.steps 20 (paper: 100)",
        "eval.step_scale 2 (paper: 4)",
    )


def test_own_data_are_shown_but_not_beside_the_paper(tmp_path):
    run = make_run(tmp_path / "own", "moons", {0.1: 0.5}, data__source="mine:load")
    (table,) = make_tables(collect([run.path])[0])
    assert table.number is None
    assert [(line.row, line.theirs) for line in table.lines] == [("ima", {})]
    assert table.lines[0].differs == ("data.source mine:load (paper: ima_dist.data.moons:load)",)
    page = report_on(tmp_path / "out", run.path)
    assert any("Beside the paper's tables: Moons" in h for h in page.texts["h2"])
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["curves.csv", "report.html"]


def test_table_15_is_the_size_of_differences(tmp_path):
    for beta, accuracy in ((0.1, 0.3), (0.5, 0.4), (0.9, 0.5)):
        make_run(tmp_path / f"b{beta}", "fashion_mnist", {0.1: accuracy}, {"samples": 10000}, beta=beta)
    report_on(tmp_path / "out", tmp_path)
    rows = {(r["row"], float(r["noise"])): r for r in read_csv(tmp_path / "out" / "table15.csv")}
    assert float(rows["difference", 0.1]["ours"]) == pytest.approx(0.1)
    assert [float(rows["difference", x]["paper"]) for x in (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)] == [
        0.0098, 0.0252, 0.0566, 0.0670, 0.0855, 0.0796, 0.0783,
    ]  # fmt: skip
    assert {"table02.csv", "table14.csv"} < {p.name for p in (tmp_path / "out").iterdir()}


def test_the_usual_beta_alone_makes_no_table_of_betas(tmp_path):
    run = make_run(tmp_path / "run", "fashion_mnist", {0.1: 0.5})
    assert [table.number for table in make_tables(collect([run.path])[0])] == [2]


def test_epochs_stand_beside_those_of_the_paper(tmp_path):
    run = make_run(tmp_path / "run", "fashion_mnist", {})
    curves = [c for e in (10, 60) for c in curve({0.1: e / 100}, norm="linf", epoch=e, samples=10000)]
    write_json(run.summary_path, {"status": "finished", "curves": curves})
    run.write_history([{"epoch": 10, "train_accuracy": 0.95, "val_accuracy": 0.91}])
    report_on(tmp_path / "out", run.path)
    rows = {(r["row"], r["split"], float(r["noise"])): r for r in read_csv(tmp_path / "out" / "table17.csv")}
    assert float(rows["epsmax=10de", "test", 0.1]["ours"]) == 0.1
    assert float(rows["epsmax=10de", "validation", 0.0]["ours"]) == 0.91
    assert float(rows["epsmax=10de", "validation", 0.0]["paper"]) == 0.9165
    assert float(rows["epsmax=60de", "test", 0.1]["ours"]) == 0.6
    assert rows["epsmax=30de", "test", 0.1]["ours"] == ""
    assert float(rows["epsmax=30de", "test", 0.1]["paper"]) == 0.6021


def test_spsa_goes_to_its_own_table_with_a_verdict(tmp_path):
    run = make_run(tmp_path / "run", "mnist", {})
    few = {"norm": "linf", "epoch": 60, "samples": 100}
    curves = curve({0.1: 0.9}, norm="linf", epoch=60, attack="pgd-mma", samples=10000, step_scale=2.5)
    curves += curve({0.1: 0.5}, **few)
    curves += curve({0.1: 0.5}, **few, attack="spsa", spsa_samples=128)
    write_json(run.summary_path, {"status": "finished", "curves": curves})
    write_parquet(
        run.outcomes_path,
        outcomes_table(*(outcomes(a, 0.1, {0: True, 1: False}, epoch=60) for a in ("pgd100", "spsa"))),
    )
    page = report_on(tmp_path / "out", run.path)
    tables = {t.number: t for t in make_tables(collect([run.path])[0])}
    ours = {n: [(line.attack, line.differs) for line in t.lines if line.results] for n, t in tables.items()}
    assert ours[8] == [("pgd-mma", ())]
    assert dict(ours[9]) == {"spsa": ("eval.spsa_samples 128 (paper: 2018)",), "pgd100": ()}
    assert any("SPSA is not stronger than PGD on the same 2 samples" in text for text in page.texts["p"])
    guessed = [cell for cell in paper.cells(table=9, method="ima_s0", attack="spsa") if cell.legible == "guess"]
    assert f"{guessed[1].accuracy:.4f}*" in page.texts["body"][0]


def test_the_selected_epoch_is_the_last_above_the_threshold(tmp_path):
    for name, method, values in (("a", "ima", [0.5, 0.92, 0.89, 0.91, 0.6]), ("b", "ce", [0.5, 0.6])):
        run = make_run(tmp_path / name, "svhn", {0.01: 0.5}, method=method)
        run.write_history([{"epoch": e, "train_accuracy": 0.9, "val_accuracy": v} for e, v in enumerate(values, 1)])
    captions = report_on(tmp_path / "out", tmp_path).texts["figcaption"]
    assert any(
        text.startswith("Star: epoch 4, the last with a validation accuracy of at least 0.9,") for text in captions
    )
    assert any(text.startswith("No epoch has a validation accuracy of at least 0.9,") for text in captions)


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
    (out / "report.html").write_text("old")
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


def test_levels_are_the_papers_in_single_precision_too(tmp_path):
    run = make_run(tmp_path / "run", "moons", {float(np.float32(0.1)): 0.5})
    (table,) = make_tables(collect([run.path])[0])
    assert table.lines[0].ours.keys() <= table.lines[0].theirs.keys()
    assert table.lines[0].ours.keys() == {("test", noise_key(0.1))}
