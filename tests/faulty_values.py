"""Backends with one fault each in the values, shapes, dtypes or parameters of an operation."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ddpm_ref.backend import Backend
from ddpm_ref.backend_cases import placed
from ddpm_ref.checks import Array

Both = tuple[Array, Callable[..., Any]]


class WrongSign(Backend):
    """One adjoint's sign."""

    def dense(self, x: Array, W: Array, b: Array, *, plus: Array | None = None) -> Both:
        y, backward = super().dense(x, W, b, plus=plus)
        return y, lambda dy, plus=None: (-(r := backward(dy, plus))[0], r[1], r[2])


class Transposed(Backend):
    """dW with its channels swapped, where they are equally many."""

    def conv3x3(self, x: Array, W: Array, b: Array, *, stride: int = 1, plus: Array | None = None) -> Both:
        y, backward = super().conv3x3(x, W, b, stride=stride, plus=plus)
        if W.shape[2] != W.shape[3]:
            return y, backward
        return y, lambda dy: ((r := backward(dy))[0], r[1].swapaxes(2, 3).copy(), r[2])


class Downcasts(Backend):
    """float64 is computed in float32 and cast back."""

    def attention(self, q: Array, k: Array, v: Array) -> Both:
        y, backward = super().attention(*(a.astype(np.float32) for a in (q, k, v)))
        return y.astype(q.dtype), lambda dy: tuple(g.astype(q.dtype) for g in backward(dy.astype(np.float32)))


class ReturnsFloat64(Backend):
    """The right numbers, but not in the inputs' dtype."""

    def dropout(self, x: Array, uniform: Array, rate: float) -> Both:
        y, backward = super().dropout(x, uniform, rate)
        return y.astype(np.float64), backward


class NoBorder(Backend):
    """The last row of a convolution is that of the row before."""

    def conv3x3(self, x: Array, W: Array, b: Array, *, stride: int = 1, plus: Array | None = None) -> Both:
        y, backward = super().conv3x3(x, W, b, stride=stride, plus=plus)
        if y.shape[1] % 4 == 3:
            y[:, -1] = y[:, -2]
        return y, backward


class OnlyContiguous(Backend):
    """The memory of an array is read as if it were contiguous."""

    def dense(self, x: Array, W: Array, b: Array, *, plus: Array | None = None) -> Both:
        return super().dense(np.lib.stride_tricks.as_strided(x, x.shape, placed(self, x).strides), W, b, plus=plus)


class NoMaximum(Backend):
    """exp of the logits as they are."""

    def attention(self, q: Array, k: Array, v: Array) -> Both:
        P = np.exp(q @ k.swapaxes(1, 2) * q.dtype.type(q.shape[-1] ** -0.5))
        return P @ v / P.sum(axis=-1, keepdims=True), super().attention(q, k, v)[1]


class OnlySmallImages(Backend):
    """A row is forgotten where an image has more than 16."""

    def conv3x3(self, x: Array, W: Array, b: Array, *, stride: int = 1, plus: Array | None = None) -> Both:
        y, backward = super().conv3x3(x, W, b, stride=stride, plus=plus)
        y[:, 16:17] = 0
        return y, backward


class OnlyFewTiles(Backend):
    """dW forgets what lies beyond some thousands of pixels."""

    def conv3x3(self, x: Array, W: Array, b: Array, *, stride: int = 1, plus: Array | None = None) -> Both:
        y, backward = super().conv3x3(x, W, b, stride=stride, plus=plus)
        if x.size // x.shape[-1] <= 4096:
            return y, backward
        return y, lambda dy: ((r := backward(dy))[0], Backend.conv3x3(self, x[:-1], W, b[:-1])[1](dy[:-1])[1], r[2])


class Signature(Backend):
    """An option need not be named."""

    def conv3x3(self, x: Array, W: Array, b: Array, stride: int = 1, *, plus: Array | None = None) -> Both:
        return super().conv3x3(x, W, b, stride=stride, plus=plus)


class Older(Backend):
    """An option is missing."""

    def dense(self, x: Array, W: Array, b: Array) -> Both:  # type: ignore[override]
        return super().dense(x, W, b)


class IgnoresPlus(Backend):
    """What should be added to y is not."""

    def conv3x3(self, x: Array, W: Array, b: Array, *, stride: int = 1, plus: Array | None = None) -> Both:
        return super().conv3x3(x, W, b, stride=stride)


class IgnoresPlusBackwards(Backend):
    """What should be added to dx is not."""

    def group_norm(self, x: Array, gamma: Array, beta: Array, groups: int, *, silu: bool = False) -> Both:
        y, backward = super().group_norm(x, gamma, beta, groups, silu=silu)
        return y, lambda dy, plus=None: backward(dy)


class Raises(Backend):
    """One shape is too much for it."""

    def attention(self, q: Array, k: Array, v: Array) -> Both:
        if q.shape[1] == 25:
            raise RuntimeError("25 is no multiple of 8")
        return super().attention(q, k, v)


class Truncates(Backend):
    """The device has no float64."""

    def to_device(self, x: Array) -> Array:
        return np.asarray(x, np.float32)


FAULTS: dict[type[Backend], str] = {
    WrongSign: r"^dense 3x5 5x7 7 float64: gradient 1 of 3: off by [\d.]+ where [\d.e-]+ is allowed",
    Transposed: r"^conv3x3 2x16x16x32 3x3x32x32 2x32 stride 1 float32: gradient 2 of 3: off by",
    Downcasts: r"^attention 2x64x32 2x64x32 2x64x32 float64: y: off by",
    ReturnsFloat64: r"^dropout 2x3x5x6 rate 0.1 float32: y: wanted dtype float32, got float64",
    NoBorder: r"^conv3x3 .*: y: off by",
    OnlyContiguous: r"^dense 2x3x5x16 16x24 24 float32 strided: y: off by",
    NoMaximum: r"^attention 2x12x16 2x12x16 2x12x16 logits around -200 float32: y: off by nan",
    OnlySmallImages: r"^conv3x3 8x32x32x64 3x3x64x64 8x64 stride 1 float32: y: off by",
    OnlyFewTiles: r"^conv3x3 8x32x32x64 3x3x64x64 8x64 stride 1 float32: gradient 2 of 3: off by",
    Signature: r"^conv3x3: wanted the parameters \(x: .*, \*, stride: int = 1, .*, got \(x: .*, stride: int = 1, \*, ",
    Older: r"^dense: wanted the parameters \(x: .*, \*, plus: .* = None\).*, got \(x: Any, W: Any, b: Any\)",
    IgnoresPlus: r"^conv3x3 2x5x7x3 3x3x3x16 2x16 2x5x7x16 stride 1, plus float32: y: off by",
    IgnoresPlusBackwards: r"^group_norm 2x3x5x6 6 6 groups 2, silu, plus to dx float64: gradient 1 of 3: off by",
    Raises: r"^attention: raised RuntimeError: 25 is no multiple of 8 \(attention",
    Truncates: r"^to_host: to_device and back made .*dtype=float32",
}
"""What `check_backend` says of each."""
