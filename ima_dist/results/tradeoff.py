"""The epochs of a run as models: the weights after M epochs are the model with the largest margin M·Δε (appendix F)."""

import re
from collections.abc import Sequence
from typing import Any

from ima_dist.config.errors import ConfigError, complain
from ima_dist.config.schema import Config
from ima_dist.results import paper
from ima_dist.results.text import accuracy, aligned
from ima_dist.rundir.curves import Point, attack_rows, epochs_of, format_noise, levels_of, noise_key
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.epochs import lost_figures, spans, with_weights
from ima_dist.rundir.run import Run

_FORM, BEST_ROBUST = "val_accuracy>=0.90", "best-robust"
RULES = f"{_FORM}|{BEST_ROBUST}"


def done_epochs(run: RunDir, history: list[dict[str, Any]], summary: dict[str, Any], config: Config) -> list[int]:
    """The epochs whose network a run has, ascending: those of history.parquet, those whose weights are there although
    the history has lost them, and the last one of a run that ended early."""
    early = [config.epochs] if summary.get("early_stop") else []
    return sorted({*(row["epoch"] for row in history), *with_weights(run), *early})


def chosen_epoch(run: Run, epoch: int | None = None, select: str | None = None) -> int:
    """The epoch that a user asks for, by number or by rule (``select_epoch``); by default the last of a whole run.

    Raises ConfigError if both are given, or the run has no such epoch.
    """
    if epoch is not None and select is not None:
        raise ConfigError("Give an epoch or a rule that selects one, not both.")
    if select is not None:
        return selected(select, run.dir, run.history, run.config)
    done = done_epochs(run.dir, run.history, run.summary, run.config)
    wanted = run.config.epochs if epoch is None else epoch
    if wanted in done:
        return wanted
    have = spans(done) or "none"
    if epoch is None:
        raise ConfigError(f"{run.dir.path} has not finished training: name one of its epochs ({have}), or continue it.")
    raise ConfigError(f"{run.dir.path} has no epoch {epoch}: it has {have}.")


def selected(rule: str, run: RunDir, history: list[dict[str, Any]], config: Config) -> int:
    """``select_epoch``, with a warning if some epochs of ``run`` have lost their figures."""
    lost = lost_figures(run, history, config.epochs)
    if lost:
        complain(f"warning: {lost}.")
    return select_epoch(rule, history)


def select_epoch(rule: str, history: list[dict[str, Any]]) -> int:
    """The epoch that ``rule`` selects: ``val_accuracy>=0.90`` (``last_epoch_above``) or ``best-robust``.

    ``best-robust``: the highest accuracy on the validation samples that were attacked after each epoch
    (``--eval.val-noise``); of equal ones the last. Raises ConfigError also if the rule has another form.
    """
    if rule.strip() == BEST_ROBUST:
        return _best_robust(history)
    match = re.fullmatch(r"\s*val_accuracy\s*>=\s*(\d*\.?\d+)\s*", rule)
    if not match or not 0 <= float(match[1]) <= 1:
        raise ConfigError(
            f"--select must have the form {_FORM!r}, a share between 0 and 1, or be {BEST_ROBUST}, not {rule!r}."
        )
    return last_epoch_above(float(match[1]), history)


def _best_robust(history: list[dict[str, Any]]) -> int:
    known = [row for row in history if row.get("val_robust_accuracy") is not None]
    if not known:
        raise ConfigError(
            f"No epoch of this run was attacked on validation samples, which {BEST_ROBUST} needs: train with "
            f"--eval.val-noise, or select another way."
        )
    return int(max(known, key=lambda row: (row["val_robust_accuracy"], row["epoch"]))["epoch"])


def last_epoch_above(threshold: float, history: list[dict[str, Any]]) -> int:
    """The last epoch with a validation accuracy of at least ``threshold``; it has the largest margins.

    ``history``: rows of history.parquet. Raises ConfigError if there is no such epoch.
    """
    known = [row for row in history if row["val_accuracy"] is not None]
    if not known:
        raise ConfigError("This run has no validation set, so no threshold can select an epoch: choose one yourself.")
    good = [row["epoch"] for row in known if row["val_accuracy"] >= threshold]
    if not good:
        best = max(known, key=lambda row: row["val_accuracy"])
        raise ConfigError(
            f"No epoch has a validation accuracy of {threshold:g} or more: the best is {best['val_accuracy']:.4f}, "
            f"in epoch {best['epoch']}."
        )
    return int(max(good))


def tradeoff_table(config: Config, points: Sequence[Point], history: list[dict[str, Any]]) -> str:
    """Accuracy by epoch and noise level, one block per attack, like Tables 16 to 21 of the paper.

    ``history``: rows of history.parquet, for the validation accuracy. Rows of the paper stand below ours where it
    has them.
    """
    epochs = epochs_of(points)
    validation = {row["epoch"]: row["val_accuracy"] for row in history}
    blocks = []
    for attack in sorted({point.attack for point in points}):
        rows = {epoch: attack_rows(points, epoch).get(attack, {}) for epoch in epochs}
        levels = levels_of(rows.values())
        lines = [["epochs", "largest margin", *map(format_noise, levels), "0 (val)"]]
        for epoch in epochs:
            row = rows[epoch]
            if not row:
                continue
            bounded = config.method == "ima" and config.margins_bounded
            margin = f"{min(epoch * config.expansion, config.eps_max):.4g}" if bounded else "-"
            accuracies = [accuracy(row[x].accuracy) if x in row else "-" for x in levels]
            clean = validation.get(epoch)
            lines.append([str(epoch), margin, *accuracies, accuracy(clean)])
            found = paper.epoch_row(config, epoch) if attack == "pgd100" else None
            if found:
                table, published, published_clean = found
                theirs = {noise_key(x): value for x, value in published.items()}
                values = [accuracy(theirs.get(x)) for x in levels]
                lines.append(["", f"paper (Table {table})", *values, f"{published_clean:.4f}"])
        blocks.append("\n".join([f"{attack}: accuracy on the test set by number of epochs", *aligned(lines)]))
    return "\n\n".join(blocks)
