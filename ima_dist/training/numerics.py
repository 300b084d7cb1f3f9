"""NaN and infinity: a training stops at the first, and says where."""

import torch
from torch import Tensor, nn

from ima_dist.core import distributed

# A network whose weights are all smaller has not diverged.
_ORDINARY = 100.0


class NumericalError(Exception):
    """Loss or gradient became NaN or infinite. One sentence; the last checkpoint is kept."""


def check_gradient(
    network: nn.Module, scaler: torch.amp.GradScaler, losses: Tensor, samples: Tensor, where: tuple[int, int]
) -> bool:
    """Raise NumericalError if the gradient is not finite, unless loss scaling is still looking for its scale.

    Returns False if the scaler will therefore skip this step.

    All workers call it together after the backward pass, from which they have the same gradient, so all raise in
    the same step. The check of the norm is the only sync that it forces on a GPU while all is well.

    Args:
        network: with its unscaled gradients.
        losses: (K,) of this worker's rows, which may be none. samples: (K,) their global indices.
        where: epoch and step, both from 1.
    """
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    if torch.isfinite(torch.nn.utils.get_total_norm(gradients)):
        return True
    wrong = ~torch.isfinite(losses.detach())
    if scaler.is_enabled() and scaler.get_scale() > 1 and not distributed.all_reduce(wrong.sum()):
        # The scaler looks at single entries: it would take a step of which only the norm is infinite.
        scaler_skips = not all(bool(torch.isfinite(g).all()) for g in gradients)
        if scaler_skips:
            return False
    raise NumericalError(_sentence(network, samples[wrong].tolist(), where, half=scaler.is_enabled()))


def _sentence(network: nn.Module, bad: list[int], where: tuple[int, int], half: bool) -> str:
    """Which samples of which workers have a loss that is not finite, and what to do. Collective."""
    lists = distributed.gather_objects(sorted(set(bad)))
    found = [f"worker {rank}: samples {', '.join(map(str, b[:10]))}" for rank, b in enumerate(lists) if b]
    what, details = ("loss", "; ".join(found)) if found else ("gradient", "every sample's loss is still finite")
    remedy = f"a smaller --optimizer.lr is the usual remedy{', or --autocast none' if half else ''}"
    largest = max(float(p.detach().abs().max()) for p in network.parameters() if p.numel())
    if largest <= _ORDINARY and not half:
        remedy = (
            f"no weight is larger than {largest:.2g}, so the network has not diverged: look in it for a square root, "
            "logarithm, norm or division whose value or derivative is not finite, such as that of a square root at 0"
        )
    return (
        f"The {what} became NaN or infinite in epoch {where[0]}, step {where[1]} ({details}). "
        f"The last good checkpoint is kept; {remedy}."
    )
