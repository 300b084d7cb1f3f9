"""The self-test of an evaluation: do its attacks find adversarial samples that are known to exist?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn

from ima_dist.attacks.common import attack_mode
from ima_dist.config.attacks import protocol
from ima_dist.config.errors import first_line
from ima_dist.config.schema import Config
from ima_dist.config.values import with_options
from ima_dist.core import distributed, noise
from ima_dist.core.distributed import Interrupted
from ima_dist.data.types import Samples
from ima_dist.evaluation.attacks import EVALUATION_ATTACKS
from ima_dist.evaluation.autoattack import remarks
from ima_dist.evaluation.binarized import features_of, planted
from ima_dist.evaluation.stopping import Stop, stoppable
from ima_dist.rundir.lease import LeaseLost


def self_test(
    network: nn.Module,
    test: Samples,
    config: Config,
    attacks: Iterable[str],
    *,
    samples: Tensor,
    epoch: int,
    at_once: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[dict[str, Any]]:
    """Plant an adversarial sample for each test sample, and let each attack look for it (``binarized``). Collective.

    The noise level is the largest of ``config.eval.noise``, and the attacks have the evaluation's settings.

    Args:
        samples: ascending indices (M,) of test samples, on the CPU. at_once: the most that are passed together.

    Returns:
        An entry of "self_tests" in summary.json for each attack, on every worker: of the ``samples``, for how many a
        point was planted, and in how many of these the attack, and uniform random noise, found one. An attack that
        failed has "failed", the reason, in its place.

    Raises:
        Interrupted: a worker was asked to stop.
    """
    attacks, level = tuple(attacks), config.eval.noise[-1]
    alone = with_options(config, {"eval.noise": (level,)})
    mine = distributed.share_of_batch(samples)
    count: Counter[tuple[str, str]] = Counter()
    failed: dict[str, str] = {}
    stopped = False
    try:
        parts = mine.split(1) if len(mine) else ()
        with torch.no_grad(), stoppable(network, should_stop), closing(test.batches(parts)) as batches:
            for batch in batches:
                _one(network, batch.x, batch.indices, alone, attacks, test.box, at_once, count, failed)
    except Stop:
        stopped = True
    gathered = distributed.gather_objects((stopped, dict(count), failed))
    if any(gone for gone, _, _ in gathered):
        raise Interrupted("stopped during the self-test")
    total = sum((Counter(part) for _, part, _ in gathered), Counter[tuple[str, str]]())
    reasons = {attack: why for _, _, part in reversed(gathered) for attack, why in part.items()}
    return [
        {
            "attack": attack,
            "epoch": epoch,
            "norm": config.norm,
            "noise": level,
            **protocol(attack, config),
            "samples": len(samples),
            "planted": total["", "planted"],
            "by_chance": total["", "by_chance"],
            **({"failed": reasons[attack]} if attack in reasons else {"found": total[attack, "found"]}),
        }
        for attack in attacks
    ]


def _one(
    network: nn.Module,
    x: Tensor,
    index: Tensor,
    config: Config,
    attacks: tuple[str, ...],
    box: tuple[float, float] | None,
    at_once: int,
    count: Counter[tuple[str, str]],
    failed: dict[str, str],
) -> None:
    """Test the attacks on one sample x (1, ...) with index (1,), and add to ``count`` and ``failed``."""
    level = config.eval.noise[-1]
    with attack_mode(network), features_of(network, x) as features:
        settings: dict[str, Any] = {"norm": config.norm, "box": box, "seed": config.seed, "at_once": at_once}
        found = planted(network, features, x, int(index), level, **settings)
        if found is None:
            return
        binarized, by_chance = found
        count["", "planted"] += 1
        count["", "by_chance"] += by_chance
        inside = torch.zeros(1, dtype=torch.int64, device=x.device)
        keys = noise.sample_keys(config.seed, 0, noise.Phase.EVALUATE, index.to(x.device))
        for attack in attacks:
            try:
                with remarks():  # AutoAttack's, which speak of the network that was made for the test
                    predictions = EVALUATION_ATTACKS[attack](binarized, x, inside, keys, config, box)
            except (Stop, OSError, LeaseLost):
                raise
            except Exception as error:
                failed[attack] = first_line(error)
            else:
                count[attack, "found"] += int(predictions["both", level] != inside)
