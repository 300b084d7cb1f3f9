"""``ima_dist.measure``: attack any network in this process, and keep nothing."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import EllipsisType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor, nn

from ima_dist.attacks.common import Box, attack_mode
from ima_dist.attacks.memory import most_at_once
from ima_dist.classifier.loading import load
from ima_dist.classifier.network import Classifier
from ima_dist.classifier.robustness import Robustness
from ima_dist.config.attacks import SMOOTHING
from ima_dist.config.errors import ConfigError, first_line
from ima_dist.config.forms import is_reference
from ima_dist.config.presets import OWN, PRESETS, external_config
from ima_dist.config.schema import Config
from ima_dist.data.batch_sizes import evaluation_batch_size
from ima_dist.data.load import of_arrays
from ima_dist.data.types import UINT8_BOX, DataSet, Resident
from ima_dist.evaluation.batch import add_up, attack_batch
from ima_dist.evaluation.outcomes import points_of
from ima_dist.results.attack_doubts import points_doubts
from ima_dist.results.doubts import door_doubts, failure_doubts, remark_doubts
from ima_dist.rundir.curves import Point
from ima_dist.rundir.run import Run
from ima_dist.training.door import check_evaluation
from ima_dist.training.network import DTYPES, exact_float32, few_threads

_PRECISIONS = {dtype: name for name, dtype in DTYPES.items()}


def measure(
    network_or_run: nn.Module | Run | str | Path,
    x: Tensor | np.ndarray,
    y: Tensor | np.ndarray,
    *,
    noise: Sequence[float | str],
    attacks: str | Sequence[str] = ("pgd100", "worst"),
    norm: str | None = None,
    box: Box | EllipsisType = ...,
    steps: int = 100,
    step_scale: float = 4.0,
    spsa_samples: int = 2018,
    seed: int | None = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    allow: Sequence[str] = (),
    progress: bool = True,
) -> Robustness:
    """The accuracy of a network on samples under attack, measured in this process.

    The network is used in evaluation mode and left as it was. The numbers are those of ``python -m ima_dist.evaluate``
    for the same samples in the same order, settings and seed. As there, a few samples are tried first, and an attack
    that fails leaves the others alone.

    Args:
        network_or_run: a network from samples (B, *shape) to logits (B, classes); or a run or an export, as
            ``ima_dist.load`` takes them.
        x: samples (N, *shape), uint8 (which are divided by 255) or floating point. y: labels (N,), classes from 0.
        noise: radii, in units of x, such as ``[0, 4 / 255, "8/255"]``.
        attacks: a name or several, as docs/evaluation.md explains them.
        norm: "linf" or "l2"; by default that of the run, else "linf".
        box: (low, high), the range that samples must stay in, or None if there is none. It may be left out for uint8
            samples, a ``Classifier`` and a run.
        steps, step_scale, spsa_samples: as ``--eval.steps`` and so on.
        seed: of the noise; by default that of the run, else 0.
        batch_size: samples attacked at once; by default as many as suit the device.
        device: where to compute; by default where the network is, for a run the CPU.
        allow: as ``--allow``: "random", "coupled", "not-finite".
        progress: show a bar, in a terminal or a notebook.

    Raises:
        ConfigError: samples, labels or settings that do not fit, or a network that cannot be attacked.
    """
    # Long: it is mostly the explanation of its arguments.
    given = _given(network_or_run, device)
    bounds = _bounds(given.network, x, box)
    names = (attacks,) if isinstance(attacks, str) else attacks
    if SMOOTHING in names:
        raise ConfigError(f"{SMOOTHING} certifies and does not attack: use python -m ima_dist.evaluate.")
    settings = {"attacks": names, "noise": _levels(noise), "steps": steps, "step_scale": step_scale}
    factory = f"{type(given.network).__module__}:{type(given.network).__qualname__}"
    options = {
        "norm": norm or given.norm,
        "seed": given.seed if seed is None else seed,
        "dtype": _precision(given.network),
        "allow": tuple(allow),
        "data.source": "arrays:given",
        "model.factory": factory if _is_reference(factory) else "network:given",
        **{f"eval.{name}": value for name, value in settings.items()},
        "eval.spsa_samples": spsa_samples,
    }
    config = external_config(given.preset, options)
    place = next((t.device for t in (*given.network.parameters(), *given.network.buffers())), torch.device("cpu"))
    data = of_arrays(x, np.asarray(y) if isinstance(y, list | tuple) else y, _classes(given, x, place), bounds)
    with exact_float32(), few_threads(data):
        findings = check_evaluation(given.network, data, config)
        points, outcomes, doubts = _attacked(given.network, data, config, place, batch_size, progress)
    doubts += door_doubts(findings, [config.eps_max, *config.eval.noise], config.norm)
    return Robustness(tuple(points), outcomes, doubts, len(data.test))


class _Given(NamedTuple):
    """A network, and what is known of it."""

    network: nn.Module
    preset: str = OWN
    norm: str = "linf"
    seed: int = 0


def _given(network: nn.Module | Run | str | Path, device: torch.device | str | None) -> _Given:
    if isinstance(network, Run | str | Path):
        network = load(network.dir.path if isinstance(network, Run) else network, device=device)
    if not isinstance(network, nn.Module):
        raise ConfigError(f"Give a torch.nn.Module, a run or an export, not {type(network).__name__}.")
    network = network if device is None else network.to(device)
    if not isinstance(network, Classifier):
        return _Given(network)
    # Cards of earlier exports have neither preset nor seed.
    preset = network.card.get("preset")
    return _Given(network, preset if preset in PRESETS else OWN, network.card["norm"], network.card.get("seed", 0))


def _bounds(network: nn.Module, x: Tensor | np.ndarray, box: Box | EllipsisType) -> Box:
    whole = x.dtype in (torch.uint8, np.uint8)
    if isinstance(network, Classifier):
        if whole and network.box != UINT8_BOX:
            raise ConfigError("This network was not trained on pixels from 0 to 1: give floating-point samples.")
        if tuple(x.shape[1:]) != network.shape:
            raise ConfigError(f"This network takes samples of shape {network.shape}, not {tuple(x.shape[1:])}.")
        return network.box if isinstance(box, EllipsisType) else box
    if not isinstance(box, EllipsisType):
        return box
    if not whole:
        raise ConfigError("Give box, the range of valid samples such as (0, 1), or box=None if there is none.")
    return UINT8_BOX


def _levels(noise: Sequence[float | str] | float) -> tuple[float | str, ...]:
    return (noise,) if isinstance(noise, int | float | str) else tuple(noise)


def _precision(network: nn.Module) -> str:
    dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
    if dtype not in _PRECISIONS:
        name = str(dtype).removeprefix("torch.")
        raise ConfigError(f"The network is in {name}, and attacks need float32 or float64: convert it (.float()).")
    return _PRECISIONS[dtype]


def _is_reference(text: str) -> bool:
    try:
        return is_reference(text) == text
    except ValueError:
        return False


def _classes(given: _Given, x: Any, place: torch.device) -> int:
    """The number of logits."""
    if isinstance(given.network, Classifier):
        return len(given.network.class_names)
    few = torch.as_tensor(x[:2]).to(place, DTYPES[_precision(given.network)])
    try:
        with torch.no_grad(), attack_mode(given.network):
            found = given.network(few / 255 if x.dtype in (torch.uint8, np.uint8) else few)
    except Exception as error:
        shape = tuple(x.shape[1:])
        raise ConfigError(f"The network does not take samples of shape {shape}: {first_line(error)}.") from error
    if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != len(few):
        what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise ConfigError(f"The network returns {what} for {len(few)} samples, not logits ({len(few)}, classes).")
    return found.shape[1]


def _attacked(
    network: nn.Module, data: DataSet, config: Config, place: torch.device, batch_size: int | None, progress: bool
) -> tuple[list[Point], pd.DataFrame, tuple[str, ...]]:
    """The points, the outcomes, and doubts from what the attacks met."""
    samples = Resident(data.test, place, DTYPES[config.dtype], data.box)
    indices = torch.arange(len(samples))
    at_once = most_at_once(network, *samples.batch(indices[:8]))
    size = min(batch_size or evaluation_batch_size(config.batch_size, samples), at_once)
    points: list[Point] = []
    tables: list[pa.Table] = []
    failed: dict[str, str] = {}
    remarks: set[str] = set()
    with _bar(len(samples) * len(config.eval.attacks), progress) as bar:
        for attack in config.eval.attacks:
            bar.set_description(attack)
            pieces: list[pa.Table] = []
            met: list[tuple[float, dict[str, int]]] = []
            try:
                for part in indices.split(size):
                    x, y = samples.batch(part)
                    found = attack_batch(attack, network, x, y, part, config, data.box, 1)
                    pieces.append(found.outcomes)
                    met += found.met.items()
                    remarks |= found.remarks
                    bar.update(len(part))
            except Exception as error:
                failed[attack] = first_line(error)
                continue
            tables.append(pa.concat_tables(pieces))
            points += points_of(tables[-1], config, len(samples), add_up(met))
    if not tables:
        raise ConfigError(" ".join(failure_doubts(failed)))
    # An attack may have columns that others lack.
    outcomes = pa.concat_tables(tables, promote_options="default").drop_columns(["epoch"]).to_pandas()
    doubts = (*points_doubts(points), *failure_doubts(failed), *remark_doubts(sorted(remarks)))
    return points, outcomes, doubts


def _bar(total: int, progress: bool) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tqdm speaks of ipywidgets, and does without them
        from tqdm.auto import tqdm
    # tqdm takes a notebook for a log, in which it would show nothing.
    hidden = not progress or (None if "ipykernel" not in sys.modules else False)
    return tqdm(total=total, unit="sample", disable=hidden, leave=False)
