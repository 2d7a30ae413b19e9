"""`Backend.conv3x3`: on tensor cores where `hopper` or `tiles` say so, else matrix products over gathered windows."""

import numpy as np

from ddpm_ref.checks import Array
from ddpm_ref.nn.ops import Backward
from ddpm_ref_cupy import hopper, tiles
from ddpm_ref_cupy.dense import add_bias, column_sums, part_sums, rounded, spread
from ddpm_ref_cupy.device import Device, Launch, real_of
from ddpm_ref_cupy.norm import Deferred, no_adjoint

COLUMN_BYTES = 256 << 20
"""Most memory that the windows of a part of the batch take."""


def conv3x3(
    run: Device, x: Array, W: Array, b: Array, stride: int = 1, plus: Array | None = None
) -> tuple[Array, Backward]:
    """`ops.conv3x3`: (N, H, W, C) -> (N, ⌈H/stride⌉, ⌈W/stride⌉, D). x, y and their gradients may be bfloat16."""
    key = run.address(W)
    W, b = run.contiguous(W), run.contiguous(b)
    plus = None if plus is None else run.contiguous(plus)
    kind = _kind(run, x, W.shape[3])
    if isinstance(x, Deferred):
        cut = _blocks(run, x.shape, W.shape[3]) if stride == 1 else None
        if cut and hopper.normalises(cut, kind):
            filters = _forward_filters(run, W, cut, key)[0]
            return _convolve_tiles(run, x, filters, b, plus, W.shape[3], kind, cut), no_adjoint
        x = x.array()
    x = run.contiguous(x)
    if stride == 1 and run.precision != "fp32" and x.dtype != np.float64:
        forward, adjoint = _blocks(run, x.shape, W.shape[3]), _blocks(run, (*x.shape[:3], W.shape[3]), W.shape[2])
        gradient = _gradient_blocks(run, x.shape, W.shape[3])
        if forward and adjoint and gradient:
            return _on_tensor_cores(run, x, W, b, plus, kind, forward, adjoint, gradient, key)
    return _over_windows(run, x, W, b, plus, kind, stride)


def _kind(run: Device, x: Array, d: int) -> np.dtype:
    """What y holds: bfloat16 where x does, or where x enters a network that does, and D are eights; else what x is
    computed in. So a network's output is float32 as its input is."""
    bf16 = x.dtype == np.uint16 or (run.enters_bf16 and x.dtype == np.float32)
    run.enters_bf16 = False
    return np.dtype(np.uint16) if bf16 and d % 8 == 0 else real_of(x.dtype)


# --- tensor cores ----------------------------------------------------------------------------------------------------


def _blocks(run: Device, shape: tuple[int, ...], d: int) -> tiles.Blocks | None:
    """How a convolution of x of this shape to d channels is cut for tensor cores."""
    of = *shape, d, run.precision, run.processors
    cut = hopper.blocks(*of) if run.capability == hopper.CAPABILITY else None
    return cut or tiles.blocks(*of, run.shared_limit)


def _gradient_blocks(run: Device, shape: tuple[int, ...], d: int) -> tiles.GradientBlocks | None:
    """How its filters' gradient is."""
    of = *shape, d, run.precision, run.processors
    cut = hopper.gradient_blocks(*of) if run.capability == hopper.CAPABILITY else None
    return cut or tiles.gradient_blocks(*of, run.shared_limit)


def _on_tensor_cores(
    run: Device,
    x: Array,
    W: Array,
    b: Array,
    plus: Array | None,
    kind: np.dtype,
    forward: tiles.Blocks,
    adjoint: tiles.Blocks,
    gradient: tiles.GradientBlocks,
    address: int,
) -> tuple[Array, Backward]:
    """Stride 1, operands rounded to the device's precision. address: of the parameter that W is, or was."""
    x_kind = x.dtype
    filters, kept = _forward_filters(run, W, forward, address, adjoint)
    x = _operands(run, x)
    y = _convolve_tiles(run, x, filters, b, plus, W.shape[3], kind, forward)

    def backward(dy: Array) -> tuple[Array, Array, Array]:
        given = run.contiguous(dy)
        dy = _operands(run, given)
        turned = _packed(run, W, adjoint, True)[0] if kept is None else kept
        dx = _convolve_tiles(run, dy, turned, None, None, W.shape[2], x_kind, adjoint)
        dW, db = _gradient_of_tiles(run, x, dy, W.shape[2:], gradient)
        if b.ndim == 1 and given.dtype == dy.dtype:
            return dx, dW, db
        return dx, dW, column_sums(run, given) if b.ndim == 1 else part_sums(run, given, len(given))

    return y, backward


