"""Backends with one fault each in what calls share, leave behind, or make of a NaN."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ddpm_ref.backend import Backend
from ddpm_ref.checks import Array

Both = tuple[Array, Callable[..., Any]]


class Overwrites(Backend):
    """The input is scratch."""

    def upsample(self, x: Array) -> Both:
        y, backward = super().upsample(x)
        x *= 2
        return y, backward


class OverwritesDy(Backend):
    """dy is scratch, in one of the gradients' places."""

    def group_norm(self, x: Array, gamma: Array, beta: Array, groups: int, *, silu: bool = False) -> Both:
        y, backward = super().group_norm(x, gamma, beta, groups, silu=silu)

        def adjoint(dy: Array, plus: Array | None = None) -> Any:
            results = backward(dy, plus)
            dy[...] = results[0]
            return results

        return y, adjoint


class SumsIntoPlus(Backend):
    """y is plus itself."""

    def dense(self, x: Array, W: Array, b: Array, *, plus: Array | None = None) -> Both:
        y, backward = super().dense(x, W, b)
        if plus is None:
            return y, backward
        plus += y
        return plus, backward


class SumsIntoPlusBackwards(Backend):
    """dx is summed in plus."""

    def group_norm(self, x: Array, gamma: Array, beta: Array, groups: int, *, silu: bool = False) -> Both:
        y, backward = super().group_norm(x, gamma, beta, groups, silu=silu)

        def adjoint(dy: Array, plus: Array | None = None) -> Any:
            dx, *others = backward(dy)
            if plus is not None:
                plus += dx
                dx[...] = plus
            return dx, *others

        return y, adjoint


class SharesMemory(Backend):
    """Nothing to drop: x itself."""

    def dropout(self, x: Array, uniform: Array, rate: float) -> Both:
        return super().dropout(x, uniform, rate) if rate else (x, lambda dy: dy.copy())


class SharesMemoryBackwards(Backend):
    """Nothing to drop: dy itself."""

    def dropout(self, x: Array, uniform: Array, rate: float) -> Both:
        return super().dropout(x, uniform, rate) if rate else (x.copy(), lambda dy: dy)


class KeepsItsOutput(Backend):
    """The adjoint reads y, which the caller may have written into."""

    def group_norm(self, x: Array, gamma: Array, beta: Array, groups: int, *, silu: bool = False) -> Both:
        y, backward = super().group_norm(x, gamma, beta, groups, silu=silu)
        return y, lambda dy, plus=None: ((r := backward(dy, plus))[0], r[1], r[2] + 0.001 * (y.ravel()[0] > 16))


class Forgetful(Backend):
    """Other bits at the second call."""

    calls = 0

    def concat(self, a: Array, b: Array) -> Both:
        self.calls += 1
        y, backward = super().concat(a, b)
        return y * y.dtype.type(1 + 1e-15 * self.calls + 1e-7 * (self.calls % 2)), backward


class KeepsInScratch(Backend):
    """What the adjoint reads lies in memory that the next forward writes over."""

    def dense(self, x: Array, W: Array, b: Array, *, plus: Array | None = None) -> Both:
        y, _ = super().dense(x, W, b, plus=plus)
        kept = self.workspace.take("x", x.size, x.dtype).reshape(x.shape)
        kept[...] = x
        return y, lambda dy, plus=None: Backend.dense(self, kept, W, b)[1](dy, plus)


class OneBuffer(Backend):
    """y is the same memory at every call."""

    def upsample(self, x: Array) -> Both:
        y, backward = super().upsample(x)
        same = self.workspace.take("y", y.size, y.dtype).reshape(y.shape)
        same[...] = y
        return same, backward


class OneBufferBackwards(Backend):
    """dx is the same memory at every call."""

    def upsample(self, x: Array) -> Both:
        y, backward = super().upsample(x)

        def adjoint(dy: Array) -> Array:
            same = self.workspace.take("dx", x.size, x.dtype).reshape(x.shape)
            same[...] = backward(dy)
            return same

        return y, adjoint


