"""The parts of ``make gpu`` that only a card runs, on the pretend card: they must not fail for trivial reasons."""

from __future__ import annotations

import importlib
import json
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from benchmarks.gpu import batches
from benchmarks.gpu.check import Check
from tests.support.fakecard import CUDA0, fake_card

# Of Volta's kind, so without TF32.
_CARD = SimpleNamespace(name="Pretend", major=7, minor=0, total_memory=16 << 30)


@pytest.fixture
def check():
    """A check on the card, in small sizes, with what torch.cuda asks a driver for."""
    asked = {
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "get_device_properties": lambda *_: _CARD,
        "get_device_capability": lambda *_: (_CARD.major, _CARD.minor),
        "get_device_name": lambda *_: "Tesla V100-SXM2-16GB",
        "get_arch_list": lambda: ["sm_70", "sm_75"],
        "set_per_process_memory_fraction": lambda *_: None,
        "set_sync_debug_mode": lambda *_: None,
        "device_count": lambda: 1,
    }
    with fake_card(), mock.patch.multiple(torch.cuda, **asked):
        yield Check(CUDA0, quick=True, seconds=600)


# collectives need NCCL; speed needs autocast, which is off without CUDA.
@pytest.mark.parametrize(
    "part",
    ["environment", "precision", "noise", "methods", "attacks", "waits", "memory", "boundary", "table2", "batches"],
)
def test_a_part_passes_on_the_pretend_card(part, check, capsys):
    with check.attempt(part):
        importlib.import_module(f"benchmarks.gpu.{part}").run(check)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    # torch.func knows no pretend tensors.
    lines = [line for line in lines if line.get("launched") != "compiled"]
    assert lines
    assert not [line for line in lines if "failed" in line or "skipped" in line or line.get("passed") is False]


def test_two_cards_are_needed_for_a_world_of_two(check, capsys):
    with check.attempt("world"):
        importlib.import_module("benchmarks.gpu.world").run(check)
    assert "needs two cards" in json.loads(capsys.readouterr().out)["skipped"]


def test_the_smallest_batch_near_the_best_pays():
    found = batches.smallest_that_pays({16: 100.0, 64: 300.0, 128: 370.0, 256: 400.0})
    assert found == {"pays": 128, "share_of_best": {16: 0.25, 64: 0.75, 128: 0.925, 256: 1.0}}