def _forward_filters(
    run: Device, W: Array, cut: tiles.Blocks, address: int, adjoint: tiles.Blocks | None = None
) -> tuple[Array, Array | None]:
    """W as the cut's kernel takes it, kept where it stays what it is; else, by the same launch, the adjoint's too."""
    if run.kept is None:
        return _packed(run, W, cut, False, adjoint if adjoint and adjoint.pack == cut.pack else None)
    key = address, cut.pack, cut.wide
    if key not in run.kept:
        run.kept[key] = _packed(run, W, cut, False)[0]
    return run.kept[key], None


def _operands(run: Device, x: Array) -> Array:
    """x as the kernels read it: bfloat16 at that precision, channels filled up to 16 bytes with zeros."""
    c, kind = x.shape[3], np.dtype(np.uint16 if run.precision == "bf16" else np.float32)
    each = 16 // kind.itemsize
    if x.dtype == kind and c % each == 0:
        return x
    if c % each == 0:
        return rounded(run, x)
    y = run.empty((*x.shape[:3], -(-c // each) * each), kind)
    run.launch(spread("conv.filled", y.size, kind), x, y, np.int64(y.size), np.int32(c), np.int32(y.shape[3]))
    return y


def _packed(
    run: Device, W: Array, cut: tiles.Blocks, turned: bool, also: tiles.Blocks | None = None
) -> tuple[Array, Array | None]:
    """W as the cut's kernel takes it, turned: for the adjoint; and, by the same launch, for the other direction."""
    kind = np.uint16 if run.precision == "bf16" else np.uint32
    first = run.empty((cut.filters,), kind)
    second = run.empty((also.filters,), kind) if also else None
    c, d = W.shape[:1:-1] if turned else W.shape[2:]
    sizes = (c, d, cut.wide, turned, also.wide if also else 0)
    launch = spread(cut.pack, max(cut.filters, also.filters if also else 0))
    run.launch(launch, W, first, first if second is None else second, *map(np.int32, sizes))
    return first, second


def widened(run: Device, x: Array) -> Array:
    """A network's output as float32, which it is unless images have eights of channels."""
    if x.dtype != np.uint16:
        return x
    y = run.empty(x.shape, np.float32)
    run.launch(spread("conv.widened", x.size, x.dtype), x, y, np.int64(x.size))
    return y


def _convolve_tiles(
    run: Device,
    x: Array | Deferred,
    filters: Array,
    b: Array | None,
    plus: Array | None,
    d: int,
    kind: np.dtype,
    cut: tiles.Blocks,
) -> Array:
    """y = conv(x), + b, + plus, to d channels. x: operands, or what becomes them on the way."""
    n, h, w, c = x.shape
    y = run.empty((n, h, w, d), kind)
    t = cut.tiling
    step = -1 if b is None else 0 if b.ndim == 1 else d
    sizes = (n, h, w, c, d, t.images, t.rows, t.columns, t.count, step, plus is not None)
    arrays = [filters, run.empty((1,), np.float32) if b is None else b, y if plus is None else plus, y]
    if cut.parts:
        arrays.append(run.empty((cut.parts,), np.float32))
    launch = Launch(cut.kernel, cut.grid, (cut.threads,), cut.shared, kind)
    if isinstance(x, Deferred):
        launch, sizes = hopper.normalising(launch, t), (x.width, *sizes)
        run.launch(launch, x.x, x.stats(), x.gamma, x.beta, *arrays, *map(np.int32, sizes))
    else:
        run.launch(launch, x, *arrays, *map(np.int32, sizes))
    return y


def _gradient_of_tiles(
    run: Device, x: Array, dy: Array, channels: tuple[int, ...], cut: tiles.GradientBlocks
) -> tuple[Array, Array]:
    """dW and db = Σ dy, parts of one array. x, dy: operands.  channels: C and D without what fills them up."""
    n, h, w, _ = x.shape
    (c, d), count, t = channels, cut.grid[2], cut.tiling
    parts = run.empty((count, 9 * c + 1, d), np.float32)
    sizes = (n, h, w, c, d, t.images, t.rows, t.columns, t.count)
    launch = Launch(cut.kernel, cut.grid, (tiles.GRADIENT_THREADS,), cut.shared)
    run.launch(launch, x, dy, parts, *map(np.int32, sizes))
    sums = parts[0]
    if count > 1:
        sums = run.empty((9 * c + 1, d), np.float32)
        blocks = -(-sums.size // (32 if sums.size % 4 else 128))
        run.launch(
            Launch("conv_tensor.sum_parts", (blocks,), (256,)), parts, sums, np.int32(count), np.int32(sums.size)
        )
    return sums[:-1].reshape(3, 3, c, d), sums[-1]


# --- windows ---------------------------------------------------------------------------------------------------------


def _over_windows(
    run: Device, x: Array, W: Array, b: Array, plus: Array | None, kind: np.dtype, stride: int
) -> tuple[Array, Backward]:
    """Any dtype, precision and stride.

    forward    y  = windows(x) W + b + plus      adjoint    dx = windows(dy, spread by the stride) W*
               dW = windows(x)ᵀ dy               db = Σ dy
    """
    n, h, w, c = x.shape
    d, x_kind = W.shape[3], x.dtype
    top, left = (0 if stride == 2 and size % 2 == 0 else 1 for size in (h, w))
    p, q = -(-h // stride), -(-w // stride)
    x, y = _factor(run, x), run.empty((n, p, q, d), kind)
    _convolve(run, x, W, y, stride, 1, top, left)
    add_bias(run, y, b, n * p * q if b.ndim == 1 else p * q, plus)

    def backward(dy: Array) -> tuple[Array, Array, Array]:
        given = run.contiguous(dy)
        dy = _factor(run, given)
        dW, dx = run.empty((3, 3, c, d), W.dtype), run.empty((n, h, w, c), x_kind)
        _filter_gradient(run, x, dy, dW, stride, top, left)
        turned = run.empty((3, 3, d, c), W.dtype)
        run.launch(spread("conv.turned", W.size, W.dtype.type), W, turned, np.int32(c), np.int32(d))
        _convolve(run, dy, turned, dx, 1, stride, 2 - top, 2 - left)
        return dx, dW, column_sums(run, given) if b.ndim == 1 else part_sums(run, given, n)

    return y, backward


def _factor(run: Device, x: Array) -> Array:
    """x as matrix products take it: bfloat16 where they are of it."""
    return rounded(run, x) if run.precision == "bf16" and x.dtype == np.float32 else x


def _parts(n: int, pixels: int, c: int, itemsize: int) -> list[slice]:
    """The batch in parts whose windows fit `COLUMN_BYTES`."""
    size = max(1, min(n, COLUMN_BYTES // (9 * pixels * c * itemsize)))
    return [slice(first, min(first + size, n)) for first in range(0, n, size)]


def _windows(run: Device, x: Array, shape: tuple[int, int], stride: int, spread_by: int, top: int, left: int) -> Array:
    """windows(x) for these destination pixels, (N · P · Q, 9C), in 16 bytes at a time where they fit."""
    n, h, w, c = x.shape
    p, q = shape
    columns = run.empty((n * p * q, 9 * c), x.dtype)
    each = 16 // x.itemsize
    wide = each if c % each == 0 else 1
    name = "conv.windows_wide" if wide == each else "conv.windows"
    sizes = (n, h, w, c // wide, p, q, stride, spread_by, top, left)
    run.launch(spread(name, columns.size // wide, x.dtype), x, columns, *map(np.int32, sizes))
    return columns


def _convolve(run: Device, x: Array, W: Array, y: Array, stride: int, spread_by: int, top: int, left: int) -> None:
    """y = windows(x) W."""
    c, d = W.shape[2:]
    p, q = y.shape[1:3]
    filters = _factor(run, W.reshape(9 * c, d))
    for part in _parts(len(x), p * q, c, x.itemsize):
        columns = _windows(run, x[part], (p, q), stride, spread_by, top, left)
        run.matmul(columns, filters, y[part].reshape(-1, d))


def _filter_gradient(run: Device, x: Array, dy: Array, dW: Array, stride: int, top: int, left: int) -> None:
    """dW = windows(x)ᵀ dy."""
    c, d = dW.shape[2:]
    p, q = dy.shape[1:3]
    for part in _parts(len(x), p * q, c, x.itemsize):
        columns = _windows(run, x[part], (p, q), stride, 1, top, left)
        out = dW.reshape(9 * c, d)
        run.matmul(columns, dy[part].reshape(-1, d), out, trans_a=True, add=part.start > 0)
