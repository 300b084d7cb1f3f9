"""Random numbers that depend on their purpose, not on what was drawn before.

A sample's noise is a hash of (seed, epoch, phase, global sample index), computed on the sample's device.
So it is the same whichever worker handles the sample, in whatever batch, and after any interruption.
The hash is the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), used as a counter-based
generator as in Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

import enum
import math

import torch
from torch import Tensor

from ima_dist.core import norms


class Phase(enum.IntEnum):
    """Purpose of the noise; no two phases share random numbers."""

    TRAIN = 1
    MARGIN = 2
    EVALUATE = 3
    ORDER = 4
    AUGMENT = 5
    SMOOTH = 6
    SELF_TEST = 7


_BITS = (1 << 64) - 1


# Numbers that are drawn together: on a CPU as many as its cache holds, on a card as many as it has memory for.
_ON_CPU, _ON_CARD = 1 << 18, 1 << 24


def _signed(value: int) -> int:
    """The int64 with the lowest 64 bits of a number: torch has no uint64 arithmetic."""
    value &= _BITS
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64, a new tensor."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def mix64(x: Tensor) -> Tensor:
    """Bijective hash of int64 tensors of any shape (the SplitMix64 finaliser)."""
    # In place where nothing else is: of large images these are the largest tensors of a step.
    x = _shift(x, 30).bitwise_xor_(x).mul_(_MIX_1)
    x = _shift(x, 27).bitwise_xor_(x).mul_(_MIX_2)
    return _shift(x, 31).bitwise_xor_(x)


def _mix64_of_number(z: int) -> int:
    """``mix64`` of one number. On a card the hash of a scalar takes as many kernels as that of a whole batch."""
    z &= _BITS
    z = (z ^ (z >> 30)) * _MIX_1 & _BITS
    z = (z ^ (z >> 27)) * _MIX_2 & _BITS
    return _signed(z ^ (z >> 31))


def sample_keys(seed: int, epoch: int, phase: int, indices: Tensor) -> Tensor:
    """One 64-bit key (B,) for every global sample index (B,)."""
    key = 0
    for part in (seed, epoch, int(phase)):
        key = _mix64_of_number(key + part + _GOLDEN)
    return mix64(mix64(indices + _GOLDEN) + key)


def derived(keys: Tensor, number: int) -> Tensor:
    """Keys (B,) of another stream for each of ``keys`` (B,), such as a restart's or an iteration's."""
    return mix64(mix64(keys) + _signed(number * _GOLDEN))


def signs(keys: Tensor, shape: tuple[int, ...], first: int, dtype: torch.dtype) -> Tensor:
    """Random ±1, (B, *shape): vectors number ``first`` to ``first + shape[0] - 1`` of each key's stream.

    A vector does not depend on how many are asked for at once.
    """
    count, size = shape[0], math.prod(shape[1:])
    words = -(-size // 64)
    counter = torch.arange(first * words + 1, (first + count) * words + 1, device=keys.device) * _GOLDEN
    drawn = mix64(keys[:, None] + counter).view(len(keys), count, words, 1)
    bits = (drawn >> torch.arange(64, device=keys.device)) & 1
    return (2 * bits.flatten(2)[..., :size] - 1).to(dtype).view(-1, *shape)


def normals(keys: Tensor, shape: tuple[int, ...], first: int, dtype: torch.dtype) -> Tensor:
    """Standard normal numbers, (B, *shape): vectors number ``first`` to ``first + shape[0] - 1`` of each key's stream.

    A vector does not depend on how many are asked for at once.
    """
    numbers = torch.arange(first, first + shape[0], device=keys.device) * _GOLDEN
    own = mix64(mix64(keys)[:, None] + numbers).flatten()  # as ``derived``, for each number
    return _normals(own, math.prod(shape[1:]), 0).to(dtype).view(-1, *shape)


def _normals(keys: Tensor, count: int, offset: int) -> Tensor:
    """(B, count) float64, standard normal, by Box and Muller: both halves of each pair of ``_uniforms``."""
    half = (count + 1) // 2
    u = _uniforms(keys, 2 * half, offset)
    modulus = torch.sqrt(-2 * torch.log1p(-u[:, :half]))
    angle = 2 * math.pi * u[:, half:]
    return torch.cat([modulus * angle.cos(), modulus * angle.sin()], 1)[:, :count]


def _uniforms(keys: Tensor, count: int, offset: int) -> Tensor:
    """(B, count) float64 in [0, 1): numbers ``offset`` .. ``offset + count - 1`` of each key's stream."""
    counter = torch.arange(offset + 1, offset + count + 1, device=keys.device) * _GOLDEN
    out = torch.empty(len(keys), count, dtype=torch.float64, device=keys.device)
    rows = max(1, (_ON_CPU if keys.device.type == "cpu" else _ON_CARD) // max(count, 1))
    for some, place in zip(keys.split(rows), out.split(rows), strict=True):
        place.copy_(_shift(mix64(some[:, None] + counter), 11)).mul_(2.0**-53)
    return out


def uniform(keys: Tensor, shape: torch.Size | tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Uniform numbers in [0, 1): (B, *shape)."""
    return _uniforms(keys, math.prod(shape), 0).to(dtype).view(-1, *shape)


def start(keys: Tensor, x: Tensor, eps: Tensor | float, norm: str) -> Tensor:
    """ξ of eq. 1, uniform in the ε-ball, for samples x (B, ...) with keys (B,)."""
    size = math.prod(x.shape[1:])
    if norm == "linf":
        return norms.to_ball(_uniforms(keys, size, 0).to(x.dtype).view_as(x), None, eps, norm)
    radius = _uniforms(keys, 1, 0)
    return norms.to_ball(radius.to(x.dtype), _normals(keys, size, 1).to(x.dtype).view_as(x), eps, norm)
