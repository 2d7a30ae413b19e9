"""`Backend.group_norm`, fused with SiLU: launches of `kernels/norm.cu` and `norm_chunks.cu`.

An image's channels are cut into slabs, whole groups that one block normalises. Where all positions of a slab fit into a
block's shared memory, x is read once: one launch each way, in which the last block of each slab adds dγ and dβ over the
images. Otherwise the positions are cut into chunks, and the statistics of all chunks come first: two launches forward,
four back. Kept for the adjoint: x, and mean and r = 1/√(var + ε) of each group. Images may be stored as bfloat16; all
else is float32 then.
"""

from collections.abc import Iterator
from math import lcm
from typing import NamedTuple

import numpy as np

from ddpm_ref.checks import Array
from ddpm_ref.nn.ops import Backward
from ddpm_ref_cupy.device import Device, Launch, real_of

THREADS = 256  # of a block, at most
FLAG = 16  # bytes of shared memory that the kernel declares itself
SLABS = 1024  # at most of an image held in parts: norm.cu counts the blocks of each
RESIDENT = 3 * THREADS  # threads on a processor at a time, by their registers (norm.cuh)
_CHUNKED = 32  # channels of a slab that is not held, at most, or a line of memory, which may be more
_LINE = 128  # bytes
_LEAST_CHUNK = 64  # positions


class Plan(NamedTuple):
    """How one pass is cut into blocks.

    wide: channels of a slab, whole groups and vectors.  vector: channels a thread reads at once, 8 of bfloat16, else 4
    or 1.
    slabs, chunks: of each image; chunk: positions.  held: one chunk, all of it in shared memory.
    """

    wide: int
    vector: int
    slabs: int
    threads: int
    shared: int
    chunks: int
    chunk: int
    held: bool

    def launch(self, kernel: str, n: int, real: np.dtype) -> Launch:
        """Of n images; an image's slabs are neighbours, chunks are the second axis."""
        file = "norm" if self.held else "norm_chunks"
        return Launch(f"{file}.{kernel}", (self.slabs * n, self.chunks), (self.threads, 1, 1), self.shared, real)


def plan(run: Device, n: int, s: int, c: int, width: int, itemsize: int, *, arrays: int) -> Plan:
    """The cheapest way to normalise (N, S, C), by `_cost`; arrays: how many are held, 1 forward and 2 back."""
    vector = next(v for v in ((8, 1) if itemsize == 2 else (4, 1)) if c % v == 0)
    unit = lcm(width, vector)
    most = run.shared_limit - FLAG
    held = [p for p in _held(s, c, unit, vector, itemsize, arrays) if p.shared <= most and p.slabs <= SLABS]
    return min(
        [*held, _chunked(run, n, s, c, unit, vector, itemsize)], key=lambda p: _cost(run, p, n, s, c, itemsize, arrays)
    )


