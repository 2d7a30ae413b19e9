"""The network's operations in NumPy, each returning its output and its adjoint: `y, backward = op(x, ...)`.

The adjoint takes dy = d loss / dy to dx, dW, …, the same of the operation's arguments: backpropagation through it.

Index letters: N images, H W rows and columns, C channels in, D channels out, S = H·W positions, G groups.
The hot loops walk a few images at a time, so that what they write is still in cache when it is read again.
Any floating dtype; outputs have the dtype of the inputs. Every backend must compute what these functions compute.

`plus` is what an array is added to where it is written: a residual connection to an output, a gradient that comes by
another way to dx. The bits are those of the operation followed by `add`; plus is read alone.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ddpm_ref.checks import Array

Backward = Callable[..., Any]

_BLOCK_BYTES = 2 << 20  # about a core's second-level cache


def _image_blocks(n: int, bytes_per_image: int) -> Iterator[slice]:
    """Slices over the images, as many at a time as fit the cache."""
    size = max(1, _BLOCK_BYTES // max(1, bytes_per_image))
    return (slice(first, min(first + size, n)) for first in range(0, n, size))


def conv3x3(x: Array, W: Array, b: Array, *, stride: int = 1, plus: Array | None = None) -> tuple[Array, Backward]:
    """3x3 convolution with zero padding, stride 1 or 2: a matrix product over all 3x3 windows.

        forward    y  = windows(x_pad) W + b, + plus
        adjoint    dx = windows(z) W*     z: dy spread to x's grid with zeros between, W*_ij = W_{2-i,2-j}ᵀ
                   dW = windows(x_pad)ᵀ dy     db = Σ dy

    x: (N, H, W, C)   W: (3, 3, C, D)   b: (D,), or (N, D): one bias per image, which is how time enters a block
    y, plus: (N, ⌈H/stride⌉, ⌈W/stride⌉, D)   backward(dy) -> dx, dW, db; d plus is dy

    Padding is TensorFlow's "SAME": (1, 1), or (0, 1) where stride 2 meets an even size.
    """
    n, h, w, c = x.shape
    d = W.shape[3]
    top, left = (0 if stride == 2 and size % 2 == 0 else 1 for size in (h, w))
    x_pad = np.zeros((n, h + top + 1, w + left + 1, c), x.dtype)
    x_pad[:, top : top + h, left : left + w] = x
    y = _windows_times(x_pad, W, stride)
    y += b if b.ndim == 1 else b[:, None, None, :]
    if plus is not None:
        y += plus

    def backward(dy: Array) -> tuple[Array, Array, Array]:
        dW = np.zeros((9 * c, d), x.dtype)
        for images, rows in _windows(x_pad, stride):
            dW += rows.T @ dy[images].reshape(-1, d)
        # Pixel (p, q) of x lies under tap (i, j) of output (p + top - i, q + left - j) / stride.
        z = np.zeros((n, h + 2, w + 2, d), dy.dtype)
        z[:, 2 - top : h + 2 - top : stride, 2 - left : w + 2 - left : stride] = dy
        dx = _windows_times(z, W[::-1, ::-1].swapaxes(2, 3), 1)
        db = dy.reshape(n, -1, d).sum(axis=1)
        return dx, dW.reshape(W.shape), db.sum(axis=0) if b.ndim == 1 else db

    return y, backward


def _windows(x_pad: Array, stride: int) -> Iterator[tuple[slice, Array]]:
    """Every stride-th 3x3 window of a padded image as a row of 9C numbers, some images at a time: (images, rows)."""
    n, _, _, c = x_pad.shape
    view = sliding_window_view(x_pad, (3, 3), axis=(1, 2))[:, ::stride, ::stride].transpose(0, 1, 2, 4, 5, 3)
    for images in _image_blocks(n, view[0].nbytes):
        yield images, view[images].reshape(-1, 9 * c)


def _windows_times(x_pad: Array, W: Array, stride: int) -> Array:
    """y[n, h, w] = Σ_ij x_pad[n, stride·h + i, stride·w + j] W_ij."""
    (n, h, w, c), d = x_pad.shape, W.shape[3]
    y = np.empty((n, (h - 3) // stride + 1, (w - 3) // stride + 1, d), x_pad.dtype)
    W_rows = W.reshape(9 * c, d)
    for images, rows in _windows(x_pad, stride):
        np.matmul(rows, W_rows, out=y[images].reshape(-1, d))
    return y


def dense(x: Array, W: Array, b: Array, *, plus: Array | None = None) -> tuple[Array, Backward]:
    """y = x W + b, + plus, over the last axis; on images, a 1x1 convolution.

        adjoint    dx = dy Wᵀ, + its own plus     dW = xᵀ dy     db = Σ dy

    x: (..., C)   W: (C, D)   b: (D,)   y, plus: (..., D)   backward(dy, plus=None) -> dx, dW, db; d plus is dy
    """
    rows = x.reshape(-1, W.shape[0])
    y = rows @ W
    y += b
    y = y.reshape(*x.shape[:-1], W.shape[1])
    if plus is not None:
        y += plus

    def backward(dy: Array, plus: Array | None = None) -> tuple[Array, Array, Array]:
        dy_rows = dy.reshape(-1, W.shape[1])
        dx = (dy_rows @ W.T).reshape(x.shape)
        if plus is not None:
            dx += plus
        return dx, rows.T @ dy_rows, dy_rows.sum(axis=0)

    return y, backward


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^{-x}); e^{-x} may overflow to infinity, whose reciprocal is the right 0."""
    with np.errstate(over="ignore"):
        s = np.exp(-x)
    s += 1
    return np.reciprocal(s, out=s)


