"""`Backend.upsample`, `concat`, `add` and `dropout`, and SiLU: one launch each way, of `kernels/pointwise.cu`."""

import numpy as np

from ddpm_ref.checks import Array
from ddpm_ref.nn.ops import Backward
from ddpm_ref_cupy.device import Device, Launch, real_of

_THREADS = 256
_MOST_IMAGES = 65_535  # of a grid's second axis; kernels walk to the rest


def by_image(kernel: str, n: int, size: int, real: np.dtype) -> Launch:
    """A thread for each of `size` vectors of an image."""
    return Launch(kernel, (-(-size // _THREADS), min(n, _MOST_IMAGES)), (_THREADS, 1, 1), 0, real)


def by_element(run: Device, kernel: str, n: int, real: np.dtype) -> Launch:
    """A thread for 16 bytes of n numbers; of very many, each walks on, so that a processor has 64 blocks at most."""
    each = 16 // np.dtype(real).itemsize * _THREADS
    return Launch(kernel, (max(1, min(-(-n // each), 64 * run.processors)),), (_THREADS, 1, 1), 0, real)


def wide(itemsize: int, *channels: int) -> int:
    """Numbers that a thread moves at once: 16 bytes of them, if that divides the channels, else one."""
    each = 16 // itemsize
    return 1 if any(c % each for c in channels) else each


def upsample(run: Device, x: Array) -> tuple[Array, Backward]:
    """`ops.upsample`."""
    x = run.contiguous(x)
    n, h, w, c = x.shape
    vector = wide(x.itemsize, c)
    sizes = tuple(map(np.int32, (n, h, w, c, vector)))
    y = run.empty((n, 2 * h, 2 * w, c), x.dtype)
    run.launch(by_image("pointwise.pointwise_upsample", n, h * w * c // vector, x.dtype), x, y, *sizes)

    def backward(dy: Array) -> Array:
        dx = run.empty((n, h, w, c), dy.dtype)
        launch = by_image("pointwise.pointwise_upsample_back", n, h * w * c // vector, dy.dtype)
        run.launch(launch, run.contiguous(dy), dx, *sizes)
        return dx

    return y, backward


def concat(run: Device, a: Array, b: Array) -> tuple[Array, Backward]:
    """`ops.concat`; the adjoint makes two new arrays, since what follows wants them contiguous."""
    a, b = run.contiguous(a), run.contiguous(b)
    n, c, d = len(a), a.shape[-1], b.shape[-1]
    s = a.size // (n * c)
    vector = wide(a.itemsize, c, d)
    sizes = tuple(map(np.int32, (n, s, c, d, vector)))
    y = run.empty((*a.shape[:-1], c + d), a.dtype)
    run.launch(by_image("pointwise.pointwise_concat", n, s * (c + d) // vector, a.dtype), a, b, y, *sizes)
    a_shape, b_shape = a.shape, b.shape

    def backward(dy: Array) -> tuple[Array, Array]:
        da, db = run.empty(a_shape, dy.dtype), run.empty(b_shape, dy.dtype)
        launch = by_image("pointwise.pointwise_split", n, s * (c + d) // vector, dy.dtype)
        run.launch(launch, run.contiguous(dy), da, db, *sizes)
        return da, db

    return y, backward


def add(run: Device, a: Array, b: Array) -> tuple[Array, Backward]:
    """`ops.add`."""
    a, b = run.contiguous(a), run.contiguous(b)
    y = run.empty(a.shape, a.dtype)
    run.launch(by_element(run, "pointwise.pointwise_add", a.size, a.dtype), a, b, y, np.uint64(a.size))
    return y, lambda dy: (dy, dy)


def dropout(run: Device, x: Array, uniform: Array, rate: float) -> tuple[Array, Backward]:
    """`ops.dropout`, its bits.  uniform: float32. One byte an element is kept for the adjoint."""
    x = run.contiguous(x)
    n, rate, keep = np.uint64(x.size), np.float32(rate), real_of(x.dtype).type(1 / (1 - rate))
    y, mask = run.empty(x.shape, x.dtype), run.empty(x.shape, np.uint8)
    launch = by_element(run, "pointwise.pointwise_dropout", x.size, x.dtype)
    run.launch(launch, x, run.contiguous(uniform), y, mask, n, rate, keep)

    def backward(dy: Array) -> Array:
        dx = run.empty(dy.shape, dy.dtype)
        launch = by_element(run, "pointwise.pointwise_dropout_back", dy.size, dy.dtype)
        run.launch(launch, run.contiguous(dy), mask, dx, n, keep)
        return dx

    return y, backward


def silu(run: Device, x: Array) -> tuple[Array, Backward]:
    """`ops.silu`."""
    x = run.contiguous(x)
    y, n = run.empty(x.shape, x.dtype), np.uint64(x.size)
    run.launch(by_element(run, "pointwise.pointwise_silu", x.size, x.dtype), x, y, n)

    def backward(dy: Array) -> Array:
        dx = run.empty(x.shape, x.dtype)
        launch = by_element(run, "pointwise.pointwise_silu_back", x.size, x.dtype)
        run.launch(launch, x, run.contiguous(dy), dx, n)
        return dx

    return y, backward
