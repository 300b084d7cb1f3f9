"""One batch of an evaluation: attacked at all noise levels, with its outcomes."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import pyarrow as pa
from torch import Tensor, nn

from ima_dist.attacks.common import Box
from ima_dist.attacks.counting import Counted, Tally
from ima_dist.config.schema import Config
from ima_dist.core import noise
from ima_dist.evaluation.attacks import EVALUATION_ATTACKS
from ima_dist.evaluation.autoattack import remarks
from ima_dist.evaluation.outcomes import outcomes_table

# Noise level -> what the attack met there: ``attacks.counting.COUNTS``, summed over samples and passes.
Met = dict[float, dict[str, int]]


class Attacked(NamedTuple):
    """outcomes: as ``outcomes_table``. remarks: names of the warnings of ``autoattack.remarks``."""

    outcomes: pa.Table
    met: Met
    remarks: set[str]


def attack_batch(
    attack: str, network: nn.Module, x: Tensor, y: Tensor, indices: Tensor, config: Config, box: Box, epoch: int
) -> Attacked:
    """Attack samples x (B, ...) with labels y (B,) as ``config.eval`` says.

    indices: (B,) int64, of the samples in the test set, which key their noise. epoch: of the network's weights.
    """
    keys = noise.sample_keys(config.seed, 0, noise.Phase.EVALUATE, indices.to(y.device))
    counted = Counted(network, Tally(y.device))
    with remarks() as said:
        found = EVALUATION_ATTACKS[attack](counted, x, y, keys, config, box)
    of_samples = (found.implied, found.logits, found.distance)
    outcomes = outcomes_table(attack, found, indices, y, config, epoch, *of_samples)
    return Attacked(outcomes, counted.counts(), said)


def add_up(met: Iterable[tuple[float, Mapping[str, int]]]) -> Met:
    """The sums over batches of what an attack met, by noise level."""
    total: Met = {}
    for level, counts in met:
        before = total.get(level, {})
        total[level] = {name: count + before.get(name, 0) for name, count in counts.items()}
    return total
