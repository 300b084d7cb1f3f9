"""The directory that ``ima_dist.export`` writes: its files, and its config.json."""

import hashlib
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import Strict
from torch import Tensor, nn

from ima_dist.config.checked import Checked, validated
from ima_dist.config.errors import ConfigError
from ima_dist.config.schema import Config
from ima_dist.config.values import from_dict, to_dict
from ima_dist.core import noise
from ima_dist.rundir.files import read_json, write_json
from ima_dist.rundir.inputs import Inputs
from ima_dist.training.answers import same_logits
from ima_dist.training.network import DTYPES

WEIGHTS, ONNX, PROGRAM, CONFIG, CARD, README = (
    "model.safetensors", "model.onnx", "model.pt2", "config.json", "card.json", "README.md"
)  # fmt: skip
_SAMPLES = 4


class Exported(Checked):
    """config.json. training: the configuration of the run. answers: the logits for ``trial_samples``, by which a
    change of the network's code is noticed. files: SHA-256 by name."""

    inputs: Inputs
    training: dict[str, Any]
    epoch: int
    answers: Annotated[tuple[Annotated[tuple[float, ...], Strict(False)], ...], Strict(False)]
    files: dict[str, str]

    @property
    def config(self) -> Config:
        """The configuration of the run, without the place of its data. Raises ConfigError."""
        return from_dict(self.training)

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Raises ConfigError if config.json cannot be read, or is of something else."""
        path = directory / CONFIG
        found = read_json(path) or {}
        if found.get("model_type") != "ima_dist":
            raise ConfigError(f"{path} is not of an export of ima_dist: check the path.")
        return validated(cls, {name: found.get(name) for name in cls.model_fields}, str(path))

    def write(self, directory: Path) -> None:
        """Raises OSError."""
        names = self.inputs.class_names or tuple(map(str, range(self.inputs.classes)))
        head = {
            "model_type": "ima_dist",
            "architectures": [self.config.model.factory],
            "num_labels": self.inputs.classes,
            "id2label": {str(number): name for number, name in enumerate(names)},
            "label2id": {name: number for number, name in enumerate(names)},
            "torch_dtype": self.config.dtype,
        }
        write_json(directory / CONFIG, head | to_dict(self))

    def card(self, directory: Path) -> dict[str, Any]:
        """card.json. Raises ConfigError if it is missing or damaged."""
        path = directory / CARD
        if not path.is_file():
            raise ConfigError(f"{path} is missing: restore it from a copy.")
        if _digest(path) != self.files.get(CARD):
            raise ConfigError(f"{path} is damaged (its checksum differs): restore it from a copy.")
        return read_json(path) or {}


def code_of(directory: Path) -> Path:
    """Where an export keeps the modules of a network of one's own."""
    return directory / "code"


def checksums(directory: Path) -> dict[str, str]:
    """SHA-256 of each file in the directory."""
    return {path.name: _digest(path) for path in sorted(directory.iterdir()) if path.is_file()}


def trial_samples(inputs: Inputs, dtype: torch.dtype) -> Tensor:
    """The same samples on every machine, (4, *shape), uniform in the box, or in the range of the training samples."""
    low, high = inputs.box or (inputs.low, inputs.high)
    keys = noise.sample_keys(0, 0, 0, torch.arange(_SAMPLES))
    return low + (high - low) * noise.uniform(keys, inputs.shape, dtype)


def same_as_exported(exported: Exported, network: nn.Module) -> bool:
    """False if the network answers otherwise than when it was exported."""
    then = torch.tensor(exported.answers, dtype=torch.float32).numpy()
    return same_logits(then, network, trial_samples(exported.inputs, DTYPES[exported.config.dtype]))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
