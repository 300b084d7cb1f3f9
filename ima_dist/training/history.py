"""The row that an epoch leaves in history.parquet."""

from typing import Any

from ima_dist.config.schema import Config
from ima_dist.margins.store import MarginStore
from ima_dist.training.counters import Counters

HISTOGRAM_BINS = 50


def epoch_row(
    epoch: int, counters: Counters, accuracies: dict[str, float | None], store: MarginStore | None, config: Config
) -> dict[str, Any]:
    """The columns of one epoch; accuracies: of the validation set, by column. Collective."""
    totals = counters.totals()
    seen = max(totals["seen"], 1.0)
    train, margin = counters.seconds["train"], counters.seconds["margin"]
    row = {
        "epoch": epoch,
        "train_loss": totals["loss"] / seen,
        "train_accuracy": totals["correct"] / seen,
        "val_accuracy": None,
        "noisy_samples": int(totals["noisy"]),
        "evaluations": int(totals["evaluations"]),
        "train_seconds": train,
        "margin_seconds": margin if store is not None else None,
        "samples_per_second": seen / max(train + margin, 1e-9),
        **accuracies,
    }
    return row if store is None else row | _margin_columns(store, config.eps_max)


def _margin_columns(store: MarginStore, eps_max: float) -> dict[str, Any]:
    return {
        "margin_mean": store.mean(),
        # A margin that has just been clipped to ε_max may differ from it by rounding.
        "share_at_max": store.share_at(eps_max * (1 - 1e-6)),
        "margin_quantiles": store.quantiles(eps_max),
        "margin_histogram": store.histogram(HISTOGRAM_BINS, eps_max).tolist(),
    }
