"""Small files that a run keeps for pictures and tables, so that neither needs torch nor the data."""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from ima_dist.attacks import pgd
from ima_dist.attacks.common import attack_mode, predicted
from ima_dist.config.schema import Config
from ima_dist.core import noise
from ima_dist.core.distributed import Interrupted
from ima_dist.data.groups import group_codes
from ima_dist.data.types import DataSet, Samples, Split
from ima_dist.evaluation.stopping import Stop, stoppable
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.inputs import Inputs, SplitInputs

# Half precision is enough for pictures if it errs by less than this share of what must be seen.
_VISIBLE = 1 / 50
# Samples whose scores are computed at once; samples per class among the extremes; classes among the noisy images.
_AT_ONCE, _EACH, _CLASSES = 256, 6, 5
# Training samples whose range data.json states: the set may be larger than the memory.
_LOOKED_AT = 512
_OF_EXTREMES = ("index", "label", "margin", "largest")


def describe(data: DataSet) -> Inputs:
    """What data.json says of a data set."""
    chosen = torch.linspace(0, len(data.train) - 1, min(len(data.train), _LOOKED_AT)).long()
    as_bytes = data.train.dtype == torch.uint8
    lows, highs = zip(*(torch.aminmax(x) for x in data.train.pieces(chosen)), strict=True)
    low, high = (float(value) / (255 if as_bytes else 1) for value in (min(lows), max(highs)))
    splits = {"train": data.train, "val": data.val, "test": data.test}
    return Inputs(
        shape=data.train.shape,
        dtype="uint8" if as_bytes else "float",
        box=data.box,
        low=low,
        high=high,
        classes=data.num_classes,
        class_names=data.class_names,
        splits={
            name: SplitInputs(samples=len(part), digest=part.digest(), groups=_group_count(part))
            for name, part in splits.items()
        },
        digest=data.digest(),
        split_level=data.split_level,
    )


def _group_count(part: Split) -> int | None:
    codes = group_codes(part)
    return None if codes is None else len(np.unique(codes))


def write_names(run: RunDir, data: DataSet) -> None:
    """samples.parquet: name, label and group of each sample by split and index, for splits with names or groups."""
    splits = {"training": data.train, "validation": data.val, "test": data.test}
    pieces = [
        pa.table(
            {
                "split": pa.repeat(name, len(split)),
                "index": np.arange(len(split)),
                "name": pa.array(split.names or [None] * len(split), pa.string()),
                "label": split.y.numpy(),
                "group": pa.array(split.groups or [None] * len(split), pa.string()),
            }
        )
        for name, split in splits.items()
        if split.names is not None or split.groups is not None
    ]
    if pieces:
        run.write_parquet(run.samples_path, pa.concat_tables(pieces))


def write_boundary(run: RunDir, network: nn.Module, train: Samples, points: Tensor) -> None:
    """examples/boundary.npz, for samples in the plane, with the training samples at the indices ``points``."""
    if train.shape == (2,):
        _write(run, "boundary", boundary_grid(network, *train.batch(torch.arange(len(train))), points))


def write_noisy_images(
    run: RunDir,
    network: nn.Module,
    test: Samples,
    samples: Tensor,
    config: Config,
    data: DataSet,
    should_stop: Callable[[], bool],
) -> None:
    """examples/noisy.npz, for images. Raises Interrupted."""
    if len(test.shape) != 3:
        return
    try:
        with stoppable(network, should_stop):
            arrays = noisy_images(network, test, samples, config, data.class_names)
    except Stop:
        raise Interrupted("stopped during the evaluation") from None
    _write(run, "noisy", arrays)


def write_extremes(run: RunDir, train: Samples, data: DataSet) -> None:
    """examples/extremes.npz, for methods with margins."""
    arrays = run.over_margins(lambda epoch, samples, pieces: extremes(train, pieces, data.class_names))
    if arrays is not None:
        _write(run, "extremes", arrays)


