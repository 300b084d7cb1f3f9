"""The check for a machine with a card, where there may be none: what it needs, what it skips, how it counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import data
from benchmarks.gpu.__main__ import PARTS, main
from benchmarks.gpu.check import Check, Skip
from benchmarks.gpu.environment import has_kernels
from benchmarks.gpu.waits import SYNCHRONIZING, counted_waits

CHECKOUT = Path(__file__).parents[2]


def test_all_parts_run_in_small_sizes_and_what_is_skipped_is_said():
    command = ["make", "--silent", "gpu", f"PYTHON={sys.executable}", "ARGS=--quick --seconds 600"]
    # Without a card even where there is one.
    done = subprocess.run(
        command, cwd=CHECKOUT, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line["of"] for line in lines if line["part"] == "took"] == list(PARTS)
    assert lines[-1]["part"] == "summary"
    assert lines[-1]["failed"] == []
    skipped = {line["part"]: line["skipped"] for line in lines if "skipped" in line and line["part"] != "summary"}
    assert {"environment", "precision", "waits", "memory", "boundary", "kernels"} == skipped.keys()
    assert all("card" in reason for reason in skipped.values())
    assert not any(line.get("passed") is False for line in lines)
    assert {"methods", "attacks", "noise", "collectives"} <= {line["part"] for line in lines if line.get("passed")}
    assert all(line["milliseconds_per_step"] > 0 for line in lines if line["part"] == "speed" and "preset" in line)


def test_without_torch_it_says_so(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main([]) == 0
    assert json.loads(capsys.readouterr().out)["skipped"].startswith("needs torch")


def test_a_part_that_hangs_is_ended():
    hangs = """
import time
import benchmarks.gpu.__main__ as check, benchmarks.gpu.noise as noise
check._GRACE, noise.run = 0.5, lambda check: time.sleep(600)
check.main(["--parts", "noise", "--seconds", "0.5"])
"""
    done = subprocess.run([sys.executable, "-c", hangs], cwd=CHECKOUT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "Timeout" in done.stderr


def test_what_cannot_be_done_is_skipped_and_what_is_wrong_fails(capsys):
    check = Check(torch.device("cpu"), quick=True, seconds=0)
    with check.attempt("a", case=1):
        try:
            raise ModuleNotFoundError("no", name="torchvision.models")
        except ModuleNotFoundError as error:
            raise ValueError("the factory failed") from error
    with check.attempt("b"):
        raise Skip("needs a card")
    with check.attempt("c"):
        check.need_time()
    # A missing module of the project is a fault.
    with check.attempt("d"):
        raise ModuleNotFoundError("no", name="ima_dist.moved")
    with check.attempt("e"):
        check.judge("e", False)
    lines = {line["part"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert lines["a"]["skipped"] == "needs torchvision, which is not installed"
    assert lines["a"]["case"] == 1
    assert lines["c"]["skipped"] == "no time left"
    assert (check.skipped, check.failed) == (["a", "b", "c"], ["d", "e"])


@pytest.mark.parametrize(
    ("built_for", "capability", "runs"),
    [
        (["sm_70", "sm_80"], (7, 0), True),
        (["sm_75", "sm_90"], (7, 0), False),
        (["sm_86"], (8, 9), True),
        (["sm_90a", "sm_100", "sm_120"], (10, 0), True),
        (["sm_80", "compute_80"], (9, 0), True),
        (["sm_80"], (9, 0), False),
    ],
)
def test_kernels_serve_later_cards_of_the_same_major_number(built_for, capability, runs):
    assert has_kernels(built_for, *capability) is runs


def test_waits_are_counted_by_the_line_that_led_to_them():
    with counted_waits() as lines:
        for _ in range(3):
            warnings.warn(SYNCHRONIZING + " (function)", stacklevel=1)
        with pytest.warns(UserWarning, match="something else"):
            warnings.warn("something else", stacklevel=1)
    ((where, count),) = lines.items()
    assert count == 3
    assert where.startswith("tests/training/test_gpu_check.py:")


def test_the_data_are_learnt_and_reproducible():
    first, second = data.fashion(None, 0), data.moons(None, 0)["train"]
    assert (len(first.train), tuple(first.train.stored.shape[1:])) == (4096, (1, 28, 28))
    assert first.train.stored.dtype == torch.uint8
    assert (second[0] == data.moons(None, 0)["train"][0]).all()
    means = torch.stack([first.train.stored[first.train.y == c].float().mean(0) for c in range(10)])
    nearest = torch.cdist(first.test.stored.float().flatten(1), means.flatten(1)).argmin(1)
    assert (nearest == first.test.y).float().mean() > 0.95


def test_channels_last_reaches_the_convolutions():
    network = data.wrn_channels_last(10, (3, 32, 32))
    weights = [p for p in network.parameters() if p.ndim == 4]
    assert weights
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
