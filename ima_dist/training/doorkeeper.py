"""What the checks at the door (``door.py``) have in common."""

import torch
from torch import Tensor, nn

from ima_dist.config.errors import ConfigError
from ima_dist.config.schema import Config
from ima_dist.data.types import DataSet
from ima_dist.training.network import check_logits

# Largest relative difference of two equal answers: of the same pass, and of passes that round differently.
SAME, ROUNDED = 1e-5, 1e-3


class Doorkeeper:
    """One network at the door: its logits, and the names in ``--allow`` that it has needed."""

    def __init__(self, network: nn.Module, data: DataSet, config: Config) -> None:
        self.network, self.data, self.config = network, data, config
        self.who = f"The network of {config.model.factory}"
        self.allowed: list[str] = []

    def refuse(self, name: str, sentence: str) -> None:
        """Raise ConfigError unless ``--allow`` has this name; then note that it was needed."""
        if name not in self.config.allow:
            raise ConfigError(f"{self.who} {sentence}, or accept that with --allow {name}.")
        if name not in self.allowed:
            self.allowed.append(name)

    def logits(self, x: Tensor, mode: str = "evaluation") -> Tensor:
        found = self.network(x)
        check_logits(found, len(x), self.data.num_classes, self.config.model.factory, mode)
        if found.dtype != x.dtype:
            got, needed = (str(kind).removeprefix("torch.") for kind in (found.dtype, x.dtype))
            raise ConfigError(f"{self.who} returns {got} values under --dtype {needed}: remove the conversion.")
        return found


def equal(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Equal up to rounding; NaN equals NaN, because values that are not finite are another matter."""
    finite = a[a.isfinite()]
    scale = float(finite.abs().max()) if len(finite) else 0.0
    return torch.allclose(a, b, rtol=0.0, atol=tolerance * scale, equal_nan=True)
