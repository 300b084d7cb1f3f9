"""Training and validation accuracy by epoch, and the epoch that a threshold selects."""

from typing import Any

from ima_dist.config.errors import ConfigError
from ima_dist.config.schema import EXTERNAL
from ima_dist.dashboard.choosing import choose_runs
from ima_dist.dashboard.parts import Grid, Note, Part, Plot, Values
from ima_dist.dashboard.state import Control, State, number
from ima_dist.figures.interactive.training import Trained, training_figure
from ima_dist.results.tradeoff import last_epoch_above
from ima_dist.tracking.collection import Collection

TITLE = "Training"
INTRODUCTION = (
    "Clean accuracy after each epoch. The selected epoch is the last one whose validation accuracy reaches the "
    "threshold: margins grow with the epochs (paper, appendix F)."
)
LIVE = False
_USUAL, _THRESHOLD = 0.9, "Threshold of validation accuracy"
_COLUMNS = ["run", "epoch", "train_loss", "train_accuracy", "val_accuracy", "margin_mean", "share_at_max"]
_COLUMNS += ["samples_per_second"]


def controls(runs: Collection, state: State) -> list[Control]:
    able = [r for r in runs.runs.values() if r.epochs_table.num_rows and r.info["method"] != EXTERNAL]
    return [
        choose_runs(state, able),
        number(state, "threshold", _THRESHOLD, 0, 1, 0.005, _USUAL),
    ]


def show(runs: Collection, values: Values) -> list[Part]:
    chosen = [runs.runs[name] for name in values["runs"]]
    if not chosen:
        return [Note("No run has finished an epoch yet.")]
    threshold, trained, rows = round(values["threshold"], 6), [], []  # as precise as the address
    for run in chosen:
        row: dict[str, Any] = {"run": run.name, "epochs done": run.info["epochs_done"]}
        epoch = None
        try:
            epoch = last_epoch_above(threshold, run.history)
            at = next(r for r in run.history if r["epoch"] == epoch)
            row |= {"selected epoch": epoch, "validation accuracy": at["val_accuracy"]}
            row["training accuracy"] = at["train_accuracy"]
            row["mean margin"] = at.get("margin_mean")  # methods without margins have no such column
        except ConfigError as error:
            row["remark"] = str(error)
        rows.append(row)
        trained.append(Trained(run.name, run.history, epoch, run.info["method"]))
    columns = [
        "run",
        "epochs done",
        "selected epoch",
        "validation accuracy",
        "training accuracy",
        "mean margin",
        "remark",
    ]
    every = [{"run": run.name, **row} for run in chosen for row in run.history]
    caption = (
        "Selected, at the star: the last epoch whose validation accuracy reaches the threshold, the dashed line. Stars "
        "of one epoch stand side by side. Lines of earlier runs are wider, so that lines that coincide can be told "
        "apart."
    )
    return [
        Plot("training", "Clean accuracy and training loss by epoch", caption, training_figure(trained, threshold)),
        Grid("selected", "Selected epochs", columns, rows),
        Grid("epochs", "All epochs", _COLUMNS, every),
    ]
