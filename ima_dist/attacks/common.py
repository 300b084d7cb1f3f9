"""Shared by all attacks: the network's mode while it is attacked, losses, and the gradient of the input."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Network = Callable[[Tensor], Tensor]
Loss = str | Callable[[Tensor, Tensor], Tensor]
Box = tuple[float, float] | None
# In place of an infinite entry of a gradient. Its square fits into float32, so that the L2 norm stays finite.
_LARGE = 1e15


@contextmanager
def evaluation_mode(model: Network) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards every module is in its own mode again.

    Each module's own flag is restored, because a network may keep parts of itself in evaluation mode.
    """
    modes = [m for m in model.modules() if m.training] if isinstance(model, nn.Module) else []
    try:
        for m in modes:
            m.training = False
        yield
    finally:
        for m in modes:
            m.training = True


@contextmanager
def attack_mode(model: Network) -> Iterator[None]:
    """Evaluation mode without parameter gradients inside the block; everything is restored afterwards."""
    trainable = [p for p in model.parameters() if p.requires_grad] if isinstance(model, nn.Module) else []
    with evaluation_mode(model):
        try:
            for p in trainable:
                p.requires_grad_(False)
            yield
        finally:
            for p in trainable:
                p.requires_grad_(True)


def margin_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Largest other logit minus the true one, (B, C), (B,) -> (B,): positive where misclassified."""
    true = logits.gather(1, y[:, None])
    others = logits.scatter(1, y[:, None], float("-inf"))
    return others.amax(1) - true[:, 0]


def soft_margin_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Log-sum-exp of the other logits minus the true one, (B, C), (B,) -> (B,) (SLM of Ding et al. 2020).

    At least ``margin_loss``, and equal to it for two classes.
    """
    true = logits.gather(1, y[:, None])
    others = logits.scatter(1, y[:, None], float("-inf"))
    return others.logsumexp(1) - true[:, 0]


def towards(rival: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Logit of the class ``rival`` (B,) minus the true one."""

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        return logits.gather(1, rival[:, None])[:, 0] - logits.gather(1, y[:, None])[:, 0]

    return loss


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each sample, (B, C), (B,) -> (B,)."""
    return F.cross_entropy(logits, y, reduction="none")


def resolve_loss(loss: Loss) -> Callable[[Tensor, Tensor], Tensor]:
    """``"ce"``, ``"margin"`` or a function (logits, y) -> (B,). Raises ValueError for another name."""
    if callable(loss):
        return loss
    try:
        return {"ce": cross_entropy, "margin": margin_loss}[loss]
    except KeyError:
        raise ValueError(f"loss must be 'ce', 'margin' or a function, not {loss!r}") from None


def soft_margin_gradient(logits: Tensor, y: Tensor) -> Tensor:
    """Gradient of each sample's ``soft_margin_loss`` with respect to its logits, (B, C), (B,) -> (B, C)."""
    true = y[:, None]
    return logits.scatter(1, true, float("-inf")).softmax(1).scatter_(1, true, -1.0)


def logits_and_gradient(
    model: Network, x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Logits (B, C) at x and the gradient (B, ...) of the summed loss with respect to x, made ``finite``.

    See ``logits_and_raw_gradient``.
    """
    logits, gradient = logits_and_raw_gradient(model, x, y, loss)
    return logits, finite(gradient)


def logits_and_raw_gradient(
    model: Network, x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Logits (B, C) at x and the gradient (B, ...) of the summed loss with respect to x.

    For ``cross_entropy`` the gradient is that of ``soft_margin_loss``, which is known without autograd: that of
    cross-entropy divided by each sample's probability of being in another class. Cross-entropy is
    log(1 + exp(soft margin loss)), so both losses have gradients of the same direction, and attacks use only the
    direction. In float32 the gradient of cross-entropy itself loses the true class's part where the other classes
    together have a probability below 6e-8, and vanishes below 1e-45.
    """
    # ``counting.Counted`` would have to hook into the gradient, which takes longer than to hand it over.
    answer = getattr(model, "without_hook", model)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = answer(x)
        if loss is cross_entropy or loss is soft_margin_loss:
            (gradient,) = torch.autograd.grad(logits, x, soft_margin_gradient(logits.detach(), y))
        else:
            (gradient,) = torch.autograd.grad(loss(logits, y).sum(), x)
    if answer is not model:
        model.tally.add_gradient(gradient, copy=False)  # type: ignore[attr-defined]
    return logits.detach(), gradient


def finite(gradient: Tensor) -> Tensor:
    """The gradient with 0 for NaN, and a large number of the same sign for infinity.

    One NaN would otherwise spread over its sample by way of the norm, and make all further iterates NaN.
    """
    return gradient.nan_to_num(0.0, _LARGE, -_LARGE)


class _FiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return finite(gradient)


def with_finite_gradient(model: Network) -> Network:
    """The network for attacks that compute its gradient themselves: the gradient is made ``finite``."""
    return lambda x: model(_FiniteGradient.apply(x))


def predicted(logits: Tensor) -> Tensor:
    """The class with the largest logit, (B, C) -> (B,) int64; -1 where that logit is NaN or infinite.

    The arg max alone would count a sample whose logits are all NaN as one of class 0.
    """
    top, label = logits.max(1)
    return label.masked_fill_(top - top != 0, -1)


def answered(logits: Tensor) -> Tensor:
    """``predicted`` as a floating-point number, (..., C) -> (...): NaN in place of -1, in fewer operations."""
    top, label = logits.max(-1)
    # 0 · NaN and 0 · ∞ are NaN. Half precision does not have all labels.
    return torch.add(label, top if top.itemsize > 2 else top.float(), alpha=0)


def misclassified(logits: Tensor, y: Tensor) -> Tensor:
    """(..., C), (...) -> (...) bool; logits that are NaN or infinite are right for no class."""
    return answered(logits) != y


def check_batch(x: Tensor, y: Tensor, eps: Tensor | float, norm: str, start: Tensor | None = None) -> None:
    """Raise ValueError for shapes or a norm that no attack can work with. Reads no values, so it forces no sync."""
    if norm not in ("linf", "l2"):
        raise ValueError(f"norm must be 'linf' or 'l2', not {norm!r}")
    if y.shape != x.shape[:1]:
        raise ValueError(f"y must have shape {tuple(x.shape[:1])} to go with x, not {tuple(y.shape)}")
    if isinstance(eps, Tensor) and eps.ndim > 0 and eps.shape != y.shape:
        raise ValueError(f"eps must be a number or have shape {tuple(y.shape)}, not {tuple(eps.shape)}")
    if start is not None and start.shape != x.shape:
        raise ValueError(f"start must have shape {tuple(x.shape)}, not {tuple(start.shape)}")
