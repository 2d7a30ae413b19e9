"""3x3 convolution: `Backend.conv3x3` by the kernels of `winograd`.

Winograd for every shape, by a rule of padding: channels are padded with zeros to whole vectors, and a convolution of
stride 2 is that of stride 1 with every second output kept, which costs what a direct one would. A direct kernel would
gain at 4x4 images and small batches alone, where both are bound by reading the filters.

What that costs: numbers of a 6x6 patch are added, times up to 5, before they are multiplied. An infinity or NaN in x
becomes NaN in outputs of all tiles of 4x4 whose patches hold it, not just in the 3x3 that it enters, and x (or dy) near
1e36 overflows where a direct sum would not.
"""

from typing import TYPE_CHECKING

import numpy as np

from ddpm_ref.checks import Array
from ddpm_ref.nn.ops import Backward
from ddpm_ref.workspace import FLOAT32
from ddpm_ref_numba import winograd
from ddpm_ref_numba.launch import addend, fits, gradient
from ddpm_ref_numba.pointwise import add_to
from ddpm_ref_numba.simd import WIDTH

if TYPE_CHECKING:
    from ddpm_ref_numba import NumbaBackend

_BLOCK_NUMBERS = 4096  # tiles times channels at a time: V is 36 times that, 590 kB
_SMALL = 1 << 15  # tiles times C times D that one thread does before another has begun
_GRADIENT_BYTES = 6 << 20  # V and dM of a part of the batch: they stay in the third-level cache between two kernels


