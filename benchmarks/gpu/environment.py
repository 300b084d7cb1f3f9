"""Versions, the card, and whether this torch has kernels for it."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

import torch

from benchmarks.gpu.check import Check, Skip

# numpy and the first three are for everything that trains; the others for an attack or a network each.
_PACKAGES = ("pyarrow", "safetensors", "yaml", "numpy", "advertorch", "pyautoattack", "torchvision")


def run(check: Check) -> None:
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "missing_packages": [name for name in _PACKAGES if importlib.util.find_spec(name) is None],
        "cuda": torch.version.cuda,
        "tf32_convolutions": torch.backends.cudnn.allow_tf32,
        "tf32_products": torch.backends.cuda.matmul.allow_tf32,
    }
    check.say("environment", **found)
    if not check.on_card:
        raise Skip("torch sees no card: everything below ran on the CPU, in small sizes; its times mean nothing")
    card = torch.cuda.get_device_properties(check.device)
    check.judge(
        "environment",
        has_kernels(torch.cuda.get_arch_list(), card.major, card.minor),
        card=card.name,
        capability=f"{card.major}.{card.minor}",
        built_for=torch.cuda.get_arch_list(),
        memory_gb=card.total_memory / 1e9,
        cudnn=torch.backends.cudnn.version(),
    )


def has_kernels(built_for: list[str], major: int, minor: int) -> bool:
    """Whether torch runs on a card of this compute capability: kernels serve later cards of the same major number.

    built_for: as ``torch.cuda.get_arch_list`` gives it, such as ["sm_70", "sm_90"]. Intermediate code
    ("compute_90") serves all later cards.
    """
    for kind, older_major, older_minor in re.findall(r"(sm|compute)_(\d+)(\d)[a-z]?", " ".join(built_for)):
        older = (int(older_major), int(older_minor))
        if older <= (major, minor) and (kind == "compute" or older[0] == major):
            return True
    return False
