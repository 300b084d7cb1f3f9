"""Arrays that were given in Python, kept with the run: a file of their own, and the source that reads it.

safetensors: the types of the arrays stay as they are, all workers of a node map one file, and nothing is unpickled.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors

from ima_dist.config.errors import ConfigError, first_line
from ima_dist.config.schema import DataConfig
from ima_dist.data.types import PARTS, DataSet

SOURCE = "ima_dist.data.arrays:load"
FILE = "data.safetensors"


def content(data: DataSet) -> tuple[bytes, str]:
    """The file that keeps ``data``, and the SHA-256 of what it holds, whichever version of safetensors wrote it."""
    tensors: dict[str, torch.Tensor] = {}
    for name in PARTS:
        part = getattr(data, name)
        # clone: safetensors refuses arrays that share memory, as parts of one array do
        tensors |= {f"{name}.x": part.x.contiguous().clone(), f"{name}.y": part.y.contiguous().clone()}
    groups = {name: part.groups for name in PARTS if (part := getattr(data, name)).groups is not None}
    about = json.dumps({"box": data.box, "class_names": data.class_names} | ({"groups": groups} if groups else {}))
    return to_safetensors(tensors, {"about": about}), _checksum(tensors, about)


def load(config: DataConfig, seed: int, sha256: str) -> dict[str, Any]:
    """The data in ``config.dir``, as ``--data.source`` functions return them. Raises ConfigError."""
    file = Path(config.dir or "") / FILE
    try:
        with safe_open(file, "pt") as opened:
            about = opened.metadata()["about"]
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dictionary)
            described = json.loads(about)
            parts = {
                name: (tensors[f"{name}.x"], tensors[f"{name}.y"], described.get("groups", {}).get(name))
                for name in PARTS
            }
    except FileNotFoundError:
        raise ConfigError(
            f"{file}, the data that were given in Python, does not exist: restore it from a copy."
        ) from None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} is damaged ({first_line(error)}): restore it from a copy.") from error
    if _checksum(tensors, about) != sha256:
        raise ConfigError(f"{file} is damaged, or holds other data (checksum): restore it from a copy.")
    return {**parts, "box": described.get("box"), "class_names": described.get("class_names")}


def _checksum(tensors: dict[str, torch.Tensor], about: str) -> str:
    found = hashlib.sha256(about.encode())
    for name in sorted(tensors):
        found.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        found.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
