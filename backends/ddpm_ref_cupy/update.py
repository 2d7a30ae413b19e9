"""Clipping, Adam and EMA of the flat vectors, `optim.update`: a deterministic norm, then one fused pass.

What depends on the step (warm-up, bias corrections, the clip factor) is computed on the device from a counter that lies
there, so that the same three launches serve a call and a replayed graph, with the same bits.
"""

import math

import numpy as np

from ddpm_ref.checks import Array
from ddpm_ref.nn.optim import AdamSettings
from ddpm_ref_cupy.device import Device, Launch

BLOCK = 256
SUMS = 512  # partial sums of the norm, at most
SCALARS = 5  # ‖g‖, clip factor, rate, 1/√(1-β₂^k), EMA's decay
MOST_BLOCKS = 1 << 16


def sum_blocks(n: int) -> int:
    """Blocks that sum n squares: one for each 4096 numbers, up to SUMS. The order of summation depends on n alone."""
    return min(max(1, -(-n // 4096)), SUMS)


def apply_blocks(n: int) -> int:
    """Blocks that update n numbers, four to a thread."""
    return min(max(1, -(-n // (4 * BLOCK))), MOST_BLOCKS)


def update(
    run: Device, params: Array, grads: Array, m: Array, v: Array, ema: Array, step: int, settings: AdamSettings
) -> float:
    """`optim.update`: all but grads in place; returns ‖g‖ before clipping, and changes nothing if it is not finite."""
    if not params.size:
        return 0.0
    counters = run.to_device(np.array([step], np.int32))
    scalars = run.empty((SCALARS,), np.float64)
    update_at(run, params, run.contiguous(grads), m, v, ema, counters, 0, scalars, settings)
    return float(run.to_host(scalars)[0])


def update_at(
    run: Device, params: Array, grads: Array, m: Array, v: Array, ema: Array, counters: Array, slot: int,
    scalars: Array, settings: AdamSettings,
) -> None:  # fmt: skip
    """One update of step k = counters[slot], an int32 from 1 on; for graphs.

    scalars: (SCALARS,) float64, written: the first is ‖g‖. If that is not finite, the vectors stay as they are; nothing
    here says so but the norm.
    """
    s, n, real = settings, params.size, params.dtype.type
    blocks = sum_blocks(n)
    partial = run.empty((blocks,), np.float64)
    run.launch(Launch("update.square_sums", (blocks,), (BLOCK,), real=real), grads, partial, np.int64(n))
    constants = s.lr, s.warmup, s.beta_1, s.beta_2, math.inf if s.clip_norm is None else s.clip_norm, s.ema
    run.launch(
        Launch("update.prepare", (1,), (BLOCK,), real=real),
        partial, np.int32(blocks), counters, np.int32(slot), scalars, *map(np.float64, constants),
    )  # fmt: skip
    rounded = map(real, (s.beta_1, 1 - s.beta_1, s.beta_2, 1 - s.beta_2, s.epsilon))
    how = Launch("update.apply", (apply_blocks(n),), (BLOCK,), real=real)
    run.launch(how, params, grads, m, v, ema, np.int64(n), scalars, *rounded)