def silu(x: Array) -> tuple[Array, Backward]:
    """y = x σ(x), σ the logistic function.  backward(dy) -> dx = dy σ (1 + x (1 - σ))"""
    s = sigmoid(x)
    return x * s, lambda dy: dy * (s * (1 + x * (1 - s)))


def group_norm(x: Array, gamma: Array, beta: Array, groups: int, *, silu: bool = False) -> tuple[Array, Backward]:
    """GroupNorm (ε = 1e-6), followed by SiLU if asked: each image's channels are normalised in groups.

        forward    x̂ = (x - mean) r,  r = 1/√(var + ε)     h = γ x̂ + β     y = h, or h σ(h)
        adjoint    dh = dy, or dy σ (1 + h (1 - σ))         dγ = Σ dh x̂     dβ = Σ dh
                   dx = r (γ dh - ⟨γ dh⟩ - x̂ ⟨γ dh x̂⟩), + plus      ⟨·⟩ the mean over positions and the group's channels

    x, plus: (N, H, W, C)   gamma, beta: (C,)   backward(dy, plus=None) -> dx, dgamma, dbeta

    Sums run over positions first, (N, C) numbers, and over the group's channels after: the large arrays are then
    touched only by whole-row operations, with one factor and one shift per image and channel.
    """
    rows = x.reshape(len(x), -1, x.shape[-1])
    y, mean, r = np.empty_like(rows), np.empty_like(rows[:, :1]), np.empty_like(rows[:, :1])
    blocks = list(_image_blocks(len(x), 2 * rows[0].nbytes))
    for images in blocks:
        mean[images], r[images] = _normalise(rows[images], y[images], groups)
        y[images] *= r[images] * gamma
        y[images] += beta
        if silu:
            y[images] *= sigmoid(y[images])

    def backward(dy: Array, plus: Array | None = None) -> tuple[Array, Array, Array]:
        dx = np.empty_like(rows)
        dy = dy.reshape(rows.shape)
        plus = plus if plus is None else plus.reshape(rows.shape)
        dgamma, dbeta = np.zeros_like(gamma), np.zeros_like(beta)
        for images in blocks:
            # Centred before anything is summed: Σ dh x - mean Σ dh would cancel where the mean is large.
            v, rn, dh = rows[images] - mean[images], r[images], dx[images]
            _silu_slope(v * (rn * gamma) + beta, dh) if silu else dh.fill(1)
            dh *= dy[images]
            sum_dh = dh.sum(axis=1)
            sum_dh_x = np.einsum("nsc,nsc->nc", dh, v) * rn[:, 0]
            dgamma += sum_dh_x.sum(axis=0)
            dbeta += sum_dh.sum(axis=0)
            positions = v.shape[1]
            dh *= rn * gamma
            v *= rn * rn * _group_mean(sum_dh_x * gamma, groups, positions)
            dh -= v
            dh -= rn * _group_mean(sum_dh * gamma, groups, positions)
            if plus is not None:
                dh += plus[images]
        return dx.reshape(x.shape), dgamma, dbeta

    return y.reshape(x.shape), backward


def _normalise(rows: Array, out: Array, groups: int) -> tuple[Array, Array]:
    """out = rows - mean; returns mean and r = 1/√(var + ε) of each image's groups, (n, 1, C) each."""
    mean = _group_mean(rows.sum(axis=1), groups, rows.shape[1])
    np.subtract(rows, mean, out=out)
    var = _group_mean(np.einsum("nsc,nsc->nc", out, out), groups, rows.shape[1])
    return mean, 1 / np.sqrt(var + rows.dtype.type(1e-6))


