"""``python -m tests.support.pictures docs/dashboard``: the dashboard's pictures, from small runs that it trains first.

Needs the Debian packages chromium, chromium-driver and dataset-fashion-mnist; takes some minutes.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from ima_dist import audit, evaluate, train
from tests.support.browser import chromium, dashboard, drawn
from tests.support.inline import without_ray

# View -> selection, and the height at which the page is cut off.
_SHOWN = {
    "runs": ("", 620),
    "accuracy": ("runs=moons/ima-beta0.5-seed0&runs=moons/ce&runs=moons/adv&attack=pgd100", 1000),
    "tradeoff": ("experiment=moons-linf&attack=worst&level=0.3", 1500),
    "margins": ("run=images/ima&class=6", 1900),
    "training": ("runs=moons/ima-beta0.5-seed0&runs=moons/ce&threshold=0.99", 900),
    "sample": ("run=images/ima", 1050),
    "boundary": ("runs=moons/ima-beta0.5-seed0", 900),
}


def make_runs(root: Path) -> None:
    (root / "dataset").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        usual = ["--device", "cpu", "--eval.steps", "20", "--data.subset", "1000", "--epochs", "10"]
        for name, *options in (
            *((f"ima-beta{b}-seed{s}", "--beta", b, "--seed", s) for b in ("0.1", "0.5", "0.9") for s in ("0", "1")),
            ("ce", "--method", "ce"),
            ("adv", "--method", "adv", "--eps-max", "0.2"),
            ("trades", "--method", "trades"),
        ):
            assert train.main(["moons", *usual, *options, "--out", str(root / "moons" / name)]) == 0
        earlier = ["--epochs", "2,4,6,8", "--eval.steps", "20", "--device", "cpu"]
        assert evaluate.main([str(root / "moons" / "ima-beta0.5-seed0"), *earlier]) == 0
        images = ["fashion_mnist", "--device", "cpu", "--data.subset", "300", "--epochs", "4", "--attack.steps", "5"]
        images += ["--eval.samples", "20", "--eval.steps", "10"]
        assert train.main([*images, "--out", str(root / "images" / "ima")]) == 0
        assert audit.main([str(root / "images" / "ima"), "--samples", "20", "--device", "cpu"]) == 0


def take(root: Path, out: Path) -> None:
    """A PNG a view, 1280 pixels wide and in 128 colours, which keeps it small."""
    out.mkdir(parents=True, exist_ok=True)
    with dashboard(root) as address, chromium() as browser:
        for view, (selection, height) in _SHOWN.items():
            metrics = {"width": 1280, "height": height, "deviceScaleFactor": 1, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            browser.get(f"{address}{view}?{selection}")
            drawn(browser)
            # The place where the runs lie is a temporary one.
            browser.execute_script("document.querySelector('h1 small').textContent = 'runs'")
            file = out / f"{view}.png"
            browser.save_screenshot(str(file))
            Image.open(file).convert("RGB").quantize(128).save(file, optimize=True)


def main(out: str) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "runs"
        make_runs(root)
        take(root, Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
