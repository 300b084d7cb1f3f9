"""Whether the network of a run is still the one that it was trained with, before anything is added to the run."""

from collections.abc import Sequence

from torch import nn

from ima_dist.cli.own_code import changed_code
from ima_dist.config.errors import ConfigError, complain, first_line
from ima_dist.config.schema import Config
from ima_dist.data.pipeline import Streamed
from ima_dist.data.types import DataSet
from ima_dist.rundir.directory import RunDir
from ima_dist.training import checkpoint
from ima_dist.training.answers import read_answers, same_answers
from ima_dist.training.network import DTYPES


def check_network(run: RunDir, config: Config, data: DataSet, network: nn.Module, epochs: Sequence[int]) -> None:
    """Check the weights after ``epochs``, and with those of the last whole epoch what the network answers.

    Warns of modules of the user that have changed without a change of the answers. Raises ConfigError if weights are
    missing or damaged, were trained on other data or do not fit the network, or if it answers otherwise than it did.
    """
    changed = changed_code(run, config)
    why = (
        f" ({', '.join(changed)} changed since the run began; the run keeps a copy in {run.code_dir})"
        if changed
        else ""
    )
    for epoch in epochs:
        try:
            _load(run, epoch, data, network, config, why)
        except checkpoint.Damaged as error:
            raise ConfigError(f"{error}.") from error
    kept = read_answers(run)
    if kept is not None and _loaded(run, int(kept["epoch"]), data, network, config, why):
        train = Streamed(data.train, "cpu", DTYPES[config.dtype], data.box)
        if not same_answers(kept, network, train):
            raise ConfigError(
                f"The network of {config.model.factory} does not give the answers that it gave in the training of "
                f"{run.path}{why}: bring back the code of then, or train a new run."
            )
    if changed:
        complain(f"warning: {why[2:-1]}.")


def _loaded(run: RunDir, epoch: int, data: DataSet, network: nn.Module, config: Config, why: str) -> bool:
    """False if the weights are damaged or of other data, which whoever continues from them says."""
    try:
        _load(run, epoch, data, network, config, why)
    except checkpoint.Damaged:
        return False
    return True


def _load(run: RunDir, epoch: int, data: DataSet, network: nn.Module, config: Config, why: str) -> None:
    try:
        checkpoint.load_weights(run, epoch, data.digest(), network)
    except RuntimeError as error:
        raise ConfigError(
            f"The weights of {run.path} after epoch {epoch} do not fit the network of {config.model.factory}{why}: "
            f"{first_line(error)}."
        ) from error
