"""float32 is float32 unless TF32 is asked for: a convolution and a matrix product compared with float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.gpu.check import Check, Skip
from ima_dist.training.network import use_tf32

# float32 rounds to 6e-8 and TF32 to 5e-4; sums of a few hundred products lose a little more.
_EXACT = 5e-5


def run(check: Check) -> None:
    if not check.on_card:
        raise Skip("needs a card")
    has_tf32 = torch.cuda.get_device_capability(check.device) >= (8, 0)
    try:
        for allowed in (False, True):
            use_tf32(allowed)
            errors = {"convolution": _convolution(check.device), "product": _product(check.device)}
            rounded = allowed and has_tf32
            passed = all((error > _EXACT) == rounded for error in errors.values())
            check.judge("precision", passed, tf32=allowed, card_has_tf32=has_tf32, relative_errors=errors)
    finally:
        use_tf32(False)


def _convolution(device: torch.device) -> float:
    x, weight = torch.randn(8, 64, 32, 32, device=device), torch.randn(64, 64, 3, 3, device=device)
    return _difference(F.conv2d(x, weight), F.conv2d(x.double(), weight.double()))


def _product(device: torch.device) -> float:
    a, b = torch.randn(512, 512, device=device), torch.randn(512, 512, device=device)
    return _difference(a @ b, a.double() @ b.double())


def _difference(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).norm() / exact.norm())
