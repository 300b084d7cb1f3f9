"""A headless Chromium from Debian that reaches nothing but this machine, and a dashboard to look at."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

from ima_dist.dashboard.links import plain
from tests.support.commands import ROOT, command, environment

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

# Under CI a missing package is a failure of the set-up, not a reason to skip.
needs_chromium = pytest.mark.skipif(
    not (CHROMIUM and DRIVER) and os.environ.get("CI") != "true",
    reason="needs the Debian packages chromium and chromium-driver",
)


@contextlib.contextmanager
def chromium(width: int = 1280, height: int = 800) -> Iterator[webdriver.Chrome]:
    """A browser whose window shows pages at this size; downloads go to its attribute ``downloads``."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        downloads = Path(profile, "downloads")
        downloads.mkdir()
        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        # No sandbox: tests may run as root. No proxy, and every name but this machine's fails.
        for switch in (
            "--headless=new",
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--no-proxy-server",
            "--disable-background-networking",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            f"--user-data-dir={profile}/profile",
            f"--window-size={width},{height}",
        ):
            options.add_argument(switch)
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        driver: Any = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
        try:
            driver.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride",
                {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
            )
            driver.downloads = downloads
            yield driver
        finally:
            driver.quit()


@contextlib.contextmanager
def dashboard(results: Path, *options: object) -> Iterator[str]:
    """The dashboard in a process of its own; gives the address that it prints."""
    process = subprocess.Popen(
        command("ima_dist.dashboard", results, "--port", 0, *options),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http://"), "the dashboard did not start"
        yield address
    finally:
        process.terminate()
        process.wait(30)
        assert process.stdout is not None
        process.stdout.close()


def drawn(browser: Any, introduction: str | None = None) -> None:
    """Wait until the page shows what its address says, with every figure and table."""
    script = """
        const said = document.querySelector('#introduction'), content = document.querySelector('#content');
        return said && content && (!arguments[0] || said.innerText === arguments[0])
            && content.querySelector('section, .note')
            && Array.from(content.querySelectorAll('.browser')).every(b => b.querySelector('.ag-row'))
            && !document.querySelector('[data-dash-is-loading=true]')
            && Array.from(content.querySelectorAll('.dash-graph')).every(g => g.querySelector('.main-svg'))
            && document.title !== 'ima_dist' && document.querySelector('#views .current') !== null
            && window.location.pathname.split('/').pop() === document.querySelector('#views .current').id.slice(5);
    """
    said = introduction and plain(introduction)
    WebDriverWait(browser, 60, 0.1).until(lambda b: b.execute_script(script, said))