def _group_mean(sums: Array, groups: int, positions: int) -> Array:
    """Sums over positions (n, C) to means over each group, repeated for its channels (n, 1, C)."""
    n, c = sums.shape
    means = sums.reshape(n, groups, c // groups).mean(axis=2) / positions
    return np.repeat(means, c // groups, axis=1)[:, None, :]


def _silu_slope(h: Array, out: Array) -> None:
    """out = σ (1 + h (1 - σ)) = σ + (h σ) (1 - σ), the derivative of SiLU; overwrites h."""
    s = sigmoid(h)
    h *= s
    np.subtract(1, s, out=out)
    out *= h
    out += s


def attention(q: Array, k: Array, v: Array) -> tuple[Array, Backward]:
    """Self-attention with one head over all positions.

        forward    A = q kᵀ / √C     P = softmax(A) over the keys     y = P v
        adjoint    dv = Pᵀ dy     dP = dy vᵀ     dA = P (dP - Σ_keys P dP)     dq = dA k / √C     dk = dAᵀ q / √C

    q, k, v: (N, S, C)   y: (N, S, C)   backward(dy) -> dq, dk, dv
    """
    scale = q.dtype.type(q.shape[-1] ** -0.5)
    P = q @ k.swapaxes(1, 2)
    P *= scale
    P -= P.max(axis=-1, keepdims=True)
    np.exp(P, out=P)
    P /= P.sum(axis=-1, keepdims=True)

    def backward(dy: Array) -> tuple[Array, Array, Array]:
        dA = dy @ v.swapaxes(1, 2)
        dA -= np.einsum("nst,nst->ns", P, dA)[:, :, None]
        dA *= P
        dA *= scale
        return dA @ k, dA.swapaxes(1, 2) @ q, P.swapaxes(1, 2) @ dy

    return P @ v, backward


def upsample(x: Array) -> tuple[Array, Backward]:
    """Nearest-neighbour up-sampling by 2: every pixel becomes a 2x2 square; its adjoint sums the square.

    x: (N, H, W, C)   y: (N, 2H, 2W, C)   backward(dy) -> dx
    """
    n, h, w, c = x.shape
    y = np.empty((n, h, 2, w, 2, c), x.dtype)
    y[:] = x[:, :, None, :, None, :]

    def backward(dy: Array) -> Array:
        square = dy.reshape(n, h, 2, w, 2, c)
        dx = square[:, :, 0, :, 0] + square[:, :, 0, :, 1]
        dx += square[:, :, 1, :, 0]
        dx += square[:, :, 1, :, 1]
        return dx

    return y.reshape(n, 2 * h, 2 * w, c), backward


def concat(a: Array, b: Array) -> tuple[Array, Backward]:
    """The channels of b behind those of a, which is how a skip enters the up path; the adjoint takes them apart.

    a: (N, H, W, C)   b: (N, H, W, D)   y: (N, H, W, C + D)   backward(dy) -> da, db, which may be views of dy
    """
    c = a.shape[-1]
    return np.concatenate([a, b], axis=-1), lambda dy: (dy[..., :c], dy[..., c:])


def add(a: Array, b: Array) -> tuple[Array, Backward]:
    """y = a + b of one shape, the residual connection.  backward(dy) -> da, db: dy itself, twice"""
    return a + b, lambda dy: (dy, dy)


def dropout(x: Array, uniform: Array, rate: float) -> tuple[Array, Backward]:
    """Zero where uniform < rate, the rest divided by 1 - rate.  backward(dy) -> dx, by the same mask."""
    mask = (uniform >= uniform.dtype.type(rate)) * x.dtype.type(1 / (1 - rate))
    return x * mask, lambda dy: dy * mask


def time_embedding(t: Array, dim: int) -> Array:
    """The Transformer's sinusoidal embedding of the paper's t, (N, dim) float64.

        [sin(t_code ω_i), cos(t_code ω_i)],  ω_i = 10000^{-i / (half - 1)},  i = 0 … half-1,  half = ⌊dim/2⌋

    t: (N,) int in 1..T. The released networks count from 0, so t_code = t - 1. An odd dim ends with one 0 more.
    """
    half = dim // 2
    omega = np.exp(-np.log(10000.0) * np.arange(half) / max(half - 1, 1))
    angle = (np.asarray(t, dtype=np.float64) - 1)[:, None] * omega
    return np.concatenate([np.sin(angle), np.cos(angle), np.zeros((len(angle), dim % 2))], axis=1)