def _held(s: int, c: int, unit: int, vector: int, itemsize: int, arrays: int) -> Iterator[Plan]:
    """Every width of slab, from the narrowest, all positions of which are held."""
    for wide in range(unit, c + 1, unit):
        vectors = s * (wide // vector)
        threads = min(THREADS, max(64, 1 << (-(-vectors // 8) - 1).bit_length()))  # eight or more vectors each
        shared = arrays * s * wide * itemsize + _sums(wide, vector, threads, arrays, itemsize)
        yield Plan(wide, vector, -(-c // wide), threads, shared, 1, s, True)


def _sums(wide: int, vector: int, threads: int, arrays: int, itemsize: int) -> int:
    """Bytes of a block besides what is held: sums of each thread's channels, two of a channel, four of a group."""
    return (arrays * (threads * vector + wide) + 6 * wide) * max(4, itemsize)


def _chunked(run: Device, n: int, s: int, c: int, unit: int, vector: int, itemsize: int) -> Plan:
    """Enough chunks for four blocks a processor, none so short that its sums cost more than its numbers."""
    wide = unit * max(1, min(c, max(_CHUNKED, _LINE // itemsize)) // unit)
    slabs = -(-c // wide)
    chunks = min(-(-s // _LEAST_CHUNK), max(1, -(-4 * run.processors // (n * slabs))))
    chunk = -(-s // chunks)
    shared = _sums(wide, vector, THREADS, 2, itemsize)
    return Plan(wide, vector, slabs, THREADS, shared, -(-s // chunk), chunk, False)


def _cost(run: Device, p: Plan, n: int, s: int, c: int, itemsize: int, arrays: int) -> float:
    """An estimate of the time, in bytes moved at full speed: only to choose among plans.

    Memory is read in sectors of 32 bytes and fetched in twos, of which a narrow slab wastes a part (its neighbour may
    find it in the cache); few blocks a processor leave it idle between reading and writing, and so does a last round
    with few blocks; a launch costs what 8 MB do.
    """
    line = p.wide * itemsize
    narrow = line / (32 * -(-line // 32)) * (0.7 + 0.3 * line / (64 * -(-line // 64)))
    resident = max(1, min(RESIDENT // p.threads, run.shared_limit // (p.shared + 1024)))
    busy = 0.75 if resident == 1 else 0.9 if resident == 2 else 1.0
    blocks, places = n * p.slabs * p.chunks, resident * run.processors
    filled = blocks / (-(-blocks // places) * places) if blocks > places else min(1.0, blocks / run.processors)
    passes, launches = (1 + arrays, 1) if p.held else (1 + 2 * arrays, 1 + arrays)
    return n * s * c * itemsize * passes / (narrow * busy * filled) + launches * 8e6


STATS = 2  # of `how` in norm.cuh


class Deferred:
    """SiLU(GroupNorm(x)), not computed yet: a convolution may do so as it reads x. Has an array's shape and dtype."""

    def __init__(self, run: Device, x: Array, gamma: Array, beta: Array, groups: int) -> None:
        self._run, self.x, self.gamma, self.beta, self.groups = run, x, gamma, beta, groups
        self.shape, self.dtype, self.width = x.shape, x.dtype, x.shape[-1] // groups

    def array(self) -> Array:
        """Computed."""
        y, _ = self._forward(True)
        return y

    def stats(self) -> Array:
        """(2, N, G): means, and 1/√(var + ε)."""
        return self._forward(STATS)[1]

    def _forward(self, how: int) -> tuple[Array, Array]:
        run, x = self._run, self.x
        stats = run.empty((2, len(x), self.groups), real_of(x.dtype))
        y = x if how == STATS else run.empty(x.shape, x.dtype)  # x is not written to
        _forward(run, x, self.gamma, self.beta, y, stats, x.size // (len(x) * x.shape[-1]), self.width, how)
        return y, stats


def group_norm(run: Device, x: Array, gamma: Array, beta: Array, groups: int, silu: bool) -> tuple[Array, Backward]:
    """`ops.group_norm`; in a pass whose adjoint is not asked for, `Deferred` where a convolution follows: behind SiLU.

    backward(dy, plus=None) -> dx + plus, dgamma, dbeta; plus: an array like x, as `pointwise.add` would add it.
    """
    x, gamma, beta = run.contiguous(x), run.contiguous(gamma), run.contiguous(beta)
    n, c = x.shape[0], x.shape[-1]
    if silu and run.kept is not None and x.dtype == np.uint16:
        return Deferred(run, x, gamma, beta, groups), no_adjoint  # type: ignore[return-value]
    s, width = x.size // (n * c), c // groups
    y, stats = run.empty(x.shape, x.dtype), run.empty((2, n, groups), real_of(x.dtype))
    _forward(run, x, gamma, beta, y, stats, s, width, silu)

    def backward(dy: Array, plus: Array | None = None) -> tuple[Array, Array, Array]:
        dx = run.empty(x.shape, x.dtype)
        sums = run.empty((2, c), real_of(x.dtype))
        plus = plus if plus is None else run.contiguous(plus)
        _backward(run, x, run.contiguous(dy), gamma, beta, stats, plus, dx, sums, s, width, silu)
        return dx, sums[0], sums[1]

    return y, backward


def no_adjoint(*_: Array) -> None:
    raise RuntimeError("a pass that keeps its filters has no adjoint")


def _forward(
    run: Device, x: Array, gamma: Array, beta: Array, y: Array, stats: Array, s: int, width: int, how: int
) -> None:
    """how: False, True for SiLU, or STATS: y is left alone."""
    n, c = x.shape[0], x.shape[-1]
    p = plan(run, n, s, c, width, x.itemsize, arrays=1)
    sizes = (np.int32(s), np.int32(c), np.int32(width), np.int32(p.wide), np.int32(p.vector))
    if p.held:
        run.launch(p.launch("norm_slab", n, x.dtype), x, gamma, beta, y, stats, *sizes, np.int32(how))
        return
    moments = run.empty((2, n, p.chunks, c // width), stats.dtype)
    run.launch(p.launch("norm_moments", n, x.dtype), x, moments, *sizes, np.int32(p.chunk))
    run.launch(
        p.launch("norm_apply", n, x.dtype), x, moments, gamma, beta, y, stats, *sizes, np.int32(how), np.int32(p.chunk)
    )


def _backward(
    run: Device,
    x: Array,
    dy: Array,
    gamma: Array,
    beta: Array,
    stats: Array,
    plus: Array | None,
    dx: Array,
    sums: Array,
    s: int,
    width: int,
    silu: bool,
) -> None:
    """dx, + plus if there is one, and dγ and dβ into the rows of sums."""
    n, c = x.shape[0], x.shape[-1]
    p = plan(run, n, s, c, width, x.itemsize, arrays=2)
    sizes = (np.int32(s), np.int32(c), np.int32(width), np.int32(p.wide), np.int32(p.vector), np.int32(silu))
    plus, added = (x, np.int32(0)) if plus is None else (plus, np.int32(1))
    of_images = run.empty((2, n, c), stats.dtype)
    if p.held:
        launch = p.launch("norm_slab_back", n, x.dtype)
        run.launch(launch, x, dy, gamma, beta, stats, plus, dx, of_images, sums, *sizes, added)
    else:
        of_chunks = run.empty((2, n, p.chunks, c), stats.dtype)
        chunk = np.int32(p.chunk)
        run.launch(p.launch("norm_sums", n, x.dtype), x, dy, gamma, beta, stats, of_chunks, *sizes, chunk)
        column_sums(run, of_chunks.reshape(2 * n, p.chunks, c), of_images.reshape(2 * n, c), x.dtype)
        launch = p.launch("norm_back", n, x.dtype)
        run.launch(launch, x, dy, gamma, beta, stats, of_images, plus, dx, *sizes, added, chunk)
        column_sums(run, of_images, sums, x.dtype)


def column_sums(run: Device, x: Array, out: Array, real: np.dtype) -> None:
    """out[i, c] = Σ_r x[i, r, c], in an order that depends on the shape alone.  x: (I, R, C)   out: (I, C)

    real: as `Launch.real`, of the compiled file that runs anyway.
    """
    i, rows, c = x.shape
    launch = Launch("norm_chunks.norm_columns", (-(-c // 32), i), (256, 1, 1), 0, real)
    run.launch(launch, x, out, np.int32(rows), np.int32(c))