def _write(run: RunDir, name: str, arrays: dict[str, Any]) -> None:
    with run.replacing(run.examples_dir / f"{name}.npz") as file:
        np.savez_compressed(file, **arrays)


# ---- their contents ------------------------------------------------------------------------------------


def boundary_grid(
    network: nn.Module, x: Tensor, y: Tensor, points: Tensor, *, side: int = 300
) -> dict[str, np.ndarray]:
    """Probability of class 1 on a grid around the points x (N, 2) with labels y (N,).

    Returns arrays grid_x (side,), grid_y (side,), probability (side, side) indexed [y, x], and the samples at the
    indices ``points`` (K,) as points (K, 2) and labels (K,).
    """
    low, high = x.amin(0), x.amax(0)
    pad = 0.15 * (high - low)
    axes = [torch.linspace(float(a), float(b), side) for a, b in zip(low - pad, high + pad, strict=True)]
    grid_y, grid_x = torch.meshgrid(axes[1], axes[0], indexing="ij")
    grid = torch.stack([grid_x, grid_y], -1).view(-1, 2).to(x.device, x.dtype)
    with torch.no_grad(), attack_mode(network):
        probability = torch.cat([network(part).softmax(1)[:, 1] for part in grid.split(1 << 14)])
    return {
        "grid_x": axes[0].numpy(),
        "grid_y": axes[1].numpy(),
        "probability": probability.view(side, side).cpu().numpy(),
        "points": x[points].cpu().numpy(),
        "labels": y[points].cpu().numpy(),
    }


