"""``python -m tests.support.pictures docs/dashboard [VIEW …]``: the dashboard's pictures.

Those of home, runs, compare, run, samples and sweep show invented runs (``many_runs``); the others small runs
that it trains first. Needs the Debian packages chromium, chromium-driver and dataset-fashion-mnist; takes some minutes.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from PIL import Image

from ima_dist import audit, evaluate, train
from tests.support.browser import chromium, dashboard, drawn
from tests.support.inline import without_ray
from tests.support.many_runs import make_many

# View -> selection, and the height at which the page is cut off; of invented runs, and of trained ones.
_PAIR = "runs=fashion_mnist/ima-linf-040&runs=fashion_mnist/adv-linf-041&attack=pgd100&at=0.15"
_INVENTED = {
    "home": ("", 760),
    "runs": ("runs=fashion_mnist/ima-linf-040&runs=fashion_mnist/adv-linf-041", 800),
    "compare": (_PAIR, 1300),
    "run": ("run=fashion_mnist/ima-linf-040&attack=pgd100&at=0.15", 1400),
    "samples": ("run=fashion_mnist/adv-linf-041&attack=pgd100", 1250),
    "sweep": ("attack=pgd100&level=0.15", 1250),
}
_TRAINED = {
    "accuracy": ("runs=moons/ima-beta0.5-seed0&runs=moons/ce&runs=moons/adv&attack=pgd100", 1000),
    "tradeoff": ("experiment=moons-linf&attack=worst&level=0.3", 1850),
    "margins": ("run=images/ima&class=1", 2300),
    "training": ("runs=moons/ima-beta0.5-seed0&runs=moons/ce&threshold=0.99", 900),
    "sample": ("run=images/ima", 1050),
    "classes": ("run=images/ima&at=pgd100 0.1", 1500),
    "certificates": ("runs=smoothed/rand-0.1&runs=smoothed/rand-0.2", 1000),
    "boundary": ("runs=moons/ima-beta0.5-seed0", 900),
}


def make_runs(root: Path) -> None:
    (root / "dataset").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        images = ["fashion_mnist", "--device", "cpu", "--data.subset", "300", "--epochs", "4", "--attack.steps", "5"]
        images += ["--eval.samples", "60", "--eval.steps", "10"]
        assert train.main([*images, "--out", str(root / "images" / "ima")]) == 0
        assert audit.main([str(root / "images" / "ima"), "--samples", "20", "--device", "cpu"]) == 0
        usual = ["--device", "cpu", "--eval.steps", "20", "--data.subset", "1000", "--epochs", "10"]
        for name, *options in (
            *((f"ima-beta{b}-seed{s}", "--beta", b, "--seed", s) for b in ("0.1", "0.5", "0.9") for s in ("0", "1")),
            ("ce", "--method", "ce"),
            ("adv", "--method", "adv", "--eps-max", "0.2"),
            ("trades", "--method", "trades"),
        ):
            assert train.main(["moons", *usual, *options, "--out", str(root / "moons" / name)]) == 0
        for sigma in ("0.1", "0.2"):
            smoothed = str(root / "smoothed" / f"rand-{sigma}")
            noisy = ["--method", "rand", "--rand.kind", "gaussian", "--norm", "l2", "--eps-max", sigma]
            assert train.main(["moons", *usual, *noisy, "--out", smoothed]) == 0
            few = ["--eval.samples", "200", "--smoothing.draws", "300", "--device", "cpu"]
            assert evaluate.main([smoothed, "--attack", "smoothing", *few]) == 0
        earlier = ["--epochs", "2,4,6,8", "--eval.steps", "20", "--device", "cpu"]
        assert evaluate.main([str(root / "moons" / "ima-beta0.5-seed0"), *earlier]) == 0


def take(root: Path, out: Path, shown: dict[str, tuple[str, int]]) -> None:
    """A PNG a view, 1280 pixels wide and in 256 colours, small files that keep rare colours."""
    out.mkdir(parents=True, exist_ok=True)
    with dashboard(root) as address, chromium() as browser:
        for view, (selection, height) in shown.items():
            metrics = {"width": 1280, "height": height, "deviceScaleFactor": 1, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            browser.get(f"{address}{view}?{selection}")
            drawn(browser)
            # The place where the runs lie is a temporary one.
            browser.execute_script(
                "const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);"
                "while (walk.nextNode()) {"
                "  walk.currentNode.data = walk.currentNode.data.replaceAll(arguments[0], 'runs'); }",
                str(root),
            )
            file = out / f"{view}.png"
            browser.save_screenshot(str(file))
            Image.open(file).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE).save(file, optimize=True)


def main(out: str, views: Iterable[str] = ()) -> None:
    torch.set_num_threads(1)
    wanted = set(views) or {*_INVENTED, *_TRAINED}
    with tempfile.TemporaryDirectory() as place:
        for name, make, every in (("many", make_many, _INVENTED), ("few", make_runs, _TRAINED)):
            shown = {view: how for view, how in every.items() if view in wanted}
            root = Path(place).resolve() / name
            if shown:
                make(root)
                take(root, Path(out), shown)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
