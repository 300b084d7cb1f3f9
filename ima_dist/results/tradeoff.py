"""One run, many models: the weights after M epochs are the model for the largest margin M·Δε (appendix F)."""

from __future__ import annotations

import re
from typing import Any

from ima_dist.config.errors import ConfigError
from ima_dist.config.schema import Config
from ima_dist.results import paper
from ima_dist.results.table import aligned, attack_rows, format_noise, noise_key

_FORM = "val_accuracy>=0.90"


def select_epoch(rule: str, history: list[dict[str, Any]]) -> int:
    """The last epoch that satisfies ``rule``, such as ``val_accuracy>=0.90``; it allows the largest margins.

    ``history``: rows of history.parquet. Raises ConfigError for another form, or if no epoch satisfies it.
    """
    match = re.fullmatch(r"\s*val_accuracy\s*>=\s*(\d*\.?\d+)\s*", rule)
    if not match or not 0 <= float(match[1]) <= 1:
        raise ConfigError(f"--select must have the form {_FORM!r}, a share between 0 and 1, not {rule!r}.")
    known = [row for row in history if row["val_accuracy"] is not None]
    if not known:
        raise ConfigError("--select needs a validation set, which this run's data lack: name the --epochs yourself.")
    good = [row["epoch"] for row in known if row["val_accuracy"] >= float(match[1])]
    if not good:
        best = max(known, key=lambda row: row["val_accuracy"])
        raise ConfigError(
            f"No epoch has a validation accuracy of {match[1]} or more: the best is {best['val_accuracy']:.4f}, "
            f"in epoch {best['epoch']}."
        )
    return int(max(good))


def tradeoff_table(config: Config, curves: list[dict[str, Any]], history: list[dict[str, Any]]) -> str:
    """Accuracy by epoch and noise level, a block an attack, like Tables 16 to 21 of the paper.

    ``curves``: as in summary.json; ``history``: rows of history.parquet, for the validation accuracy. Rows
    of the paper stand below ours where it has them.
    """
    epochs = sorted({c["epoch"] for c in curves})
    validation = {row["epoch"]: row["val_accuracy"] for row in history}
    blocks = []
    for attack in sorted({c["attack"] for c in curves}):
        rows = {e: attack_rows([c for c in curves if (c["epoch"], c["attack"]) == (e, attack)]) for e in epochs}
        levels = sorted({level for row in rows.values() for level in row.get(attack, {})})
        lines = [["epochs", "largest margin", *map(format_noise, levels), "0 (val)"]]
        for epoch in epochs:
            row = rows[epoch].get(attack)
            if row is None:
                continue
            margin = f"{min(epoch * config.expansion, config.eps_max):.4g}" if config.method == "ima" else "-"
            accuracies = [f"{row[x]['accuracy']:.4f}" if x in row else "-" for x in levels]
            clean = validation.get(epoch)
            lines.append([str(epoch), margin, *accuracies, "-" if clean is None else f"{clean:.4f}"])
            found = paper.epoch_row(config, epoch) if attack == "pgd100" else None
            if found:
                table, published, published_clean = found
                theirs = {noise_key(x): value for x, value in published.items()}
                values = [f"{theirs[x]:.4f}" if x in theirs else "-" for x in levels]
                lines.append(["", f"paper (Table {table})", *values, f"{published_clean:.4f}"])
        blocks.append("\n".join([f"{attack}: accuracy on the test set after so many epochs", *aligned(lines)]))
    return "\n\n".join(blocks)