def extremes(train: Samples, margins: Iterable[pa.Table], class_names: tuple[str, ...] | None) -> dict[str, np.ndarray]:
    """Up to six correctly classified samples per class with the smallest margins, and as many with the largest.

    margins: pieces of a table as in the margin shards, of which one is in memory at a time. Returns S rows, by class
    and then by margin: index (S,), label (S,), margin (S,), largest (S,) bool, sample (S, *shape) float32, or float16
    for images that it shows well enough; class_names (K,) of text.
    Among samples with the same margin (ε_max, say) those with the smallest index are taken.
    """
    ends, sizes = _ends(margins)
    rows = []
    for label, size in sorted(sizes.items()):
        few = min(_EACH, size // 2)
        for largest, found in enumerate(ends):
            own = np.flatnonzero(found["label"] == label)[:few]
            row = {name: column[own] for name, column in found.items()}
            rows.append({**row, "largest": np.full(len(own), largest)})
    columns = {name: np.concatenate([row[name] for row in rows]) if rows else np.zeros(0) for name in _OF_EXTREMES}
    x, _ = train.batch(torch.from_numpy(columns["index"].astype(np.int64)))
    names = class_names or range(int(train.y.max()) + 1)
    return {
        **columns,
        **{name: columns[name].astype(np.int64) for name in ("index", "label")},
        "largest": columns["largest"].astype(bool),
        "sample": (
            shortened(x, float(x.max() - x.min()) / 5 if len(x) else 0.0) if len(train.shape) == 3 else x.float()
        )
        .cpu()
        .numpy(),
        "class_names": np.array(names).astype(str),
    }


def _ends(margins: Iterable[pa.Table]) -> tuple[tuple[dict[str, np.ndarray], ...], Counter[int]]:
    """The correctly classified samples with the smallest margins of each class, and those with the largest.

    Both as columns index, label and margin, sorted by class and then by margin from that end; and the number of
    correctly classified samples by class.
    """
    kept: list[dict[str, np.ndarray]] = [{}, {}]
    sizes: Counter[int] = Counter()
    for piece in margins:
        right = piece.filter(piece["correct"])
        new = {name: right[name].to_numpy() for name in ("index", "label", "margin")}
        sizes.update(dict(zip(*(part.tolist() for part in np.unique(new["label"], return_counts=True)), strict=True)))
        for end, sign in ((0, 1), (1, -1)):
            both = {name: np.concatenate([kept[end][name], new[name]]) if kept[end] else new[name] for name in new}
            order = np.lexsort((both["index"], sign * both["margin"], both["label"]))
            both = {name: column[order] for name, column in both.items()}
            first = np.searchsorted(both["label"], both["label"])  # where its class begins
            few = np.arange(len(first)) - first < _EACH
            kept[end] = {name: column[few] for name, column in both.items()}
    return tuple(kept), sizes


def noisy_images(
    network: nn.Module, test: Samples, samples: Tensor, config: Config, class_names: tuple[str, ...] | None
) -> dict[str, np.ndarray]:
    """The first attacked sample of each of up to five classes, and its noisy images by ``attacks.pgd``.

    At each noise level the attack takes ``eval.steps`` steps of cross-entropy from the same start as pgd100.

    Args:
        test: samples of shape (C, H, W). samples: ascending indices of those that the evaluation attacks.
        class_names: numbers are used if the data have none.

    Returns:
        S samples in ascending order of their class and L noise levels: index (S,), label (S,), clean
        (S, C, H, W), clean_prediction (S,), noise (L,), noisy (S, L, C, H, W), prediction (S, L); class_names (K,)
        of text. clean and noisy are float16 where that shows the smallest noise, else float32.
    """
    _, first = np.unique(test.y.cpu().numpy()[samples], return_index=True)
    indices = samples[first[:_CLASSES]].to(test.y.device)
    x, y = test.batch(indices)
    keys = noise.sample_keys(config.seed, 0, noise.Phase.EVALUATE, indices)
    images, predictions = [], []
    with torch.no_grad(), attack_mode(network):
        logits = network(x)
        for eps in config.eval.noise:
            steps, xi = config.eval.steps if eps > 0 else 0, noise.start(keys, x, eps, config.norm)
            settings: dict[str, Any] = {"norm": config.norm, "step_scale": config.eval.step_scale, "box": test.box}
            adv = pgd(network, x, y, eps, steps=steps, start=xi, **settings)
            images.append(adv)
            predictions.append(predicted(network(adv)))
    smallest = min((eps for eps in config.eval.noise if eps > 0), default=0.0)
    if config.norm == "l2":
        smallest /= math.sqrt(math.prod(test.shape))  # of each value, where all of them change
    both = shortened(torch.cat([x[:, None], torch.stack(images, 1)], 1), smallest)
    return {
        "index": indices.cpu().numpy(),
        "label": y.cpu().numpy(),
        "clean": both[:, 0].cpu().numpy(),
        "clean_prediction": predicted(logits).cpu().numpy(),
        "noise": np.array(config.eval.noise),
        "noisy": both[:, 1:].cpu().numpy(),
        "prediction": torch.stack(predictions, 1).cpu().numpy(),
        "class_names": np.array(class_names or range(logits.shape[1])).astype(str),
    }


def shortened(x: Tensor, smallest: float) -> Tensor:
    """x in half precision if differences of size ``smallest`` survive that, else in float32."""
    half = x.half()
    error = (half.to(x.dtype) - x).abs()
    return half if bool((error <= _VISIBLE * smallest).all()) else x.float()


def scores_table(network: nn.Module, splits: dict[str, Samples], at_once: int = _AT_ONCE) -> pa.Table:
    """One row per sample: split, index in it, label, and the probability of class 1."""
    pieces = []
    with torch.no_grad(), attack_mode(network):
        for name, data in splits.items():
            if not len(data):  # some networks cannot take an empty batch
                continue
            parts = torch.arange(len(data)).split(min(at_once, _AT_ONCE))
            found = [network(x).softmax(1)[:, 1].double() for _, x, _ in data.batches(parts)]
            probability = torch.cat(found)
            pieces.append(
                pa.table(
                    {
                        "split": pa.repeat(name, len(data)),
                        "index": np.arange(len(data)),
                        "label": data.y.cpu().numpy(),
                        "probability": probability.cpu().numpy(),
                    }
                )
            )
    return pa.concat_tables(pieces)
