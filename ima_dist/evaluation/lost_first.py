"""The test images that an attack breaks first, with the attacked image of each, so that they can be looked at."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from ima_dist.attacks import pgd
from ima_dist.attacks.common import attack_mode, predicted
from ima_dist.config.attacks import STRICTEST_FIRST
from ima_dist.config.errors import ConfigError
from ima_dist.config.schema import Config
from ima_dist.core import noise
from ima_dist.core.distributed import Interrupted
from ima_dist.data.types import Samples
from ima_dist.evaluation.artefacts import shortened
from ima_dist.evaluation.stopping import Stop, stoppable
from ima_dist.results.flips import Flips, read_flips
from ima_dist.rundir.curves import attack_rows
from ima_dist.rundir.directory import RunDir
from ima_dist.rundir.run import Run

# At most so many samples, and values of pixels in all; samples that are attacked at once.
_MOST, _VALUES, _AT_ONCE = 60, 1 << 22, 12


def write_lost_first(
    run: RunDir,
    network: nn.Module,
    test: Samples,
    config: Config,
    class_names: tuple[str, ...] | None,
    should_stop: Callable[[], bool],
) -> None:
    """examples/flips.npz, for images, from the outcomes of the strictest attack. Raises Interrupted, OSError."""
    rows = attack_rows(run.points(), config.epochs)
    attack = next((name for name in STRICTEST_FIRST if name in rows), None)
    if len(test.shape) != 3 or attack is None:
        return
    try:
        flips = read_flips(Run(run), rows[attack])
    except ConfigError:  # outcomes of an earlier version that do not fit together: there is nothing to draw
        return
    chosen = [] if flips is None else first_lost(flips, min(_MOST, _VALUES // max(1, int(np.prod(test.shape)))))
    if flips is None or not chosen:
        return
    try:
        with stoppable(network, should_stop):
            arrays = _attacked(network, test, flips, chosen, config)
    except Stop:
        raise Interrupted("stopped during the evaluation") from None
    names = np.array(class_names or range(int(flips.label.max()) + 1)).astype(str)
    with run.replacing(run.flips_path) as file:
        np.savez_compressed(file, allow_pickle=False, class_names=names, attack=np.array(attack), **arrays)


def first_lost(flips: Flips, most: int) -> list[int]:
    """Places of up to ``most`` samples that are right without noise and lost first, the classes taking turns."""
    able = np.flatnonzero((flips.lost > flips.levels[0]) & np.isfinite(flips.lost))
    order = able[np.lexsort((flips.index[able], flips.lost[able]))]
    turn: dict[int, int] = {}
    ranked = []
    for place in order.tolist():
        label = int(flips.label[place])
        turn[label] = turn.get(label, -1) + 1
        ranked.append((turn[label], flips.lost[place], place))
    return [place for _, _, place in sorted(ranked)[:most]]


def _attacked(
    network: nn.Module, test: Samples, flips: Flips, chosen: list[int], config: Config
) -> dict[str, np.ndarray]:
    """The arrays of ``rundir.run.FLIPS``, but for the names; each image by ``attacks.pgd`` with cross-entropy, from the
    start of pgd100, at the level at which it is lost."""
    clean, noisy, before, after = [], [], [], []
    levels = flips.lost[chosen]
    with torch.no_grad(), attack_mode(network):
        for level in np.unique(levels).tolist():
            places = [place for place, own in zip(chosen, levels, strict=True) if own == level]
            for part in torch.as_tensor(flips.index[places]).split(_AT_ONCE):
                indices = part.to(test.y.device)
                x, y = test.batch(indices)
                start = noise.start(
                    noise.sample_keys(config.seed, 0, noise.Phase.EVALUATE, indices), x, level, config.norm
                )
                settings: dict[str, Any] = {"norm": config.norm, "step_scale": config.eval.step_scale, "box": test.box}
                adv = pgd(network, x, y, level, steps=config.eval.steps, start=start, **settings)
                clean.append(x)
                noisy.append(adv)
                before.append(predicted(network(x)))
                after.append(predicted(network(adv)))
    order = np.argsort(levels, kind="stable")  # as they were attacked
    attacked = np.array(chosen)[order]
    smallest = float(levels.min()) / (1.0 if config.norm == "linf" else float(np.prod(test.shape)) ** 0.5)
    both = shortened(torch.stack([torch.cat(clean), torch.cat(noisy)], 1), smallest)
    return {
        "index": flips.index[attacked],
        "label": flips.label[attacked],
        "noise": flips.lost[attacked],
        "clean": both[:, 0].cpu().numpy(),
        "noisy": both[:, 1].cpu().numpy(),
        "clean_prediction": torch.cat(before).cpu().numpy(),
        "prediction": torch.cat(after).cpu().numpy(),
    }
