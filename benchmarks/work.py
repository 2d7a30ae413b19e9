"""How much there is to do: operations and bytes of each hot loop, and of whole steps, counted on paper.

    flops   each +, -, ·, /, √, exp, comparison of floating-point numbers by the direct algorithm is one; a sum of K
            products is 2K. Whole numbers are not counted: of the random numbers only what is written weighs.
    bytes   every input read once, every output written once, nothing of what lies between

So a floor of max(flops / rate, bytes / bandwidth) is that of a direct sum with an ideal cache, and not of every
algorithm: Winograd's F(4x4, 3x3), which the Numba backend uses, takes as little as a quarter of a direct convolution's
products and may run at more than 1 of this "ceiling", as may a loop whose arrays never leave the cache and a step that
fuses what is counted apart here.

`step_loops` lists the loops of a whole training or reverse step from the network's plan, with their shapes.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import NamedTuple

from ddpm_ref.nn.params import count
from ddpm_ref.nn.plan import Piece, UNetConfig
from ddpm_ref.nn.unet import UNet


class Work(NamedTuple):
    """Floating-point operations and bytes."""

    flops: float
    bytes: float

    def floor(self, flops_per_second: float, bytes_per_second: float) -> float:
        """The least seconds: what is slower of computing and of moving."""
        return max(self.flops / flops_per_second, self.bytes / bytes_per_second)


@dataclass(frozen=True)
class Loop:
    """An operation of the backend contract at one size.

    shape: of its first array, (rows, C) for dense, (P,) for update.  width: D of conv3x3, dense and concat, the groups
    of group_norm.  option: "stride 2", "silu", "".  An operation's `plus` is a loop beside it, never called alone.
    """

    operation: str
    shape: tuple[int, ...]
    width: int = 0
    option: str = ""

    @property
    def name(self) -> str:
        """Without the batch: "conv3x3 32x32x128→128"."""
        if self.operation in ("dense", "update"):
            size = "x".join(map(str, self.shape[1:])) or f"{self.shape[0]:,}"
        else:
            size = "x".join(map(str, self.shape[1:]))
        onto = {"conv3x3": "→", "dense": "→", "concat": "+", "group_norm": "/"}.get(self.operation)
        size += f"{onto}{self.width}" if onto else ""
        return " ".join(filter(None, [self.operation, size, self.option]))

    @property
    def stride(self) -> int:
        """Of a convolution."""
        return 2 if self.option == "stride 2" else 1

    def forward(self, itemsize: int = 4) -> Work:
        """One call."""
        return _COUNTS[self.operation](self, itemsize)[0]

    def adjoint(self, itemsize: int = 4) -> Work | None:
        """One call of its adjoint; None where it has none, or one that may do nothing (`add`, `plus`, `concat`)."""
        return _COUNTS[self.operation](self, itemsize)[1]


# --- counts: (forward, adjoint) --------------------------------------------------------------------------------------

_Both = tuple[Work, Work | None]


def _conv3x3(loop: Loop, s: int) -> _Both:
    n, h, w, c = loop.shape
    d, positions = loop.width, n * -(-h // loop.stride) * -(-w // loop.stride)
    x, y, filters = n * h * w * c, positions * d, 9 * c * d
    products = n * _taps(h, loop.stride) * _taps(w, loop.stride) * c * d
    return (
        Work(2 * products, s * (x + filters + d + y)),
        Work(4 * products + y, s * (y + 2 * x + 2 * filters + d)),
    )


def _taps(size: int, stride: int) -> int:
    """How many of the three taps of every output along an axis lie in the image: products with padding are no work."""
    outputs = -(-size // stride)
    before = max(stride * (outputs - 1) + 3 - size, 0) // 2
    return sum(0 <= stride * i + tap - before < size for i in range(outputs) for tap in range(3))


def _dense(loop: Loop, s: int) -> _Both:
    rows, c = loop.shape
    d = loop.width
    x, y, W = rows * c, rows * d, c * d
    return Work(2 * c * y, s * (x + W + d + y)), Work(4 * c * y + y, s * (y + 2 * x + 2 * W + d))


def _group_norm(loop: Loop, s: int) -> _Both:
    n, c = loop.shape[0], loop.shape[-1]
    x, groups = prod(loop.shape), n * loop.width
    silu = loop.option == "silu"
    # Σx, x - mean, Σ(x - mean)², · r, γ · + β; of each group two means, + ε, √, 1/ ; h / (1 + e^-h)
    forward = Work((7 + 3 * silu) * x + 5 * groups, s * (2 * x + 2 * c))
    # x̂ again, dγ, dβ, γ dh, its two sums, dx; h, σ and the slope of SiLU times dy; two means of each group
    adjoint = Work((13 + 10 * silu) * x + 2 * groups, s * (3 * x + 4 * c))
    return forward, adjoint


def _attention(loop: Loop, s: int) -> _Both:
    n, size, c = loop.shape
    pairs, x = n * size * size, n * size * c
    # q kᵀ, scale; max, -, exp, Σ, / ; P v.  Then dv, dP, Σ P dP, dA, its scale, dq, dk
    return Work(pairs * (4 * c + 6), s * 4 * x), Work(pairs * (8 * c + 5), s * 7 * x)


def _upsample(loop: Loop, s: int) -> _Both:
    x = prod(loop.shape)
    return Work(0, s * 5 * x), Work(3 * x, s * 5 * x)


def _concat(loop: Loop, s: int) -> _Both:
    rows, c = prod(loop.shape[:-1]), loop.shape[-1]
    return Work(0, 2 * s * rows * (c + loop.width)), None


def _plain(flops: int, arrays: int, loop: Loop, s: int) -> _Both:
    x = prod(loop.shape)
    return Work(flops * x, arrays * s * x), None


def _dropout(loop: Loop, s: int) -> _Both:
    x = prod(loop.shape)
    return Work(2 * x, 3 * s * x), Work(x, 2 * s * x)


_COUNTS = {
    "conv3x3": _conv3x3,
    "dense": _dense,
    "group_norm": _group_norm,
    "attention": _attention,
    "upsample": _upsample,
    "concat": _concat,
    "add": partial(_plain, 1, 3),
    "plus": partial(_plain, 1, 1),  # of another operation, which has its result at hand
    "dropout": _dropout,
    # ‖g‖²; clip; m; v; √, its factor, + ε, /, rate, θ; EMA.  g is read twice, once for its norm.
    "update": partial(_plain, 19, 10),
    "normal": partial(_plain, 0, 1),
    "uniform": partial(_plain, 0, 1),
    "q_sample": partial(_plain, 3, 3),  # √ᾱ x_0 + √(1-ᾱ) ε
    "p_sample": partial(_plain, 10, 4),  # x̂_0, its clipping, the mean, + σ z
}


# --- whole steps -----------------------------------------------------------------------------------------------------

Calls = Counter[tuple[Loop, str]]
"""How often each loop is called: (loop, "forward" or "adjoint")."""


def step_loops(config: UNetConfig, batch: int, what: str, size: int | None = None) -> Calls:
    """The loops of a "train" or "sample" step of this network. size: H = W of the images, the preset's by default."""
    train, size = what == "train", size or config.image_size
    image = batch, size, size, config.channels
    forward = list(_network(config, batch, size, train))
    calls: Calls = Counter((loop, "forward") for loop in forward)
    if not train:
        return calls + Counter({(Loop("p_sample", image), "forward"): 1})
    calls.update((loop, "adjoint") for loop in forward if loop.operation != "uniform")
    calls.update((loop, "forward") for loop in _gradient_sums(config, batch, size))
    parameters = count(UNet(config).shapes)
    return calls + Counter({(Loop("q_sample", image), "forward"): 1, (Loop("update", (parameters,)), "forward"): 1})


