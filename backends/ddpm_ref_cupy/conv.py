"""`Backend.conv3x3`: on tensor cores where `hopper` or `tiles` say so, else matrix products over gathered windows."""

from typing import Any

import numpy as np

from ddpm_ref.checks import Array
from ddpm_ref.nn.ops import Backward
from ddpm_ref_cupy import hopper, tiles
from ddpm_ref_cupy.dense import add_bias, column_sums, part_sums, rounded, spread
from ddpm_ref_cupy.device import Device, Launch

COLUMN_BYTES = 256 << 20
"""Most memory that the windows of a part of the batch take."""


def conv3x3(run: Device, x: Array, W: Array, b: Array, stride: int = 1) -> tuple[Array, Backward]:
    """`ops.conv3x3`: (N, H, W, C) -> (N, ⌈H/stride⌉, ⌈W/stride⌉, D)."""
    x, W, b = run.contiguous(x), run.contiguous(W), run.contiguous(b)
    n, h, w = x.shape[:3]
    if stride == 1 and run.precision != "fp32" and x.dtype == np.float32:
        wide = (tiles.padded(k, run.precision) for k in W.shape[2:])
        of = (n, h, w, *wide, run.precision, run.processors)
        if tiles.blocks(*of) and tiles.gradient_blocks(*of):
            return _on_tensor_cores(run, x, W, b)
    return _over_windows(run, x, W, b, stride)


# --- tensor cores ----------------------------------------------------------------------------------------------------


def _on_tensor_cores(run: Device, x: Array, W: Array, b: Array) -> tuple[Array, Backward]:
    """Stride 1, float32, operands rounded to the device's precision."""
    c, d = W.shape[2:]
    wide_c, wide_d = tiles.padded(c, run.precision), tiles.padded(d, run.precision)
    given, x, W = W, _padded(run, x, wide_c), _padded(run, W, wide_c, wide_d)
    y = _convolve_tiles(run, x, W, _padded(run, b, wide_d), keep=W is given)

    def backward(dy: Array) -> tuple[Array, Array, Array]:
        dy = run.contiguous(dy)
        wide = _padded(run, dy, wide_d)
        dx = _convolve_tiles(run, wide, W, None, turned=True)
        dW, db = _gradient_of_tiles(run, x, wide, with_db=b.ndim == 1)
        db = part_sums(run, dy, len(dy)) if db is None else db[:d]
        return _cut(run, dx, c), _cut(run, dW[:, :, :c], d), db

    return _cut(run, y, d), backward


def _padded(run: Device, a: Array, *sizes: int) -> Array:
    """a, its last axes filled up with zeros to these sizes."""
    shape = a.shape[: a.ndim - len(sizes)] + sizes
    if shape == a.shape:
        return a
    wide = run.zeros(shape, a.dtype)
    wide[tuple(map(slice, a.shape))] = a
    return wide


def _cut(run: Device, a: Array, size: int) -> Array:
    """The first `size` of the last axis, contiguous."""
    return run.contiguous(a[..., :size])


def _packed(run: Device, W: Array, cut: Any, sizes: tuple[int, ...], *, keep: bool) -> Array:
    """The filters as the kernel of this cut takes them; keep: they are parameters, and `Device.kept` may hold them."""
    key = run.address(W), cut.pack, *sizes
    if keep and run.kept is not None and key in run.kept:
        return run.kept[key]
    filters = run.empty((cut.filters,), np.uint16 if run.precision == "bf16" else np.uint32)
    run.launch(spread(cut.pack, cut.filters), W, filters, *map(np.int32, sizes))
    if keep and run.kept is not None:
        run.kept[key] = filters
    return filters


def _convolve_tiles(
    run: Device, x: Array, W: Array, b: Array | None, *, turned: bool = False, keep: bool = False
) -> Array:
    """y = conv(x), + b; turned: with the filters of the adjoint, from W's D channels to its C."""
    n, h, w, c = x.shape
    d = W.shape[2 if turned else 3]
    of = n, h, w, c, d, run.precision, run.processors
    cut = (hopper.blocks(*of) if run.capability == hopper.CAPABILITY else None) or tiles.blocks(*of)
    assert cut is not None
    filters = _packed(run, W, cut, (c, d, cut.wide, turned), keep=keep)
    y = run.empty((n, h, w, d), np.float32)
    t = cut.tiling
    step = -1 if b is None else 0 if b.ndim == 1 else d
    sizes = (n, h, w, c, d, t.images, t.rows, t.columns, t.count, step)
    launch = Launch(cut.kernel, cut.grid, (cut.threads,), cut.shared)
    run.launch(launch, x, filters, x if b is None else b, y, *map(np.int32, sizes))
    return y