def takes(x: Array, W: Array, b: Array, stride: int, plus: Array | None = None) -> bool:
    """The kernels' rule: float32, W (3, 3, C, D), b (D,) or (N, D), stride 1 or 2, plus shaped as y, nothing empty."""
    image, taps, bias = x.shape, W.shape, b.shape
    return (
        x.dtype == W.dtype == b.dtype == FLOAT32
        and len(image) == len(taps) == 4
        and taps[:3] == (3, 3, image[3])
        and (bias == taps[3:] or bias == (image[0], taps[3]))
        and (stride == 1 or stride == 2)
        and 0 not in image
        and taps[3] > 0
        and fits(plus, (image[0], -(-image[1] // stride), -(-image[2] // stride), taps[3]))
    )


def conv3x3(
    run: "NumbaBackend", x: Array, W: Array, b: Array, stride: int = 1, plus: Array | None = None
) -> tuple[Array, Backward]:
    """`ops.conv3x3` for what `takes` allows. plus is added by the kernel where it writes all of y, else afterwards."""
    c, d = W.shape[2:]
    if c % WIDTH or d % WIDTH:
        x, W, b = _padded(x, (3, c)), _padded(W, (2, c), (3, d)), _padded(b, (b.ndim - 1, d))
    x, W, b = np.ascontiguousarray(x), np.ascontiguousarray(W), np.ascontiguousarray(b)
    keep = (slice(None), *_kept(x.shape, stride), slice(d)) if stride == 2 or W.shape[3] != d else None
    y = _convolve(run, x, W, b, turned=False, plus=None if keep else plus)

    def backward(dy: Array) -> tuple[Array, Array, Array]:
        z = gradient(dy, shape)
        if keep:
            z = np.zeros(y_shape, np.float32)
            z[keep] = dy
        dx = _convolve(run, z, W, run.zeros(x.shape[3]), turned=True)
        dW, db = _filter_gradient(run, x, z)
        db = db.sum(axis=0) if b.ndim == 1 else db
        if x.shape[3] != c or W.shape[3] != d:
            dx, dW, db = (np.ascontiguousarray(a) for a in (dx[..., :c], dW[:, :, :c, :d], db[..., :d]))
        return dx, dW, db

    y_shape = y.shape
    y = add_to(run, np.ascontiguousarray(y[keep]), plus) if keep else y
    shape = y.shape  # not y, which would then live as long as the adjoint
    return y, backward


def _padded(a: Array, *axes: tuple[int, int]) -> Array:
    """a with zeros behind these (axis, size) up to a multiple of WIDTH."""
    shape = list(a.shape)
    for axis, size in axes:
        shape[axis] = size + -size % WIDTH
    wide = np.zeros(shape, np.float32)
    wide[tuple(map(slice, a.shape))] = a
    return wide


def _kept(shape: tuple[int, ...], stride: int) -> tuple[slice, slice]:
    """Which outputs of stride 1 are those of stride 2: its windows begin at pixel 0 of even sizes, before it of odd."""
    if stride == 1:
        return slice(None), slice(None)
    return slice(1 - shape[1] % 2, None, 2), slice(1 - shape[2] % 2, None, 2)


def _blocks(tiles: int, channels: int) -> int:
    """Tiles at a time: as many as `_BLOCK_NUMBERS` allow, from 16 to 32, in equal parts, a multiple of ROWS."""
    most = min(max(_BLOCK_NUMBERS // channels, 16), 32)
    parts = -(-tiles // most)
    size = -(-tiles // parts)
    return -(-size // winograd.ROWS) * winograd.ROWS


def _plan(tiles: int, c: int, d: int, lanes: int, threads: int) -> tuple[bool, int]:
    """Whether V of all tiles is made at once and U a panel at a time, and into how many groups the threads go.

    At once, neither U nor V passes through main memory; it pays where there are fewer tiles than channels, and where
    all is small. Then either all threads transform all tiles (one group) or each group all filters: what is cheaper is
    done again, 16 channels of a tile being about a fortieth of 16 x 16 filters.
    """
    once = tiles * c <= (1 << 13) or (tiles <= d and tiles * c <= (1 << 17))
    if once and tiles < 2 * d and d // lanes >= threads:
        return once, 1
    return once, max(1, min(threads, tiles // 16))


def _convolve(run: "NumbaBackend", x: Array, W: Array, b: Array, *, turned: bool, plus: Array | None = None) -> Array:
    """Stride 1; turned: with the filters of the adjoint, from W's D channels to its C."""
    n, h, w, c = x.shape
    d = W.shape[2] if turned else W.shape[3]
    lanes = winograd.panel(d)
    tiles = n * -(-h // 4) * -(-w // 4)
    threads = 1 if tiles * c * d < _SMALL else run.threads
    once, groups = _plan(tiles, c, d, lanes, threads)
    if once:
        U, block = W, -(-tiles // groups)
        block = -(-block // winograd.ROWS) * winograd.ROWS
    else:
        block = _blocks(-(-tiles // groups), c)
        U = run.scratch("winograd U", 36 * d // lanes * winograd.apart(c * lanes))
        lines = run.scratch("winograd lines", threads * winograd.SCRATCH)
        winograd.pack_filters(threads, W, U, c, d, lanes, turned, lines)
    size = winograd.forward_scratch(block, c, d, once)
    y = np.empty((n, h, w, d), np.float32)
    bias_step = d if b.ndim == 2 else 0
    scratch = run.scratch("winograd", threads * size)
    winograd.forward(
        threads, x, U, b, bias_step, y, n, h, w, c, d, lanes, block, groups, scratch, size, once, turned,
        *addend(plus, y),
    )  # fmt: skip
    return y


def _filter_gradient(run: "NumbaBackend", x: Array, dy: Array) -> tuple[Array, Array]:
    """dW (3, 3, C, D) and db of each image (N, D)."""
    n, h, w, c = x.shape
    d, threads = dy.shape[3], run.threads
    per_image = -(-h // 4) * -(-w // 4)
    tiles = n * per_image
    dW, db = np.empty((3, 3, c, d), np.float32), np.empty((n, d), np.float32)
    part = max(16, min(tiles, _GRADIENT_BYTES // (4 * 36 * (c + d))))
    V, dM = (run.scratch(f"winograd {name}", 36 * winograd.apart(part * k)) for name, k in (("V", c), ("dM", d)))
    dU, lines = run.scratch("winograd dU", 36 * c * d), run.scratch("winograd lines", threads * winograd.SCRATCH)
    for first in range(0, tiles, part):
        count = min(part, tiles - first)
        winograd.gradient_transforms(threads, x, dy, V, dM, first, count, h, w, c, d, lines)
        winograd.filter_products(threads, V, dM, dU, db, first, count, per_image, c, d)
    winograd.filter_gradient(1 if c * d < 1024 else threads, dU, dW, c, d)
    return dW, db
