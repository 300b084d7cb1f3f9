"""A directory of 200 runs, clicked through as on a Monday morning; what is shown is what the Parquet files hold."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pandas as pd
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from tests.support.browser import chromium, dashboard, drawn, needs_chromium
from tests.support.many_runs import SWEEP, Made, make_many

pytestmark = needs_chromium
_SEARCH = "#control-text input"


class Page:
    """A browser at the dashboard of many runs."""

    def __init__(self, browser: Any, address: str, root: Path, made: Made) -> None:
        self.browser, self.address, self.root, self.made = browser, address, root, made

    def visit(self, way: str) -> None:
        self.browser.get(self.address.replace("?", f"{way}&" if "?" in way else f"{way}?", 1))
        drawn(self.browser)

    def wait(self, condition: Callable[[], Any]) -> Any:
        return WebDriverWait(self.browser, 60, 0.1).until(lambda _: condition())

    def texts(self, css: str) -> list[str]:
        found: list[str] = self.browser.execute_script(
            "return Array.from(document.querySelectorAll(arguments[0]), e => e.innerText)", css
        )
        return found

    def table(self, name: str) -> list[dict[str, str]]:
        rows: list[list[str]] = self.browser.execute_script(
            "const rows = document.querySelectorAll(arguments[0] + ' tr');"
            "return Array.from(rows, r => Array.from(r.cells, c => c.innerText))",
            f"#table-{name}",
        )
        return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]

    def column(self, name: str) -> list[str]:
        """The cells of the list of runs that are drawn, from top to bottom."""
        found: list[str] = self.browser.execute_script(
            "return Array.from(document.querySelectorAll('.ag-row')).filter(r => r.querySelector(arguments[0]))"
            ".sort((a, b) => a.getAttribute('row-index') - b.getAttribute('row-index'))"
            ".map(r => r.querySelector(arguments[0]).innerText)",
            f".ag-cell[col-id='{name}']",
        )
        return found

    def click(self, css: str) -> None:
        self.browser.execute_script("document.querySelector(arguments[0]).click()", css)

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.browser.current_url).query)

    @property
    def view(self) -> str:
        return urlsplit(self.browser.current_url).path.strip("/")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    root = tmp_path_factory.mktemp("morning") / "runs"
    made = make_many(root, 200)
    with dashboard(root, "--edit") as address, chromium() as browser:
        yield Page(browser, address, root, made)


def data(page: Page, kind: str) -> pd.DataFrame:
    return pd.read_parquet(page.root / "dataset" / kind)


def test_home_fits_a_screen_and_leads_to_what_failed(page):
    page.visit("home")
    panels = {"running", "badly", "best", "ended", "warnings"}
    bottom = "return document.querySelector(arguments[0]).getBoundingClientRect().bottom"
    for name in panels:
        assert page.browser.execute_script(bottom, f"#panel-{name}") <= 800, name
    stored = data(page, "runs").set_index("run")
    assert page.texts("#panel-running h2") == [f"Running ({len(page.made.running)})"]
    ended = {*page.made.failed, *page.made.died, *page.made.interrupted, "half"}
    assert page.texts("#panel-badly h2") == [f"Failed, died or interrupted ({len(ended)})"]
    tags = dict(zip(page.texts("#panel-badly .title"), page.texts("#panel-badly .tag"), strict=True))
    for name, tag in tags.items():
        assert tag.startswith(stored.status[name] if name not in page.made.died else "died")
    name = next(name for name in tags if name in page.made.failed)
    assert stored.message[name] in page.texts("#panel-badly .said")
    assert not any(f"--resume {page.root / name}" in text for text in page.texts("#panel-badly code"))
    assert any("would fail again" in text for text in page.texts("#panel-badly .caution"))
    best = zip(page.texts("#panel-best .title"), page.texts("#panel-best .said"), strict=True)
    found = data(page, "curves")
    for run, text in best:
        accuracy = float(text.split(": ")[1].split(" ")[0])
        assert (found[found.run == run].accuracy - accuracy).abs().min() <= 5.1e-4
    page.browser.find_element(By.LINK_TEXT, name).click()
    page.wait(lambda: page.view == "run")
    drawn(page.browser)
    assert page.query["run"] == [name]
    assert any(text.startswith(f"failed. {stored.message[name]}") for text in page.texts("#facts-standing dd"))


def test_the_list_is_searched_sorted_and_compared_from(page):
    page.visit("runs")
    stored = data(page, "runs").set_index("run")
    assert page.texts(".browser h2") == [f"{len(stored)} runs"]
    field = page.browser.find_element(By.CSS_SELECTOR, _SEARCH)
    field.send_keys("fashion ima")
    own = stored[stored.index.str.contains("fashion") & (stored.method == "ima")]
    page.wait(lambda: page.texts(".browser h2") == [f"{len(own)} of {len(stored)} runs"])
    assert page.query["text"] == ["fashion ima"]
    page.wait(lambda: {*page.column("run")} <= {*own.index})  # the grid draws its rows after the heading
    # Sorted by the page: the smallest clean accuracy first, as runs without one are, then the largest.
    header = page.browser.find_element(By.CSS_SELECTOR, ".ag-header-cell[col-id='clean accuracy']")
    header.click()
    header.click()
    largest = f"{own.clean_accuracy.max():.3f}"
    page.wait(lambda: page.column("clean accuracy")[0] == largest)
    chosen = page.column("run")[:2]
    for name in chosen:
        page.click(f".ag-row[row-id='{name}'] input[type=checkbox]")
    link = page.wait(
        lambda: [a for a in page.browser.find_elements(By.LINK_TEXT, "Compare 2 runs") if a.is_displayed()]
    )
    link[0].click()
    page.wait(lambda: page.view == "compare")
    drawn(page.browser)
    assert sorted(page.query["runs"]) == sorted(chosen)
    rows = page.table("results")
    assert [row["run"] for row in rows] == page.query["runs"]
    curves = data(page, "curves")
    attack, level = page.query["attack"][0], float(page.query["at"][0])
    for row in rows:
        there = curves[(curves.run == row["run"]) & (curves.attack == attack) & (curves.loss == "both")]
        assert row["robust accuracy"] == f"{there[there.noise.round(6) == level].accuracy.item():.3f}"
        assert row["clean accuracy"] == f"{stored.clean_accuracy[row['run']]:.3f}"
    lines = page.browser.execute_script(
        "return document.querySelector('#figure-accuracy .js-plotly-plot')._fullData.map(t => t.name)"
    )
    assert set(chosen) <= set(lines)
    assert page.table("paired")[0]["samples"] == "200"
    page.browser.back()
    page.wait(lambda: page.view == "runs")
    drawn(page.browser)
    assert page.query["text"] == ["fashion ima"]


def test_notes_and_tags_are_kept_with_the_run_and_found(page):
    name = page.made.finished[-1]
    page.visit(f"run?run={name}")
    page.browser.find_element(By.CSS_SELECTOR, ".editor textarea").send_keys("for the paper")
    page.browser.find_element(By.CSS_SELECTOR, ".editor input").send_keys("paper, second look", Keys.TAB)
    page.click(".editor button.save")
    page.wait(lambda: (page.root / name / "notes.json").exists())
    kept = json.loads((page.root / name / "notes.json").read_text())
    assert kept == {"text": "for the paper", "tags": ["paper", "second look"]}
    page.wait(lambda: "for the paper" in page.texts(".note"))  # by itself, as the page is live
    page.visit("runs?tag=paper")
    assert page.column("run") == [name]
    assert page.column("tags") == ["paper, second look"]


def test_samples_and_sweep(page):
    name = next(n for n in page.made.finished if (page.root / n / "examples" / "flips.npz").exists())
    page.visit(f"samples?run={name}&attack=pgd100")
    outcomes = pd.read_parquet(page.root / name / "outcomes.parquet").query("attack == 'pgd100'")
    lost = outcomes[outcomes.label != outcomes.prediction].groupby("index").noise.min().reset_index()
    order = [str(i) for i in lost.sort_values(["noise", "index"])["index"]]
    assert [row["index"] for row in page.table("samples")] == order[:25]
    assert len(page.browser.find_elements(By.CSS_SELECTOR, "#gallery-lost-first img")) == 36
    page.browser.find_element(By.LINK_TEXT, order[0]).click()
    page.wait(lambda: page.view == "sample")
    drawn(page.browser)
    assert {row["index"] for row in page.table("outcomes")} == {order[0]}
    page.click("#view-sweep")
    page.wait(lambda: page.view == "sweep")
    drawn(page.browser)
    assert page.query["sweep"] == [SWEEP]
    trials = {row["trial"]: row for row in page.table("trials")}
    stored = data(page, "runs").set_index("run")
    for trial, row in trials.items():
        run = f"{SWEEP}/{trial}"
        assert row["status"] == (stored.status[run] if run in stored.index else "not begun")
        if row["status"] == "finished":
            assert row["clean accuracy"] == f"{stored.clean_accuracy[run]:.3f}"
    assert page.texts("#content code")[1].startswith("python -m ima_dist.sweep best ")


def test_a_run_that_ends_moves_while_one_looks(page):
    page.visit("home")
    name = page.texts("#panel-running .title")[0]
    summary = page.root / name / "summary.json"
    kept = summary.read_text()
    summary.write_text(json.dumps({"status": "failed", "message": "The node was lost."}))
    page.wait(lambda: name in page.texts("#panel-badly .title"))
    assert "The node was lost." in page.texts("#panel-badly .said")
    assert name not in page.texts("#panel-running .title")
    summary.write_text(kept)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_telephone_nothing_is_cut_off(page, scheme):
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        for view in ("home", "runs", "compare", "run", "samples", "sweep"):
            page.visit(view)
            wide, window = page.browser.execute_script(
                "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
            )
            assert wide <= window, view
        back, text = page.browser.execute_script(
            "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
        )
        assert (brightness(back) > brightness(text)) == (scheme == "light")
        assert not [m for m in page.browser.get_log("browser") if m["level"] == "SEVERE"]
    finally:
        page.browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {**metrics, "width": 1280, "height": 800, "mobile": False}
        )
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def brightness(colour: str) -> int:
    return sum(int(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3])


def test_a_vanished_directory_is_no_error(page):
    shutil.rmtree(page.root / page.made.failed[0])
    page.visit("home")
    assert page.made.failed[0] not in page.texts("#panel-badly .title")