def _gradient_of_tiles(run: Device, x: Array, dy: Array, *, with_db: bool) -> tuple[Array, Array | None]:
    """dW of padded x and dy, and the sums of dy, which the kernel has at hand."""
    n, h, w, c = x.shape
    d = dy.shape[3]
    of = n, h, w, c, d, run.precision, run.processors
    cut = (hopper.gradient_blocks(*of) if run.capability == hopper.CAPABILITY else None) or tiles.gradient_blocks(*of)
    assert cut is not None
    count, size = cut.grid[2], 9 * c * d
    parts = run.empty((count, size + with_db * d), np.float32)
    t = cut.tiling
    sizes = (n, h, w, c, d, t.images, t.rows, t.columns, t.count, with_db)
    launch = Launch(cut.kernel, cut.grid, (tiles.GRADIENT_THREADS,), cut.shared)
    run.launch(launch, x, dy, parts, *map(np.int32, sizes))
    sums = parts[0]
    if count > 1:
        sums, quads = run.empty(parts.shape[1:], np.float32), parts.shape[1] // 4
        add = Launch("conv_tensor.sum_parts", (-(-quads // 32),), (256,))
        run.launch(add, parts, sums, np.int32(count), np.int32(quads))
    return sums[:size].reshape(3, 3, c, d), sums[size:] if with_db else None


# --- windows ---------------------------------------------------------------------------------------------------------


def _over_windows(run: Device, x: Array, W: Array, b: Array, stride: int) -> tuple[Array, Backward]:
    """Any dtype, precision and stride.

    forward    y  = windows(x) W + b             adjoint    dx = windows(dy, spread by the stride) W*
               dW = windows(x)ᵀ dy               db = Σ dy
    """
    n, h, w, c = x.shape
    d = W.shape[3]
    top, left = (0 if stride == 2 and size % 2 == 0 else 1 for size in (h, w))
    p, q = -(-h // stride), -(-w // stride)
    y = run.empty((n, p, q, d), x.dtype)
    _convolve(run, x, W, y, stride, 1, top, left)
    add_bias(run, y, b, n * p * q if b.ndim == 1 else p * q)

    def backward(dy: Array) -> tuple[Array, Array, Array]:
        dy = run.contiguous(dy)
        dW, dx = run.empty((3, 3, c, d), x.dtype), run.empty(x.shape, x.dtype)
        _filter_gradient(run, x, dy, dW, stride, top, left)
        turned = run.empty((3, 3, d, c), x.dtype)
        run.launch(spread("conv.turned", W.size, W.dtype.type), W, turned, np.int32(c), np.int32(d))
        _convolve(run, dy, turned, dx, 1, stride, 2 - top, 2 - left)
        return dx, dW, column_sums(run, dy) if b.ndim == 1 else part_sums(run, dy, n)

    return y, backward


def _is_bf16(run: Device, dtype: np.dtype) -> bool:
    """Whether the operands of products of this dtype are rounded to bfloat16."""
    return run.precision == "bf16" and dtype == np.float32


def _parts(run: Device, n: int, pixels: int, c: int, dtype: np.dtype) -> list[slice]:
    """The batch in parts whose windows fit `COLUMN_BYTES`."""
    each = 9 * pixels * c * (2 if _is_bf16(run, dtype) else dtype.itemsize)
    size = max(1, min(n, COLUMN_BYTES // each))
    return [slice(first, min(first + size, n)) for first in range(0, n, size)]


def _windows(run: Device, x: Array, shape: tuple[int, int], stride: int, spread_by: int, top: int, left: int) -> Array:
    """windows(x) for these destination pixels, (N · P · Q, 9C); bfloat16 where the device's precision is that."""
    n, h, w, c = x.shape
    p, q = shape
    bf16 = _is_bf16(run, x.dtype)
    columns = run.empty((n * p * q, 9 * c), np.uint16 if bf16 else x.dtype)
    wide = 4 if c % 4 == 0 else 1
    name = "conv.windows" + ("4" if wide == 4 else "") + ("_bf16" if bf16 else "")
    sizes = (n, h, w, c // wide, p, q, stride, spread_by, top, left)
    run.launch(spread(name, columns.size // wide, x.dtype.type), x, columns, *map(np.int32, sizes))
    return columns


def _convolve(run: Device, x: Array, W: Array, y: Array, stride: int, spread_by: int, top: int, left: int) -> None:
    """y = windows(x) W."""
    c, d = W.shape[2:]
    p, q = y.shape[1:3]
    filters = W.reshape(9 * c, d)
    if _is_bf16(run, x.dtype):
        filters = rounded(run, filters)
    for part in _parts(run, len(x), p * q, c, x.dtype):
        columns = _windows(run, x[part], (p, q), stride, spread_by, top, left)
        run.matmul(columns, filters, y[part].reshape(-1, d))


def _filter_gradient(run: Device, x: Array, dy: Array, dW: Array, stride: int, top: int, left: int) -> None:
    """dW = windows(x)ᵀ dy."""
    c, d = dW.shape[2:]
    p, q = dy.shape[1:3]
    gradients = rounded(run, dy) if _is_bf16(run, x.dtype) else dy
    for part in _parts(run, len(x), p * q, c, x.dtype):
        columns = _windows(run, x[part], (p, q), stride, 1, top, left)
        out = dW.reshape(9 * c, d)
        run.matmul(columns, gradients[part].reshape(-1, d), out, trans_a=True, add=part.start > 0)
