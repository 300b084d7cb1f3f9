"""What a finished network does with the whole test set, without noise."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from ima_dist.attacks.common import attack_mode, predicted
from ima_dist.data.types import DataSet, Samples
from ima_dist.evaluation import outcomes
from ima_dist.evaluation.artefacts import scores_table
from ima_dist.results.binary import thresholds
from ima_dist.results.clustered import Codes
from ima_dist.results.performance import CLEAN, MOST_CLASSES, measure
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.files import read_parquet


def clean_results(
    run: RunDir,
    network: nn.Module,
    data: DataSet,
    test: Samples,
    val: Callable[[], Samples],
    *,
    epoch: int,
    at_once: int,
    groups: Codes | None,
) -> dict[str, Any]:
    """The entries of summary.json for the network after its last ``epoch``.

    Also puts the probabilities into probabilities.parquet, and with two classes that have names writes scores.parquet.
    test, val: those of ``data``, on the device. groups: of the test samples. Raises OSError.
    """
    classes, names = data.num_classes, data.class_names
    table = clean_table(network, test, epoch, at_once, keep=classes <= MOST_CLASSES)
    label, prediction = table["label"].to_numpy(), table["prediction"].to_numpy()
    about = {"attack": CLEAN, "epoch": epoch, "noise": 0.0, "protocol": ""}
    probability = outcomes.probabilities_in(table)
    found = measure(label, prediction, probability, classes=classes, groups=groups, **about)
    if probability is not None:
        outcomes.keep_probabilities(run, table, {found.key})
    entries = {"clean_accuracy": float((label == prediction).mean()), **outcomes.joined(run.summary(), [found])}
    if names:
        entries["class_names"] = list(names)
    if classes == 2 and names:
        scores = scores_table(network, {"validation": val(), "test": test}, at_once)
        run.write_parquet(run.scores_path, scores)
        entries["thresholds"] = thresholds(scores, read_parquet(run.probabilities_path), epoch, groups)
    return entries


def clean_table(network: nn.Module, test: Samples, epoch: int, at_once: int, *, keep: bool) -> pa.Table:
    """One row per test sample, as in probabilities.parquet; ``keep``: with the probabilities of the classes."""
    answers, probability = [], []
    with torch.no_grad(), attack_mode(network):
        for _, x, _ in test.batches(torch.arange(len(test)).split(min(1024, at_once))):
            logits = network(x)
            answers.append(predicted(logits))
            probability += [outcomes.listed(logits)] if keep else []
    count = len(test)
    columns = {
        "index": np.arange(count),
        "attack": pa.repeat(CLEAN, count),
        "noise": np.zeros(count),
        "epoch": np.full(count, epoch),
        "label": test.y.cpu().numpy(),
        "prediction": torch.cat(answers).cpu().numpy(),
        **({"probability": pa.chunked_array(probability)} if keep else {}),
        "protocol": pa.repeat("", count),
    }
    return pa.table(columns)
