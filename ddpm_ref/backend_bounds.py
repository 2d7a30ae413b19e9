"""How far from exact a correct operation may be: for every result, the magnitude that rounding errors are relative to.

A sum of terms a_i computed in floating point is off by a few eps times Σ|a_i|, not times |Σ a_i|; what follows computes
these sums of magnitudes, in float64, for outputs and gradients. An error may be TENS · eps times them (float32; there
are a few roundings in each term, and those of a long sum cancel), or 1e-12 times them (float64).

Convolution may also run as Winograd's F(4x4, 3x3), which mixes the pixels of a 6x6 tile with factors up to 8, forwards
and backwards: its error is relative to the largest output in the neighbourhood and not to each. In float32 it may be
1e-4 of the largest root-sum-square of terms (the typical size of an output): ten times what F(4x4, 3x3) needs with up
to 512 channels, and far below any mistake's size. dW sums over P tiles, one after the other perhaps, whose rounding
alone grows with √P against the root-sum-square: from P = 128 on it may be √(P/128) times more.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ddpm_ref.backend import Backend
from ddpm_ref.checks import Array

TENS = 32
WINOGRAD = 1e-4
FLOAT64 = 1e-12

Call = Callable[..., tuple[Array, Callable[..., Any]]]
Magnitudes = Callable[[Call, Sequence[Array], Array, Any], list[Array]]
"""magnitudes(call, args, dy, dtype) -> one array for the output and one for each gradient."""


def tolerance(dtype: Any) -> float:
    """The error allowed, relative to these magnitudes."""
    return TENS * float(np.finfo(np.float32).eps) if np.dtype(dtype) == np.float32 else FLOAT64


def outcome(call: Call, backend: Backend, args: Sequence[Array], dy: Array) -> list[Array]:
    """The output and every gradient."""
    y, backward = call(backend, *args)
    gradients = backward(dy)
    return [y, *gradients] if isinstance(gradients, tuple) else [y, gradients]


def of_linear(call: Call, args: Sequence[Array], dy: Array, dtype: Any) -> list[Array]:
    """Of an operation that is a sum of products: the same sums over absolute values."""
    return outcome(call, Backend(), [np.abs(a) for a in args], np.abs(dy))


def of_convolution(call: Call, args: Sequence[Array], dy: Array, dtype: Any) -> list[Array]:
    """In float32, for y, dx and dW the largest root-sum-square of terms, in units that make the tolerance WINOGRAD."""
    sums = of_linear(call, args, dy, dtype)
    if np.dtype(dtype) != np.float32:
        return sums
    squares = outcome(call, Backend(), [np.square(a) for a in args], np.square(dy))
    n, h, w, _ = args[0].shape
    tiles = n * -(-h // 4) * -(-w // 4)
    units = WINOGRAD / tolerance(dtype) * np.sqrt([1, 1, max(1, tiles / 128)])
    return [np.full_like(s, np.sqrt(q.max()) * u) for s, q, u in zip(sums, squares, units, strict=False)] + sums[3:]


def of_group_norm(args: Sequence[Array], dy: Array, groups: int, silu: bool) -> list[Array]:
    """With x̂ known up to (|x| + |mean|) r, SiLU's slope at most 1.1 and its second derivative at most ½."""
    x, gamma, beta = args
    n, c = len(x), x.shape[-1]
    rows = x.reshape(n, -1, groups, c // groups)
    dy, gamma, beta = np.abs(dy).reshape(rows.shape), *(np.abs(a).reshape(groups, -1) for a in (gamma, beta))

    def over_group(a: Array) -> Array:
        return a.mean(axis=(1, 3), keepdims=True)

    mean = over_group(rows)
    r = 1 / np.sqrt(over_group(np.square(rows - mean)) + 1e-6)
    x_hat = (np.abs(rows) + over_group(np.abs(rows))) * r
    h = gamma * x_hat + beta
    dh = dy * (1.1 + h / 2) if silu else dy
    dx = r * (gamma * dh + over_group(gamma * dh) + x_hat * over_group(gamma * dh * x_hat))
    dgamma, dbeta = (2 * dh * x_hat).sum(axis=(0, 1)), dh.sum(axis=(0, 1))
    return [(1.1 * h).reshape(x.shape), dx.reshape(x.shape), dgamma.reshape(c), dbeta.reshape(c)]


def of_attention(args: Sequence[Array], dy: Array) -> list[Array]:
    """A rounding of a logit, of size Σ|q||k|/√C, is a relative error of its softmax."""
    q, k, v = args
    scale = q.shape[-1] ** -0.5
    logits = q @ k.swapaxes(1, 2) * scale
    P = np.exp(logits - logits.max(axis=-1, keepdims=True))
    P /= P.sum(axis=-1, keepdims=True)
    q, k, v, dy = (np.abs(a) for a in (q, k, v, dy))
    P = P * (1 + 2 * (q @ k.swapaxes(1, 2)).max(axis=-1, keepdims=True) * scale)
    dP = dy @ v.swapaxes(1, 2)
    dA = P * (dP + (P * dP).sum(axis=-1, keepdims=True)) * scale
    return [P @ v, dA @ k, dA.swapaxes(1, 2) @ q, P.swapaxes(1, 2) @ dy]