class OnlyOnce(Backend):
    """The adjoint's memory is given back when it has run."""

    def attention(self, q: Array, k: Array, v: Array) -> Both:
        y, backward = super().attention(q, k, v)
        kept = np.ones(1, q.dtype)

        def adjoint(dy: Array) -> Any:
            gradients = tuple(kept * g for g in backward(dy))
            kept[...] = 0
            return gradients

        return y, adjoint


class SharesScratch(Backend):
    """Two operations, each right among calls of its own, keep something under the same name."""

    shared: Array

    def add(self, a: Array, b: Array) -> Both:
        self.shared = np.zeros(1)
        return super().add(a, b)

    def concat(self, a: Array, b: Array) -> Both:
        y, backward = super().concat(a, b)
        self.shared = np.ones(1)
        return y, lambda dy: tuple(g * g.dtype.type(self.shared[0]) for g in backward(dy))


class EatsNan(Backend):
    """NaN becomes a number."""

    def group_norm(self, x: Array, gamma: Array, beta: Array, groups: int, *, silu: bool = False) -> Both:
        return super().group_norm(np.nan_to_num(x), gamma, beta, groups, silu=silu)


class EatsNanBackwards(Backend):
    """NaN becomes a number in one of the gradients."""

    def conv3x3(self, x: Array, W: Array, b: Array, *, stride: int = 1, plus: Array | None = None) -> Both:
        y, backward = super().conv3x3(x, W, b, stride=stride, plus=plus)
        return y, lambda dy: ((r := backward(dy))[0], np.nan_to_num(r[1]), r[2])


class SpreadsNan(Backend):
    """What is shared by all images is multiplied by 0, and one of them is NaN."""

    def dense(self, x: Array, W: Array, b: Array, *, plus: Array | None = None) -> Both:
        y, backward = super().dense(x, W, b, plus=plus)
        return y + x.sum() * 0, backward


FAULTS: dict[type[Backend], str] = {
    Overwrites: r"^upsample 2x3x5x6 float64: (argument 1 was changed|y: off by)",
    OverwritesDy: r"^group_norm 2x8x8x64 64 64 groups 32, silu float32: dy was changed",
    SumsIntoPlus: r"^dense 3x5 5x7 7 3x7 plus float64: argument 4 was changed",
    SumsIntoPlusBackwards: r"^group_norm 2x3x5x6 6 6 groups 2, plus to dx float32: dy was changed",
    SharesMemory: r"^dropout 2x3x4x8 rate 0.0 float32: after writing into the results: argument 1 was changed",
    SharesMemoryBackwards: r"^dropout 2x3x4x8 rate 0.0 float32: after writing into the results: dy was changed",
    KeepsItsOutput: r"^group_norm .*: the gradients change with what a caller writes into y",
    Forgetful: r"^concat .*: the same call gave other bits",
    KeepsInScratch: r"^dense 3x5 5x7 7 float32: other gradients after the operation's next call",
    OneBuffer: r"^upsample 2x3x5x6 float64: y was changed by the operation's next call",
    OneBufferBackwards: r"^upsample 2x3x5x6 float32: the gradients were changed by the next adjoint",
    OnlyOnce: r"^attention 2x7x6 2x7x6 2x7x6 float32: the (same call|adjoint) gave other bits when it was called again",
    SharesScratch: r"^together: concat 1x1x1x1 1x1x1x1 float32: other bits than alone when other calls come between",
    EatsNan: r"^group_norm 5x4x3x32 32 32 groups 8, silu float32: NaN in argument 1: y: a number where NumPy has NaN",
    EatsNanBackwards: r"^conv3x3 .* stride 2 float32: NaN in argument 1: gradient 2: a number where NumPy has NaN",
    SpreadsNan: r"^dense 5x3x16 16x24 24 float32: NaN in argument 1: y: NaN in another image",
}
"""What `check_backend` says of each."""

ALSO: dict[type[Backend], str] = {SharesScratch: "add"}
"""The other operation that the fault needs."""
