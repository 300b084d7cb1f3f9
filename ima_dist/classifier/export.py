"""Writing a run's network into a directory that others can use."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import torch as safetensors
from torch import nn

from ima_dist.classifier import programs
from ima_dist.classifier.exported import CARD, README, WEIGHTS, Exported, checksums, code_of, trial_samples
from ima_dist.config.errors import ConfigError
from ima_dist.config.values import to_dict
from ima_dist.data.types import DataSet
from ima_dist.evaluation.artefacts import describe
from ima_dist.results.card import make_card, without_directory
from ima_dist.results.model_card import readme
from ima_dist.rundir.files import why_unwritable, write_json, write_text_atomic
from ima_dist.rundir.run import Run
from ima_dist.training.aside import naming
from ima_dist.training.network import DTYPES


def check_place(to: Path) -> None:
    """Raise ConfigError if an export cannot be written there."""
    if to.exists() or to.is_symlink():
        raise ConfigError(f"{to} exists: give another --to, or delete it.")
    if reason := why_unwritable(to):
        raise ConfigError(f"{to} cannot be written ({reason}): give another --to.")


def write_export(
    run: Run, epoch: int, network: nn.Module, data: DataSet, formats: tuple[str, ...], to: Path
) -> dict[str, Any]:
    """Write ``network``, which has the weights after ``epoch`` epochs, with its card; returns the card.

    The weights are always written; ``formats`` says what else. ``to`` is there when all is written and compared.
    Raises ConfigError if it exists, or a program of the network does not answer as the network; OSError.
    """
    check_place(to)
    config, inputs = run.config, describe(data)
    dtype = DTYPES[config.dtype]
    network = network.cpu().eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    card, checks = make_card(run, epoch, inputs), {}
    with _aside(to) as place:
        _write_weights(network, place / WEIGHTS)
        x = programs.samples_to_compare(network, data, config) if set(formats) - {"safetensors"} else None
        for name, write in (("torch", programs.write_program), ("onnx", programs.write_onnx)):
            if name in formats and x is not None:
                checks[programs.PROGRAM if name == "torch" else programs.ONNX] = write(network, x, place)
        card["checks"] = checks
        write_json(place / CARD, card)
        if run.dir.code_dir.is_dir():
            shutil.copytree(run.dir.code_dir, code_of(place))
        with torch.no_grad():
            answers = network(trial_samples(inputs, dtype)).double().tolist()
        Exported(
            inputs=inputs,
            training=to_dict(without_directory(config)),
            epoch=epoch,
            answers=tuple(map(tuple, answers)),
            files=checksums(place),
        ).write(place)
        write_text_atomic(place / README, readme(card, formats, checks))
    return card


def _write_weights(network: nn.Module, file: Path) -> None:
    with naming(file):
        safetensors.save_model(network, str(file), metadata={"format": "pt"})  # copes with tied weights
    # safetensors lets only the owner read its files, and these are to be handed on.
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content)


@contextmanager
def _aside(to: Path) -> Iterator[Path]:
    """A directory beside ``to`` that takes its place when the block ends, and vanishes if it fails."""
    to.parent.mkdir(parents=True, exist_ok=True)
    place = to.with_name(f".{to.name}.{uuid.uuid4().hex[:8]}.tmp")
    place.mkdir()
    try:
        yield place
        for path in (*place.rglob("*"), place):
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        check_place(to)
        place.rename(to)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
