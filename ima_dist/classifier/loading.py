"""``ima_dist.load``: the classifier of a run, or of an export of one."""

from pathlib import Path

import torch
from torch import nn

from ima_dist.classifier.exported import Exported, code_of, same_as_exported
from ima_dist.classifier.network import Classifier
from ima_dist.classifier.weights import load_weights
from ima_dist.config.errors import ConfigError
from ima_dist.config.schema import Config
from ima_dist.data.load import load as load_data
from ima_dist.data.pipeline import Streamed
from ima_dist.data.types import Samples
from ima_dist.evaluation.artefacts import describe
from ima_dist.results.card import make_card
from ima_dist.results.tradeoff import chosen_epoch
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.inputs import Inputs, read_inputs
from ima_dist.rundir.run import Run
from ima_dist.training import checkpoint
from ima_dist.training.answers import read_answers, same_answers, same_logits
from ima_dist.training.network import DTYPES, build_network


def load(
    run_or_export: str | Path,
    epoch: int | None = None,
    select: str | None = None,
    device: torch.device | str | None = None,
) -> Classifier:
    """The classifier of a run directory, or of a directory that ``ima_dist.export`` has written.

    Weights are read from safetensors, and their checksums compared; nothing is unpickled. A network of one's own is
    built by its function, which must be importable, and must still give the answers that it gave in training.

    Args:
        run_or_export: the directory.
        epoch: of a run, the weights after so many epochs; by default the last.
        select: of a run, a rule in place of an epoch: ``"val_accuracy>=0.90"``, the last epoch with that accuracy, or
            ``"best-robust"``, the highest accuracy under attack on validation samples.
        device: where to compute; by default the CPU.

    Raises:
        ConfigError: the directory is neither, there is no such epoch, or a file is missing, damaged or does not fit.
    """
    path = Path(run_or_export).absolute()
    where = torch.device("cpu" if device is None else device)
    if (path / "config.yaml").is_file():
        found = _of_run(Run.open(path), epoch, select)
    elif (path / "config.json").is_file():
        if epoch is not None or select is not None:
            raise ConfigError(f"{path} is an export, which holds one network: leave out the epoch and the rule.")
        found = _of_export(path)
    else:
        what = "is not a directory" if path.is_file() else "does not exist" if not path.exists() else "is neither"
        raise ConfigError(f"{path} {what}: give the directory of a run, or of an export.")
    return found.to(where)


def _of_run(run: Run, epoch: int | None, select: str | None) -> Classifier:
    config, chosen = run.config, chosen_epoch(run, epoch, select)
    inputs, train = read_inputs(run.dir.data_path), None
    if inputs is None:
        # A run of an earlier version does not say what its network takes.
        data = load_data(config.data, config.seed)
        inputs, train = describe(data), Streamed(data.train, "cpu", DTYPES[config.dtype], data.box)
    network = _built(config, inputs, run.dir.code_dir)
    _check_answers(run.dir, config, network, inputs, train)
    _load_epoch(run.dir, chosen, network, inputs)
    return Classifier(
        network, inputs, make_card(run, chosen, inputs), source=config.data.source, resize=config.data.resize
    )


def _of_export(path: Path) -> Classifier:
    exported = Exported.read(path)
    config = exported.config
    network = _built(config, exported.inputs, code_of(path))
    load_weights(network, path / "model.safetensors", exported.files.get("model.safetensors"))
    if not same_as_exported(exported, network):
        raise ConfigError(
            f"The network of {config.model.factory} does not give the answers that it gave when {path} was written: "
            f"its code has changed{kept_copy(code_of(path))}."
        )
    return Classifier(
        network, exported.inputs, exported.card(path), source=config.data.source, resize=config.data.resize
    )


def _built(config: Config, inputs: Inputs, code: Path) -> nn.Module:
    try:
        return build_network(config, inputs.classes, inputs.shape, trained=True)
    except ConfigError as error:
        raise ConfigError(f"{str(error).rstrip('.')}{kept_copy(code)}.") from error


def kept_copy(code: Path) -> str:
    """The end of a sentence on a module that is missing or has changed: where its copy is, if ``code`` has one."""
    return f"; {code} has a copy of it, which PYTHONPATH={code} lets Python find" if code.is_dir() else ""


def _load_epoch(run: RunDir, epoch: int, network: nn.Module, inputs: Inputs) -> None:
    try:
        file = checkpoint.weights_file(run, epoch, inputs.digest)
    except checkpoint.Damaged as error:
        raise ConfigError(f"{error}.") from error
    load_weights(network, file, checkpoint.digest_of(file))


def _check_answers(run: RunDir, config: Config, network: nn.Module, inputs: Inputs, train: Samples | None) -> None:
    """Raise ConfigError if the network, as its code is now, answers otherwise than it did in training."""
    kept = read_answers(run)
    if kept is None:
        return
    try:
        _load_epoch(run, int(kept["epoch"]), network, inputs)
    except ConfigError:
        return  # whoever needs these weights is told
    if "x" in kept:
        x = torch.from_numpy(kept["x"])
        x = x.to(DTYPES[config.dtype]) / 255 if x.dtype == torch.uint8 else x
        same = same_logits(kept["logits"], network, x)
    else:
        same = train is None or same_answers(kept, network, train)
    if not same:
        raise ConfigError(
            f"The network of {config.model.factory} does not give the answers that it gave in the training of "
            f"{run.path}: its code has changed{kept_copy(run.code_dir)}."
        )
