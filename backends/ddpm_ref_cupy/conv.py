"""`Backend.conv3x3`: matrix products over gathered windows."""

import numpy as np

from ddpm_ref.checks import Array
from ddpm_ref.nn.ops import Backward
from ddpm_ref_cupy.dense import add_bias, column_sums, part_sums, rounded, spread
from ddpm_ref_cupy.device import Device

COLUMN_BYTES = 256 << 20
"""Most memory that the windows of a part of the batch take."""


def conv3x3(run: Device, x: Array, W: Array, b: Array, *, stride: int = 1) -> tuple[Array, Backward]:
    """`ops.conv3x3`: (N, H, W, C) -> (N, ⌈H/stride⌉, ⌈W/stride⌉, D).

    forward    y  = windows(x) W + b             adjoint    dx = windows(dy, spread by the stride) W*
               dW = windows(x)ᵀ dy               db = Σ dy
    """
    x, W, b = run.contiguous(x), run.contiguous(W), run.contiguous(b)
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


def _parts(n: int, bytes_per_image: int) -> list[slice]:
    """The batch in parts whose windows fit `COLUMN_BYTES`."""
    size = max(1, min(n, COLUMN_BYTES // bytes_per_image))
    return [slice(first, min(first + size, n)) for first in range(0, n, size)]


def _windows(run: Device, x: Array, shape: tuple[int, int], stride: int, spread_by: int, top: int, left: int) -> Array:
    """windows(x) for these destination pixels, (N · P · Q, 9C); bfloat16 where the device's precision is that."""
    n, h, w, c = x.shape
    p, q = shape
    bf16 = run.precision == "bf16" and x.dtype == np.float32
    columns = run.empty((n * p * q, 9 * c), np.uint16 if bf16 else x.dtype)
    wide = 4 if c % 4 == 0 else 1
    name = "conv.windows" + ("4" if wide == 4 else "") + ("_bf16" if bf16 else "")
    sizes = (np.int32(k) for k in (n, h, w, c // wide, p, q, stride, spread_by, top, left))
    run.launch(spread(name, columns.size // wide, x.dtype.type), x, columns, *sizes)
    return columns


def _column_bytes(run: Device, pixels: int, c: int, dtype: np.dtype) -> int:
    return 9 * pixels * c * (2 if run.precision == "bf16" and dtype == np.float32 else dtype.itemsize)


def _convolve(run: Device, x: Array, W: Array, y: Array, stride: int, spread_by: int, top: int, left: int) -> None:
    """y = windows(x) W."""
    c, d = W.shape[2:]
    p, q = y.shape[1:3]
    filters = W.reshape(9 * c, d)
    if run.precision == "bf16" and x.dtype == np.float32:
        filters = rounded(run, filters)
    for part in _parts(len(x), _column_bytes(run, p * q, c, x.dtype)):
        columns = _windows(run, x[part], (p, q), stride, spread_by, top, left)
        run.matmul(columns, filters, y[part].reshape(-1, d))


def _filter_gradient(run: Device, x: Array, dy: Array, dW: Array, stride: int, top: int, left: int) -> None:
    """dW = windows(x)ᵀ dy."""
    c, d = dW.shape[2:]
    p, q = dy.shape[1:3]
    gradients = rounded(run, dy) if run.precision == "bf16" and x.dtype == np.float32 else dy
    for part in _parts(len(x), _column_bytes(run, p * q, c, x.dtype)):
        columns = _windows(run, x[part], (p, q), stride, 1, top, left)
        out = dW.reshape(9 * c, d)
        run.matmul(columns, gradients[part].reshape(-1, d), out, trans_a=True, add=part.start > 0)
