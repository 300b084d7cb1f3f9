"""The dashboard as a user has it: clicked through in Chromium, and what is shown against the Parquet files."""

from __future__ import annotations

import csv
import shutil
import struct
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pandas as pd
import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from ima_dist.dashboard.views import VIEWS
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import write_json
from tests.support.browser import chromium, dashboard, drawn, needs_chromium
from tests.support.results import RUN
from tests.support.summaries import make_run

pytestmark = needs_chromium
OTHER = "sweep/ce-beta0.5-seed0"


@pytest.fixture(scope="module")
def root(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small runs, one that goes on, one that failed, and two things that are damaged."""
    root = tmp_path_factory.mktemp("browser") / "results"
    shutil.copytree(results, root)
    going = make_run(root / "going", "moons", {})
    write_json(going.summary_path, {"status": "running"})
    failed = make_run(root / "failed", "moons", {})
    write_json(failed.summary_path, {"status": "failed", "message": "The disk of the node is full."})
    make_run(root / "half", "moons", {}).summary_path.write_text('{"status": "fini')
    (root / "notes.parquet").write_text("no Parquet")
    progress(root, 0.25)
    return root


def progress(root: Path, share: float) -> None:
    state = {"stage": "training", "epoch": 2, "samples_done": 1000 * share, "samples_total": 1000}
    write_json(RunDir(root / "going").progress_path, {**state, "samples_per_second": 321.0, "seconds_left": 65})


@pytest.fixture(scope="module")
def address(root: Path) -> Iterator[str]:
    with dashboard(root) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    with chromium() as browser:
        yield browser


def wait(browser: webdriver.Chrome, condition: Callable[[], Any]) -> Any:
    # What a condition looks at may be drawn anew meanwhile.
    return WebDriverWait(browser, 60, 0.1, [StaleElementReferenceException]).until(lambda _: condition())


def visit(browser: webdriver.Chrome, url: str) -> None:
    browser.get(url)
    drawn(browser)


def click_view(browser: webdriver.Chrome, name: str) -> None:
    browser.find_element(By.ID, f"view-{name}").click()
    wait(browser, lambda: urlsplit(browser.current_url).path == f"/{name}")
    drawn(browser, VIEWS[name].INTRODUCTION)


def traces(browser: webdriver.Chrome, name: str) -> list[dict[str, Any]]:
    """The data that Plotly has drawn: x, y, name of each trace."""
    found: list[dict[str, Any]] = browser.execute_script(
        "const list = v => v === undefined ? [] : Array.from(v, e => ArrayBuffer.isView(e) ? Array.from(e) : e);"
        "return document.querySelector(arguments[0] + ' .js-plotly-plot')._fullData.map("
        "t => ({type: t.type, name: t.name, x: list(t.x), y: list(t.y), z: list(t.z),"
        " customdata: list(t.customdata), visible: t.visible}))",
        f"#figure-{name}",
    )
    return found


def cells(browser: webdriver.Chrome, name: str) -> list[dict[str, str]]:
    """A table as it is read on the page."""
    rows: list[list[str]] = browser.execute_script(
        "const rows = document.querySelectorAll(arguments[0] + ' tr');"
        "return Array.from(rows, r => Array.from(r.cells, c => c.innerText))",
        f"#table-{name}",
    )
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


def listed(browser: webdriver.Chrome) -> list[dict[str, str]]:
    """The list of runs as it is read on the page: each row is drawn in two halves."""
    rows: list[dict[str, str]] = browser.execute_script(
        "const found = new Map();"
        "for (const cell of document.querySelectorAll('.ag-row .ag-cell')) {"
        "  const id = cell.closest('.ag-row').getAttribute('row-id');"
        "  if (!found.has(id)) found.set(id, {});"
        "  found.get(id)[cell.getAttribute('col-id')] = cell.innerText; }"
        "return Array.from(found.values())"
    )
    return rows


def query(browser: webdriver.Chrome) -> dict[str, list[str]]:
    return parse_qs(urlsplit(browser.current_url).query)


def data(root: Path, kind: str) -> pd.DataFrame:
    return pd.read_parquet(root / "dataset" / kind)


# ---- every view against the Parquet files --------------------------------------------------------------


def test_click_through_every_view(browser, address, root):
    visit(browser, address)
    assert urlsplit(browser.current_url).path == "/home"
    click_view(browser, "runs")
    names = {row["run"]: row for row in listed(browser)}
    stored = data(root, "runs").set_index("run")
    assert set(names) == {*stored.index, "going", "failed", "half"}
    for name, row in stored.iterrows():
        assert names[name]["status"] == row["status"]
        assert names[name]["clean accuracy"] == f"{row['clean_accuracy']:.3f}"
    assert names["half"]["status"] == "damaged"
    visit(browser, f"{address}runs?columns=message")
    assert {row["run"]: row["message"] for row in listed(browser)}["failed"] == "The disk of the node is full."

    browser.execute_script("Array.from(document.links).find(a => a.innerText === arguments[0]).click()", RUN)
    wait(browser, lambda: query(browser).get("run") == [RUN])
    drawn(browser, VIEWS["run"].INTRODUCTION)
    visit(browser, f"{address}accuracy?runs={RUN}")
    curves = data(root, "curves").query(f"run == '{RUN}' and attack == 'pgd100' and loss == 'both' and epoch == 3")
    curves = curves.sort_values("noise")
    (line,) = [t for t in traces(browser, "accuracy") if t["name"] == RUN]
    assert line["y"] == curves.accuracy.tolist()
    assert list(cells(browser, "accuracies")[0].values())[4:] == [f"{a:.3f}" for a in curves.accuracy]

    click_view(browser, "tradeoff")
    browser.find_element(By.XPATH, "//label[contains(., 'moons')]").click()
    wait(browser, lambda: query(browser).get("experiment") == ["moons-linf"])
    wait(browser, lambda: len(cells(browser, "models")) == 5)
    points = [t for t in traces(browser, "tradeoff") if t["name"] in ("ima", "ce")]
    models = cells(browser, "models")
    found = sorted(m["clean accuracy, 95 % interval"].split(" ")[0] for m in models)
    assert sorted(f"{x:.3f}" for t in points for x in t["customdata"]) == found
    assert [m["seeds"] for m in models if m["model"] == "ima, β 0.5, epoch 3"] == ["2"]
    assert sum(t["type"] == "parcoords" for t in traces(browser, "parallel")) == 1

    click_view(browser, "margins")
    history = data(root, "history").query(f"run == '{query(browser)['run'][0]}'")
    assert traces(browser, "histogram")[0]["y"] == history.iloc[-1].margin_histogram.tolist()
    assert [row["share_at_max"] for row in cells(browser, "margins")] == [f"{v:.3f}" for v in history.share_at_max]
    margins = data(root, "margins").query(f"run == '{query(browser)['run'][0]}'")
    assert [int(r["samples"]) for r in cells(browser, "by-class")] == margins.groupby("label").size().tolist()
    assert browser.find_elements(By.CSS_SELECTOR, "#figure-extremes .main-svg")

    click_view(browser, "training")
    history = data(root, "history").query(f"run == '{RUN}'")
    assert query(browser)["runs"] == [RUN]  # the choice came along
    (validation,) = [t for t in traces(browser, "training") if t["name"] == f"{RUN}: validation"]
    assert validation["y"] == history.val_accuracy.tolist()

    click_view(browser, "sample")
    visit(browser, f"{address}sample?run=images")
    images = browser.find_elements(By.CSS_SELECTOR, "#figure-sample image")
    assert len(images) == 6
    index = int(query(browser)["sample"][0])
    outcomes = pd.read_parquet(root / "images" / "outcomes.parquet").query(f"index == {index}")
    outcomes = outcomes.sort_values(["attack", "loss", "noise"])
    names_of = np.load(root / "images" / "examples" / "noisy.npz", allow_pickle=False)["class_names"]
    assert [r["predicted class"] for r in cells(browser, "outcomes")] == [str(names_of[p]) for p in outcomes.prediction]

    click_view(browser, "boundary")
    grid = np.load(root / query(browser)["runs"][0] / "examples" / "boundary.npz", allow_pickle=False)["probability"]
    (contour,) = [t for t in traces(browser, "boundary0") if t["type"] == "contour"]
    assert np.allclose(contour["z"], grid[::2, ::2])


def test_the_list_of_runs_is_live(browser, address, root):
    progress(root, 0.25)
    visit(browser, f"{address}runs?status=running&columns=done&columns=samples/s&columns=time left")
    (row,) = listed(browser)
    assert (row["done"], row["samples/s"], row["time left"]) == ("25 %", "321", "1 min 05 s")
    grid = browser.find_element(By.CSS_SELECTOR, ".ag-root")
    progress(root, 0.5)
    wait(browser, lambda: listed(browser)[0]["done"] == "50 %")
    assert browser.find_element(By.CSS_SELECTOR, ".ag-root") == grid  # its order and its choice stay


def test_damaged_files_are_named(browser, address):
    visit(browser, address)
    box = browser.find_element(By.ID, "problems")
    assert "2 files could not be read" in box.text
    box.find_element(By.TAG_NAME, "summary").click()
    assert "half/summary.json is damaged" in box.text
    assert "notes.parquet" in box.text


def test_every_page_says_what_its_words_mean(browser, address):
    visit(browser, f"{address}tradeoff")
    head = browser.find_element(By.CSS_SELECTOR, ".terms")
    assert "Increasing-Margin Adversarial (IMA) training" in head.text
    assert "ε_max" not in head.text
    head.find_element(By.TAG_NAME, "summary").click()
    for word in ("ε_max", "pgd100", "worst", "trades", "clean accuracy"):
        assert word in head.text


# ---- addresses, keyboard, downloads --------------------------------------------------------------------


def test_a_link_brings_the_state_back(browser, address):
    visit(browser, f"{address}training?runs={OTHER}&runs={RUN}&threshold=0.25")
    assert browser.find_element(By.CSS_SELECTOR, "#control-threshold input").get_attribute("value") == "0.25"
    link = browser.current_url
    table, figure = cells(browser, "selected"), traces(browser, "training")
    visit(browser, f"{address}runs")
    visit(browser, link)
    assert browser.current_url == link
    assert (cells(browser, "selected"), traces(browser, "training")) == (table, figure)
    assert [row["run"] for row in table] == [OTHER, RUN]
    # One step back is the page before, not the same with its defaults spelt out.
    click_view(browser, "boundary")
    browser.back()
    wait(browser, lambda: browser.current_url == link)
    drawn(browser, VIEWS["training"].INTRODUCTION)
    assert cells(browser, "selected") == table


def test_a_typed_threshold_selects_another_epoch(browser, address, root):
    visit(browser, f"{address}training?runs={RUN}&threshold=0")
    assert cells(browser, "selected")[0]["selected epoch"] == "3"
    field = browser.find_element(By.CSS_SELECTOR, "#control-threshold input")
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys("1", Keys.ENTER)
    wait(browser, lambda: query(browser)["threshold"] == ["1"])
    best = data(root, "history").query(f"run == '{RUN}'").val_accuracy.max()
    wait(browser, lambda: cells(browser, "selected")[0]["selected epoch"] == ("3" if best == 1 else ""))


def test_everything_is_reached_by_keyboard(browser, address, root):
    visit(browser, f"{address}margins?run={RUN}&epoch=3")
    body = browser.find_element(By.TAG_NAME, "body")
    body.send_keys(Keys.TAB)
    assert browser.switch_to.active_element.text == "Skip to the content"
    texts, slid = set(), False
    for _ in range(60):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        focused = browser.switch_to.active_element
        if focused.tag_name == "body":
            break
        # Read at once: what is drawn anew later is another element.
        texts.add(focused.text)
        slid |= focused.get_attribute("role") == "slider"
        outline = focused.value_of_css_property("outline-style"), focused.value_of_css_property("box-shadow")
        assert outline != ("none", "none"), focused.get_attribute("outerHTML")
    for view in VIEWS.values():
        assert view.TITLE in texts
    assert {"SVG", "PNG", "CSV"} <= texts
    assert slid
    slider = browser.find_element(By.CSS_SELECTOR, "#control-epoch [role=slider]")
    slider.send_keys(Keys.ARROW_LEFT)
    wait(browser, lambda: query(browser)["epoch"] == ["2"])
    counts = data(root, "history").query(f"run == '{RUN}' and epoch == 2").margin_histogram.item().tolist()
    wait(browser, lambda: traces(browser, "histogram")[0]["y"] == counts)
    wait(browser, lambda: browser.switch_to.active_element == slider)  # still at hand for the next step
    slider.send_keys(Keys.ARROW_LEFT)
    wait(browser, lambda: query(browser)["epoch"] == ["1"])
    wait(browser, lambda: "epoch=1" in browser.find_element(By.ID, "view-boundary").get_attribute("href"))
    browser.execute_script("document.querySelector('#view-boundary').focus()")
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    wait(browser, lambda: urlsplit(browser.current_url).path == "/boundary")


def test_runs_are_chosen_by_typing(browser, address):
    visit(browser, f"{address}accuracy?runs={RUN}")
    browser.find_element(By.CSS_SELECTOR, "#control-runs button").send_keys(Keys.ENTER)
    wait(browser, lambda: browser.find_elements(By.CSS_SELECTOR, ".dash-dropdown-search"))
    browser.switch_to.active_element.send_keys("ce-beta")
    options = wait(
        browser, lambda: [e for e in browser.find_elements(By.CSS_SELECTOR, ".dash-dropdown-option") if OTHER in e.text]
    )
    assert len(browser.find_elements(By.CSS_SELECTOR, ".dash-dropdown-option")) == 1
    options[0].click()
    wait(browser, lambda: set(query(browser)["runs"]) == {RUN, OTHER})
    wait(browser, lambda: {t["name"] for t in traces(browser, "accuracy")} >= {RUN, OTHER})


def download(browser: Any, suffix: str, click: Callable[[], None]) -> Path:
    for file in browser.downloads.iterdir():
        file.unlink()
    click()
    found: list[Path] = wait(browser, lambda: list(browser.downloads.glob(f"*{suffix}")))
    size = -1
    while size != (size := found[0].stat().st_size) or not size:  # written in one go, but perhaps not yet
        time.sleep(0.1)
    return found[0]


def test_figures_and_tables_are_saved(browser, address):
    visit(browser, f"{address}accuracy?runs={RUN}")
    buttons = {b.text: b for b in browser.find_elements(By.CSS_SELECTOR, ".save")}
    svg = download(browser, ".svg", buttons["SVG"].click)
    assert svg.name == "accuracy.svg"
    words = " ".join(e.text or "" for e in ET.parse(svg).iter())
    assert RUN in words
    assert "accuracy on the test set" in words
    png = download(browser, ".png", buttons["PNG"].click).read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", png[16:24]) > (1000, 600)
    table = download(browser, ".csv", buttons["CSV"].click)
    assert table.name == "accuracy-accuracies.csv"
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    shown = cells(browser, "accuracies")
    assert [[r["run"], r["what"]] for r in rows] == [[r["run"], r["what"]] for r in shown]
    assert [f"{float(v):.3f}" for v in list(rows[0].values())[4:]] == list(shown[0].values())[4:]


# ---- every view ----------------------------------------------------------------------------------------


def described(browser: Any, node: dict[str, Any]) -> str:
    """An element of the accessibility tree, for a failing test."""
    html: str = browser.execute_cdp_cmd("DOM.getOuterHTML", {"backendNodeId": node["backendDOMNodeId"]})["outerHTML"]
    return html[:500]


@pytest.mark.parametrize("view", VIEWS)
def test_no_view_scrolls_sideways_is_nameless_or_complains(browser, address, view):
    browser.get_log("browser")
    visit(browser, f"{address}{view}?run=images")
    width, window = browser.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert width <= window <= 1280
    assert not [m for m in browser.get_log("browser") if m["level"] == "SEVERE"]
    for node in browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]:
        role = node.get("role", {}).get("value")
        if not node.get("ignored") and role in (
            "button",
            "link",
            "slider",
            "radio",
            "spinbutton",
            "combobox",
            "textbox",
        ):
            assert node.get("name", {}).get("value"), described(browser, node)
    for image in browser.find_elements(By.CSS_SELECTOR, "[role=img]"):
        assert len(image.get_attribute("aria-label")) > 20


def test_no_request_leaves_this_machine(browser, address):
    import json

    for view in VIEWS:
        visit(browser, f"{address}{view}")
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"]
    assert any(url.startswith(address) for url in urls)
    own = ("data:", "blob:", "chrome:", "about:", address)
    assert [url for url in urls if not url.startswith(own) and not url.startswith("http://127.0.0.1:")] == []
