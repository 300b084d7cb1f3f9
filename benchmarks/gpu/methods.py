"""Whole small runs of every training method in float64, on the CPU and on the card."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.check import Check
from benchmarks.gpu.runs import prepared

_CLOSE = 1e-6
_CASES = [
    ("ima", "linf", "epoch"),
    ("ima", "linf", "online"),
    ("ima", "l2", "epoch"),
    ("ima", "l2", "online"),
    *((method, norm, None) for method in ("ce", "adv", "rand", "trades", "mma") for norm in ("linf", "l2")),
    *((method, norm, None) for method in ("iaat", "fat") for norm in ("linf", "l2")),
    ("ddn", "l2", None),
    ("nfgsm", "linf", None),
]


# Methods whose attacks can be captured (--cuda-graphs), and of those some whose steps can be compiled, too.
_CAPTURED = ("ima", "adv", "trades", "mma", "ddn", "fat")
_COMPILED = ("ima", "adv")


def run(check: Check) -> None:
    for method, norm, update in _CASES:
        for how in _variants(check, method, norm):
            with check.attempt("methods", method=method, norm=norm, margin_update=update, how=how):
                check.need_time()
                _compare(check, method, norm, update, how)


def _variants(check: Check, method: str, norm: str) -> list[tuple[str, ...]]:
    """Options with which the card must find what the CPU finds without them."""
    found: list[tuple[str, ...]] = [()]
    if check.on_card and method in (_COMPILED if check.quick else _CAPTURED):
        found.append(("cuda_graphs",))
    # Compiling takes half a minute.
    if check.on_card and not check.quick and method in _COMPILED and norm == "linf":
        found.append(("cuda_graphs", "compile"))
    return found


def _compare(check: Check, method: str, norm: str, update: str | None, how: tuple[str, ...]) -> None:
    options: dict[str, Any] = {
        "method": method,
        "norm": norm,
        "data.source": "benchmarks.gpu.data:moons",
        "data.subset": 40 if check.quick else 400,
        "epochs": 2,
        "batch_size": 16 if check.quick else 64,
        "dtype": "float64",
        "attack.steps": 3 if check.quick else 6,
        "attack.bisections": 2 if check.quick else 4,
        "eval.val_noise": 0.1,
        "eval.val_steps": 3,
        **({"delta_eps": 0.1} if method in ("ima", "mma") else {}),
        **({"margin_update": update} if update else {}),
    }
    ends = []
    for device in (torch.device("cpu"), check.device):
        on_this = options if device.type == "cpu" else {**options, **dict.fromkeys(how, True)}
        with prepared(check, "moons", on_this, device) as training:
            weights = {name: value.detach().cpu() for name, value in training.fit().state_dict().items()}
            ends.append((weights, training.history[-1]))
    (expected, expected_row), (found, row) = ends
    apart = max(_largest(expected[name] - found[name]) for name in expected)
    margins = [r.get("margin_mean") for r in (expected_row, row)]
    check.judge(
        "methods",
        apart < _CLOSE and (margins[0] is None or abs(margins[0] - margins[1]) < _CLOSE),
        method=method,
        norm=norm,
        margin_update=update,
        how=how,
        largest_difference_of_weights=apart,
        mean_margins=margins,
        accuracies=[r["val_accuracy"] for r in (expected_row, row)],
    )


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max())
