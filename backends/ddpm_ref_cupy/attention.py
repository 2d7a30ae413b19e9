"""`Backend.attention`: matrix products with a softmax kernel between them, or one kernel where images are small."""

import numpy as np

from ddpm_ref.checks import Array
from ddpm_ref.nn.ops import Backward
from ddpm_ref_cupy.device import Device, Launch, real_of

SMALL = 64  # positions, and channels, at most for one block an image; more is faster as matrix products
_WARPS = 4


def attention(run: Device, q: Array, k: Array, v: Array) -> tuple[Array, Backward]:
    """`ops.attention`. The softmax is kept for the adjoint. Small images are computed in full float32."""
    q, k, v = run.contiguous(q), run.contiguous(k), run.contiguous(v)
    n, s, c = q.shape
    real = real_of(q.dtype)
    scale = real.type(c**-0.5)
    small = max(s, c) <= SMALL and shared_bytes(s, c, real.itemsize, backward=True) <= run.shared_limit
    P, y = run.empty((n, s, s), q.dtype), run.empty(q.shape, q.dtype)
    (_small if small else _products)(run, q, k, v, y, P, scale)

    def backward(dy: Array) -> tuple[Array, Array, Array]:
        dq, dk, dv = (run.empty(q.shape, q.dtype) for _ in range(3))
        (_small_back if small else _products_back)(run, q, k, v, P, run.contiguous(dy), dq, dk, dv, scale)
        return dq, dk, dv

    return y, backward


def _products(run: Device, q: Array, k: Array, v: Array, y: Array, P: Array, scale: np.floating) -> None:
    scores = _unrounded(run, P)
    run.matmul(q, k, scores, trans_b=True)
    launch, sizes = _rows("attention.attention_softmax", P)
    run.launch(launch, scores, P, *sizes, scale)
    run.matmul(P, v, y)


def _products_back(
    run: Device,
    q: Array,
    k: Array,
    v: Array,
    P: Array,
    dy: Array,
    dq: Array,
    dk: Array,
    dv: Array,
    scale: np.floating,
) -> None:
    run.matmul(P, dy, dv, trans_a=True)
    dA = run.empty(P.shape, P.dtype)
    dP = run.matmul(dy, v, _unrounded(run, dA), trans_b=True)
    launch, sizes = _rows("attention.attention_softmax_back", P)
    run.launch(launch, P, dP, dA, *sizes, scale)
    run.matmul(dA, k, dq)
    run.matmul(dA, q, dk, trans_a=True)


def _unrounded(run: Device, P: Array) -> Array:
    """Where products go that become P by a softmax kernel: P itself unless it is bfloat16."""
    return run.empty(P.shape, np.float32) if P.dtype == np.uint16 else P


def _rows(kernel: str, P: Array) -> tuple[Launch, tuple[np.int32, np.int32]]:
    """One warp a row of (N, S, S)."""
    n, s, _ = P.shape
    launch = Launch(kernel, (-(-n * s // _WARPS),), (32 * _WARPS, 1, 1), 0, P.dtype)
    return launch, (np.int32(n * s), np.int32(s))


def _small(run: Device, q: Array, k: Array, v: Array, y: Array, P: Array, scale: np.floating) -> None:
    launch = _images("attention.attention_small", q, backward=False)
    run.launch(launch, q, k, v, y, P, np.int32(q.shape[1]), np.int32(q.shape[2]), scale)


def _small_back(
    run: Device,
    q: Array,
    k: Array,
    v: Array,
    P: Array,
    dy: Array,
    dq: Array,
    dk: Array,
    dv: Array,
    scale: np.floating,
) -> None:
    launch = _images("attention.attention_small_back", q, backward=True)
    run.launch(launch, q, k, v, P, dy, dq, dk, dv, np.int32(q.shape[1]), np.int32(q.shape[2]), scale)


def _images(kernel: str, q: Array, *, backward: bool) -> Launch:
    """One block an image, of a thread for each 4x4 tile of its largest product."""
    n, s, c = q.shape
    tiles = -(-s // 4) * -(-max(s, c) // 4)
    threads = min(256, max(64, 32 * -(-tiles // 32)))
    shared = shared_bytes(s, c, real_of(q.dtype).itemsize, backward=backward)
    return Launch(kernel, (n,), (threads, 1, 1), shared, q.dtype)


def shared_bytes(s: int, c: int, itemsize: int, *, backward: bool) -> int:
    """What a block needs for one image: q, k, v (and dy), P (and its gradient), as the kernel's `Tiles` lie."""
    rows, wide, square = 4 * -(-s // 4), 4 * -(-c // 4) + 4, 4 * -(-s // 4) + 4
    return rows * ((4 * wide + 2 * square) if backward else (3 * wide + square)) * itemsize
