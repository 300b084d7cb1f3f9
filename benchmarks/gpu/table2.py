"""An epoch of IMA at Fashion-MNIST's size, and what a row of Table 2 comes to."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.gpu.check import Check
from benchmarks.gpu.data import FASHION_SAMPLES
from benchmarks.gpu.runs import prepared

_EPOCHS = 60
# A margin that many samples have in the middle of a run; the default, 0.3 / 60, is that of the first epoch.
_MARGIN = 0.1


def run(check: Check) -> None:
    for update in ("online", "epoch"):
        with check.attempt("table2", margin_update=update):
            check.need_time()
            options: dict[str, Any] = {
                "data.source": "benchmarks.gpu.data:fashion_full",
                "epochs": 1,
                "delta_eps": _MARGIN,
                "margin_update": update,
                **({"data.subset": 20, "batch_size": 10, "attack.steps": 2} if check.quick else {}),
            }
            began = time.perf_counter()
            with prepared(check, "fashion_mnist", options, check.device) as training:
                training.fit()
            check.synchronize()
            row = training.history[-1]
            seconds = row["train_seconds"] + (row["margin_seconds"] or 0.0)
            check.say(
                "table2",
                margin_update=update,
                samples=len(training.train),
                seconds_of_the_epoch=seconds,
                seconds_with_data_and_checkpoint=time.perf_counter() - began,
                minutes_of_a_row=seconds * _EPOCHS * FASHION_SAMPLES / len(training.train) / 60,
                noisy_share=row["noisy_samples"] / len(training.train),
            )
