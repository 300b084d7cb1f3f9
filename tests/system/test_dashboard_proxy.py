"""The dashboard behind a real reverse proxy that shows it below a prefix, with and without the prefix handed on."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.browser import chromium, dashboard, drawn, needs_chromium
from tests.support.summaries import make_run

NGINX = shutil.which("nginx") or (p if os.access(p := "/usr/sbin/nginx", os.X_OK) else None)
PREFIX = "/node/n1/8050/"
NAME = "hub.example.org"  # what the proxy is called, which the dashboard cannot know

# Under CI a missing package is a failure of the set-up, not a reason to skip.
pytestmark = pytest.mark.skipif(
    NGINX is None and os.environ.get("CI") != "true", reason="needs the Debian package nginx-light"
)
CONFIGURATION = """
daemon off; master_process off; pid {place}/pid; error_log {place}/error.log;
events {{ worker_connections 64; }}
http {{
  access_log off; client_body_temp_path {place}/body; proxy_temp_path {place}/proxy;
  fastcgi_temp_path {place}/fastcgi; uwsgi_temp_path {place}/uwsgi; scgi_temp_path {place}/scgi;
  proxy_set_header Host {name};
  server {{ listen 127.0.0.1:{whole}; location {prefix} {{ proxy_pass http://127.0.0.1:{port}; }} }}
  server {{ listen 127.0.0.1:{stripped}; location {prefix} {{ proxy_pass http://127.0.0.1:{port}/; }} }}
}}
"""


@pytest.fixture(scope="module")
def proxies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Addresses of the dashboard with its token: by proxies that hand the whole path on, and that strip the prefix."""
    root = tmp_path_factory.mktemp("proxied") / "runs"
    make_run(root / "one", "moons", {0.0: 0.9, 0.1: 0.5})
    make_run(root / "two", "moons", {0.0: 0.8, 0.1: 0.6}, seed=1)
    with dashboard(root, "--prefix", PREFIX) as address, nginx(urlsplit(address).port or 0, root.parent) as ports:
        path = f"{PREFIX}?{urlsplit(address).query}"
        assert urlsplit(address).path == PREFIX
        assert "token=" in path
        yield {name: f"http://127.0.0.1:{port}{path}" for name, port in ports.items()}


@contextlib.contextmanager
def nginx(port: int, place: Path) -> Iterator[dict[str, int]]:
    """nginx in the foreground; gives the ports of its two servers."""
    ports = {name: free_port() for name in ("whole", "stripped")}
    (place / "nginx.conf").write_text(CONFIGURATION.format(place=place, prefix=PREFIX, port=port, name=NAME, **ports))
    process = subprocess.Popen(
        [str(NGINX), "-p", str(place), "-c", str(place / "nginx.conf"), "-e", str(place / "error.log")]
    )
    try:
        for found in ports.values():
            until = time.monotonic() + 30
            while socket.socket().connect_ex(("127.0.0.1", found)):
                assert process.poll() is None, "nginx did not start"
                assert time.monotonic() < until
                time.sleep(0.05)
        yield ports
    finally:
        process.terminate()
        process.wait(30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Visitor:
    """Requests as a browser sends them, with its cookie."""

    def __init__(self, address: str) -> None:
        self.server, self.cookie = urlsplit(address).netloc, ""

    def __call__(self, path: str, body: object = None) -> tuple[int, dict[str, str], str]:
        connection = http.client.HTTPConnection(self.server, timeout=60)
        headers = {"Cookie": self.cookie, **({"Content-Type": "application/json"} if body is not None else {})}
        connection.request("GET" if body is None else "POST", path, body and json.dumps(body), headers)
        answer = connection.getresponse()
        found = answer.status, dict(answer.getheaders()), answer.read().decode("utf-8", "replace")
        connection.close()
        if "Set-Cookie" in found[1]:
            self.cookie = found[1]["Set-Cookie"].partition(";")[0]
        return found


@pytest.mark.parametrize("how", ["whole", "stripped"])
def test_everything_is_found_below_the_prefix(proxies, how):
    visit = Visitor(proxies[how])
    assert visit(PREFIX)[0] == 403  # without the token
    status, headers, _ = visit(f"{PREFIX}accuracy?runs=one&{urlsplit(proxies[how]).query}")
    assert (status, urlsplit(headers["Location"]).path) == (302, f"{PREFIX}accuracy")
    assert urlsplit(headers["Location"]).query == "runs=one"
    assert f"Path={PREFIX}" in headers["Set-Cookie"]
    status, _, page = visit(f"{PREFIX}accuracy?runs=one")
    assert status == 200
    parts = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(parts) > 10
    for part in parts:
        assert part.startswith(PREFIX), part
        assert visit(part)[0] == 200, part
    status, _, table = visit(f"{PREFIX}csv/accuracy/accuracies.csv?runs=one")
    assert (status, table.splitlines()[1].split(",")[0]) == (200, "one")
    assert visit(f"{PREFIX}_dash-layout")[0] == 200


@needs_chromium
def test_a_page_is_clicked_through_behind_the_proxy(proxies):
    with chromium() as browser:
        browser.get(proxies["stripped"])
        drawn(browser)
        assert urlsplit(browser.current_url).path == f"{PREFIX}home"
        browser.find_element("id", "view-accuracy").click()
        drawn(browser)
        assert urlsplit(browser.current_url).path == f"{PREFIX}accuracy"
        assert "runs=one" in browser.current_url
        assert browser.find_element("id", "table-accuracies").text.count("ours") == 2
        browser.refresh()
        drawn(browser)
        assert urlsplit(browser.current_url).path == f"{PREFIX}accuracy"
        assert not [m for m in browser.get_log("browser") if m["level"] == "SEVERE"]
