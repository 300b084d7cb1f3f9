"""The card of a trained network, as plain values: what it is, how good, why that may be doubted, how to redo it."""

import shlex
from pathlib import Path
from typing import Any

import yaml

from ima_dist.config.attacks import ATTACK_TABLE
from ima_dist.config.errors import ConfigError
from ima_dist.config.plain_yaml import load_plain
from ima_dist.config.presets import data_name, options_of, train_command
from ima_dist.config.provenance import not_the_papers
from ima_dist.config.schema import EXTERNAL, Config
from ima_dist.config.values import as_flags, with_options
from ima_dist.results.binary import shown_thresholds
from ima_dist.results.doubts import doubts, failed_attacks
from ima_dist.results.performance import clean_of, shown
from ima_dist.results.split import split_level
from ima_dist.results.statistics import interval_of, wilson_interval
from ima_dist.results.text import NORM_SIGN
from ima_dist.rundir.curves import Point, Row, attack_rows
from ima_dist.rundir.inputs import Inputs
from ima_dist.rundir.run import Run

_PUBLISHED = "ima_dist.data."
_OF_ELSEWHERE = (
    "It was trained elsewhere, on data that are not known here: samples of the test set may have been among them."
)
_DIRECTORY = "DATA_DIR"  # in place of one of this machine


def make_card(run: Run, epoch: int, inputs: Inputs) -> dict[str, Any]:
    """The card of a run's network after ``epoch`` epochs; accuracies are those of summary.json."""
    config = without_directory(run.config)
    rows = attack_rows(run.points, epoch)
    last = epoch == config.epochs
    early = run.summary.get("early_stop")
    trained = early["best"] if early and last else epoch
    found = next((row for row in run.history if row["epoch"] == trained), {})
    return {
        "name": f"{data_name(config)}-{config.method}-{config.norm}-seed{config.seed}-epoch{epoch}",
        "run": run.name,
        "epoch": epoch,
        "epochs": config.epochs,
        "preset": config.preset,
        "seed": config.seed,
        "method": config.method,
        "norm": config.norm,
        "eps_max": config.eps_max,
        "settings": options_of(config),
        "network": {
            "factory": config.model.factory,
            "args": config.model.args,
            "parameters": run.summary.get("parameters"),
            "dtype": config.dtype,
        },
        "data": {
            "name": data_name(config),
            "source": config.data.source,
            "shape": list(inputs.shape),
            "box": None if inputs.box is None else list(inputs.box),
            "class_names": None if inputs.class_names is None else list(inputs.class_names),
            "splits": {name: part.model_dump() for name, part in inputs.splits.items()},
            "split_level": split_level(run) or inputs.split_level or _split_level(config),
            "digest": inputs.digest,
        },
        "clean_accuracy": _clean(run, run.summary.get("clean_accuracy") if last else None, inputs),
        "validation_accuracy": found.get("val_accuracy"),
        "validation_robust_accuracy": found.get("val_robust_accuracy"),
        "by_class": [entry.to_json() for entry in shown(run, epoch)],
        "thresholds": shown_thresholds(run) if last else [],
        "accuracies": [_measured(row[level]) for row in rows.values() for level in sorted(row)],
        "warnings": _warnings(run, epoch, rows, inputs),
        "limits": _limits(config, inputs),
        "reproduce": _commands(config, epoch, rows),
        "versions": _versions(run),
    }


def without_directory(config: Config) -> Config:
    """The configuration without directories of this machine, in which its data and starting weights lie."""
    changes: dict[str, Any] = {} if config.data.dir is None else {"data.dir": _DIRECTORY}
    if config.model.weights:
        # The checksum stays that of the file, which may be gone.
        changes |= {
            "model.weights": Path(config.model.weights).name,
            "model.weights_sha256": config.model.weights_sha256,
        }
    return with_options(config, changes)


def _clean(run: Run, accuracy: Any, inputs: Inputs) -> dict[str, Any] | None:
    if not isinstance(accuracy, int | float):
        return None
    samples, found = inputs.splits["test"].samples, clean_of(run)
    # That of a run of an earlier version, which does not know of groups.
    interval = wilson_interval(accuracy, samples) if found is None else found.accuracy_interval
    return {"accuracy": accuracy, "samples": samples, "interval": list(interval)}


def _measured(point: Point) -> dict[str, Any]:
    return point.to_json() | {"interval": list(interval_of(point))}


def _split_level(config: Config) -> str:
    if config.data.source.startswith(_PUBLISHED):
        return "sample: samples of one person or scene, if there are such, may lie in several splits"
    return f"not known: {config.data.source} made the splits"


def _warnings(run: Run, epoch: int, rows: dict[str, Row], inputs: Inputs) -> list[str]:
    found = list(doubts(run))
    if not rows:
        found.append(
            f"This network, after epoch {epoch}, has not been attacked: nothing is known of its robustness. Evaluate "
            f"it with python -m ima_dist.evaluate RUN_DIR --epochs {epoch}."
        )
    fewest = min((point.samples for row in rows.values() for point in row.values()), default=None)
    if fewest is not None and fewest < inputs.splits["test"].samples:
        found.append(f"Only {fewest:,} of the {inputs.splits['test'].samples:,} test samples were attacked.")
    if epoch != run.config.epochs:
        found += [f"{attack} failed ({why})." for attack, why in failed_attacks(run.summary, epoch).items()]
    if run.status != "finished":
        what = "The evaluation of it" if run.config.method == EXTERNAL else "The run that trained it"
        found.append(f"{what} is {run.status}.")
    return list(dict.fromkeys(found))


def _limits(config: Config, inputs: Inputs) -> list[str]:
    found = [
        "Accuracies under attack are upper bounds: a stronger attack may find more errors.",
        f"They hold for perturbations within the {NORM_SIGN[config.norm]} ball of the noise level and samples like "
        "those of the test set: same devices, same people, same preparation.",
        "Probabilities are the softmax of the logits; they are not calibrated.",
        _OF_ELSEWHERE if config.method == EXTERNAL else "One seed: another gives other accuracies.",
    ]
    if inputs.splits["val"].samples == 0:
        found.append("There was no validation set.")
    return [*found, *(f"Not from the paper: {text}" for text in not_the_papers([config]))]


def _commands(config: Config, epoch: int, rows: dict[str, Row]) -> list[str]:
    """The commands that train the network (or bring it in), attack it as it was attacked, and export it."""
    commands = [train_command(config, "RUN_DIR")]
    for attack, row in rows.items():
        if epoch == config.epochs and attack in config.eval.attacks:
            continue  # training ends with it
        point = next(iter(row.values()))
        options: dict[str, Any] = {"eval.noise": [p.noise for p in row.values()], "eval.samples": point.samples}
        options["eval.order"] = point.order
        options |= {f"eval.{name}": getattr(point, name) for name in ATTACK_TABLE[attack].reads}
        words = ["python", "-m", "ima_dist.evaluate", "RUN_DIR", "--attack", attack, "--epochs", str(epoch)]
        commands.append(shlex.join([*words, *as_flags(options)]))
    return [*commands, f"python -m ima_dist.export RUN_DIR --to DIR --epoch {epoch}"]


def _versions(run: Run) -> dict[str, Any]:
    try:
        tree = load_plain(run.dir.config_path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{run.dir.config_path} cannot be read ({error}).") from None
    found = tree.get("versions") if isinstance(tree, dict) else None
    return dict(found) if isinstance(found, dict) else {}
