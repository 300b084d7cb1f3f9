"""A network that was trained elsewhere, as the network of a run, so that it is evaluated and read like one."""

import torch
from torch import nn

from ima_dist.config.schema import Config
from ima_dist.data.choosing import to_attack
from ima_dist.data.pipeline import Streamed
from ima_dist.data.types import DataSet
from ima_dist.evaluation import artefacts
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.inputs import write_inputs
from ima_dist.training import checkpoint
from ima_dist.training.answers import write_answers
from ima_dist.training.counters import Counters
from ima_dist.training.network import DTYPES, scaler
from ima_dist.training.state import Position, State

_POINTS = 4000  # training samples in the picture of the boundary


def bring_in(run: RunDir, config: Config, data: DataSet, network: nn.Module) -> None:
    """Make ``network`` that of the run after its only epoch, in which nothing was trained.

    It may be repeated after an interruption; history.parquet is written last. Raises OSError, LeaseLost.
    """
    cpu = torch.device("cpu")
    train = Streamed(data.train, cpu, DTYPES[config.dtype], data.box)
    write_inputs(run, artefacts.describe(data))
    run.for_display(lambda: artefacts.write_names(run, data))
    if train.shape == (2,):
        points = to_attack(data.train, _POINTS, config.eval.order)
        run.for_display(lambda: artefacts.write_boundary(run, network, train, points))
    # A checkpoint has an optimiser; this one is never used.
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    state = State(network, optimizer, scaler("none", cpu), Counters(cpu), data.train.y, position=Position(1))
    checkpoint.save(run, checkpoint.Identity(config.fingerprint(), data.digest()), state)
    run.for_display(lambda: write_answers(run, network, train, 1))
    run.write_history([{"epoch": 1, "train_loss": None, "train_accuracy": None, "val_accuracy": None}])
