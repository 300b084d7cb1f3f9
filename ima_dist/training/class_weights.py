"""The weight of each class in the loss."""

import torch
from torch import Tensor

from ima_dist.config.class_weights import BALANCED, weights_in
from ima_dist.config.errors import ConfigError
from ima_dist.config.schema import Config
from ima_dist.data.types import DataSet


def class_weights(config: Config, data: DataSet) -> Tensor | None:
    """(C,) float64: the weight of each class under ``--class-weights``; None without.

    A mean of 1 over the training samples: v_c · N / Σ n_k v_k for N samples, of which n_k are of class k, where v_c is
    the weight given, or 1 / n_c for "balanced". So "balanced" is N / (C · n_c), as in scikit-learn.
    Raises ConfigError if the weights given are not one for each class.
    """
    if config.class_weights is None:
        return None
    counts = torch.bincount(data.train.y.cpu(), minlength=data.num_classes).double()
    if config.class_weights == BALANCED:
        given = torch.where(counts > 0, 1 / counts.clamp_min(1), torch.zeros(()))
    else:
        names = data.class_names or tuple(map(str, range(data.num_classes)))
        by_name = weights_in(config.class_weights)
        numbered = {str(i): name for i, name in enumerate(names)}
        meant = {given: given if given in names else numbered.get(given, given) for given in by_name}
        twice = next((given for given, name in meant.items() if given != name and name in by_name), None)
        if twice is not None:
            raise ConfigError(f"--class-weights names the class {meant[twice]} twice, also by its number {twice}.")
        by_name = {meant[given]: weight for given, weight in by_name.items()}
        for name in names:
            if name not in by_name:
                raise ConfigError(f"--class-weights has no weight for the class {name}: give one for each class.")
        unknown = [name for name in by_name if name not in names]
        if unknown:
            raise ConfigError(
                f"--class-weights names the class {unknown[0]}, which the data lack: they have {', '.join(names)}."
            )
        given = torch.tensor([by_name[name] for name in names], dtype=torch.float64)
    return given * (counts.sum() / (counts * given).sum())