def step_work(config: UNetConfig, batch: int, what: str, size: int | None = None, itemsize: int = 4) -> Work:
    """Of a whole step: the sums over its loops."""
    flops = moved = 0.0
    for (loop, direction), times in step_loops(config, batch, what, size).items():
        work = loop.forward(itemsize) if direction == "forward" else loop.adjoint(itemsize)
        if work is not None:
            flops, moved = flops + times * work.flops, moved + times * work.bytes
    return Work(flops, moved)


def _sizes(config: UNetConfig, size: int) -> Iterator[tuple[Piece, int]]:
    """Every piece with the H = W that it reads."""
    for piece in UNet(config).plan:
        yield piece, size
        size = {"down": -(-size // 2), "up": 2 * size}.get(piece.kind, size)


def _network(config: UNetConfig, n: int, size: int, train: bool) -> Iterator[Loop]:
    time = 4 * config.base
    yield Loop("dense", (n, config.base), time)
    yield Loop("dense", (n, time), time)
    widths = [config.base]
    for (kind, _, c, d), h in _sizes(config, size):
        if kind == "conv":
            yield Loop("conv3x3", (n, h, h, c), d)
        elif kind == "pop":
            yield Loop("concat", (n, h, h, c), d - c)
        elif kind == "down":
            yield Loop("conv3x3", (n, h, h, c), d, "stride 2")
        elif kind == "up":
            yield Loop("upsample", (n, h, h, c))
            yield Loop("conv3x3", (n, 2 * h, 2 * h, c), d)
        elif kind == "block":
            yield from _block(config, n, h, c, d, train)
        elif kind == "attention":
            yield Loop("group_norm", (n, h, h, c), config.groups)
            yield from [Loop("dense", (n * h * h, c), c)] * 4
            yield Loop("attention", (n, h * h, c))
            yield Loop("plus", (n, h * h, c))
        widths.append(d)
    yield Loop("group_norm", (n, size, size, widths[-1]), config.groups, "silu")
    yield Loop("conv3x3", (n, size, size, widths[-1]), config.out_channels)


def _block(config: UNetConfig, n: int, h: int, c: int, d: int, train: bool) -> Iterator[Loop]:
    yield Loop("group_norm", (n, h, h, c), config.groups, "silu")
    yield Loop("dense", (n, 4 * config.base), d)
    yield Loop("conv3x3", (n, h, h, c), d)
    yield Loop("group_norm", (n, h, h, d), config.groups, "silu")
    if train and config.dropout:
        yield Loop("uniform", (n, h, h, d))
        yield Loop("dropout", (n, h, h, d))
    yield Loop("conv3x3", (n, h, h, d), d)
    if c != d:
        yield Loop("dense", (n * h * h, c), d)
    yield Loop("plus", (n, h, h, d))


def _gradient_sums(config: UNetConfig, n: int, size: int) -> Iterator[Loop]:
    """The sums where gradients of one array meet on the way back."""
    c, blocks = config.base, [kind for (kind, *_), _ in _sizes(config, size)].count("block")
    yield from [Loop("plus", (n, 4 * config.base))] * (blocks - 1)  # of the embedding
    for (kind, _, c_in, c_out), h in _sizes(config, size):
        if kind == "push":
            yield Loop("add", (n, h, h, c))
        elif kind == "block":
            yield Loop("plus", (n, h, h, c_in))
        elif kind == "attention":
            yield from [Loop("plus", (n, h * h, c_in))] * 2
            yield Loop("plus", (n, h, h, c_in))
        c = c_out or c
