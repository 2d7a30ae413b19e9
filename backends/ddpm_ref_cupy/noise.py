"""The counted random numbers of `ddpm_ref.random` on the device, bit for bit, alone and fused with Eqs. 4 and 11.

The functions named `_at` are for graphs: what varies from one replay to the next (the step or t, in a slot of an int32
array `counters`, and each image's t) is read on the device, all arrays are the caller's, and nothing is allocated or
uploaded. They launch the same arithmetic and so give the same bits.
"""

from typing import Any, NamedTuple

import numpy as np

from ddpm_ref import forward, random, reverse
from ddpm_ref.checks import Array, Steps, check_same_shape, check_step
from ddpm_ref.nn.ops import Backward
from ddpm_ref.random import Purpose
from ddpm_ref.schedule import Schedule, Table
from ddpm_ref_cupy.device import Device, Launch, real_of

BLOCK = 256  # threads, each of which makes four numbers
MOST_BLOCKS = 1 << 16
PREDICTS_X_0, MEAN_FROM_X_0, CLIP = 1, 2, 4  # of `p_sample`'s form, as in noise.cu


def launch(kernel: str, images: int, count: int, dtype: Any = np.float32) -> Launch:
    """A thread for each four numbers of each image; beyond `MOST_BLOCKS` blocks each thread takes several."""
    blocks = -(-images * -(-count // 4) // BLOCK)
    return Launch(f"noise.{kernel}", (min(blocks, MOST_BLOCKS),), (BLOCK,), real=dtype)


def _last(purpose: Purpose, layer: int = 0) -> np.uint32:
    return np.uint32(int(purpose) | layer << 8)


def _count(x: Array) -> int:
    return int(np.prod(x.shape[1:]))


def numbers(run: Device, samples: Any) -> Array:
    """The images' numbers on the device, as kernels want them: (N,) uint32."""
    return run.to_device(np.asarray(samples).astype(np.uint32))


# --- draws -----------------------------------------------------------------------------------------------------------


def normal(
    run: Device, seed: int, purpose: Purpose, step: int, samples: Any, shape: tuple[int, ...], *, layer: int = 0
) -> Array:
    """`random.normal`: (N, *shape) float32."""
    return _draw(run, "normal", seed, purpose, step, samples, shape, layer)


def uniform(
    run: Device, seed: int, purpose: Purpose, step: int, samples: Any, shape: tuple[int, ...], *, layer: int = 0
) -> Array:
    """`random.uniform`: (N, *shape) float32."""
    return _draw(run, "uniform", seed, purpose, step, samples, shape, layer)


def _draw(
    run: Device, kernel: str, seed: int, purpose: Purpose, step: int, samples: Any, shape: tuple[int, ...], layer: int
) -> Array:
    ids = random._checked(seed, step, samples, layer)
    out = run.empty((len(ids), *shape), np.float32)
    count = int(np.prod(shape))
    if len(ids) * count:
        stream = np.uint64(seed), np.uint32(step), _last(purpose, layer)
        how = launch(kernel, len(ids), count)
        run.launch(how, out, numbers(run, ids), np.int64(len(ids)), np.int64(count), *stream)
    return out


def normal_at(
    run: Device, out: Array, seed: int, purpose: Purpose, counters: Array, slot: int, samples: Array, *, layer: int = 0
) -> None:
    """Normals of the step in counters[slot] into out, (N, ...) float32.  samples: (N,) uint32 on the device."""
    _draw_at(run, "normal_at", out, seed, purpose, counters, slot, samples, layer)


def uniform_at(
    run: Device, out: Array, seed: int, purpose: Purpose, counters: Array, slot: int, samples: Array, *, layer: int = 0
) -> None:
    """Uniforms of the step in counters[slot] into out, (N, ...) float32.  samples: (N,) uint32 on the device."""
    _draw_at(run, "uniform_at", out, seed, purpose, counters, slot, samples, layer)


def _draw_at(
    run: Device, kernel: str, out: Array, seed: int, purpose: Purpose, counters: Array, slot: int, samples: Array,
    layer: int,
) -> None:  # fmt: skip
    n, count = len(out), _count(out)
    stream = np.uint64(seed), counters, np.int32(slot), _last(purpose, layer)
    run.launch(launch(kernel, n, count), out, samples, np.int64(n), np.int64(count), *stream)


def integers_at(
    run: Device, out: Array, seed: int, purpose: Purpose, counters: Array, slot: int, samples: Array, n: int,
    lowest: int = 0,
) -> None:  # fmt: skip
    """lowest + `random.integers` of the step in counters[slot] into out, (N,) int32; n < 2³¹.

    With `Purpose.T`, n = T and lowest = 1 these are line 3 of Algorithm 1.
    """
    stream = np.uint64(seed), counters, np.int32(slot), _last(purpose)
    how = launch("integers_at", len(out), 4)
    run.launch(how, out, samples, np.int64(len(out)), *stream, np.uint32(n), np.int32(lowest))


class Draws(NamedTuple):
    """Uniforms of dropout that are drawn where they are used: for `CupyBackend.dropout`, in place of an array."""

    seed: int
    counters: Array
    slot: int
    samples: Array
    layer: int


def dropout_at(
    run: Device, x: Array, rate: float, seed: int, counters: Array, slot: int, samples: Array, *, layer: int = 0
) -> tuple[Array, Backward]:
    """`ops.dropout` by the uniforms of the step in counters[slot], its bits, keeping nothing.

    The adjoint draws them again, so the step in counters[slot] must be the same then.
    """

    def masked(x: Array) -> Array:
        x = run.contiguous(x)
        y, n, count = run.empty(x.shape, x.dtype), len(x), _count(x)
        stream = np.uint64(seed), counters, np.int32(slot), _last(Purpose.DROPOUT, layer)
        how, keep = launch("dropout_at", n, count, x.dtype), real_of(x.dtype).type(1 / (1 - rate))
        run.launch(how, x, y, samples, np.int64(n), np.int64(count), *stream, np.float32(rate), keep)
        return y

    return masked(x), masked


# --- Eq. 4 -----------------------------------------------------------------------------------------------------------


def noising_tables(schedule: Schedule, dtype: Any) -> tuple[Table, Table]:
    """√ᾱ_t and √(1 - ᾱ_t), computed in float64 and rounded once: (T+1,) each, of `q_sample_at`."""
    abar = schedule.alpha_bar
    return np.sqrt(abar).astype(dtype), np.sqrt(1 - abar).astype(dtype)


def q_sample(
    run: Device, schedule: Schedule, x_0: Array, t: Steps, seed: int, step: int, samples: Any
) -> tuple[Array, Array]:
    """x_t and ε of Eq. 4, both as x_0."""
    check_same_shape(x_0=x_0)
    check_step(schedule.T, t, x_0)
    ids = _ids(seed, step, samples, x_0)
    steps = np.broadcast_to(np.asarray(t), len(x_0))
    tables = [run.to_device(table[steps]) for table in noising_tables(schedule, x_0.dtype)]
    x_0 = run.contiguous(x_0)
    x_t, eps = run.empty(x_0.shape, x_0.dtype), run.empty(x_0.shape, x_0.dtype)
    if x_0.size:
        n, count = len(x_0), _count(x_0)
        stream = np.uint64(seed), np.uint32(step), _last(Purpose.EPS)
        how = launch("q_sample", n, count, x_0.dtype)
        run.launch(how, x_t, eps, x_0, *tables, numbers(run, ids), np.int64(n), np.int64(count), *stream)
    return x_t, eps


def q_sample_at(
    run: Device, x_t: Array, eps: Array, x_0: Array, tables: tuple[Array, Array], t: Array, seed: int, counters: Array,
    slot: int, samples: Array,
) -> None:  # fmt: skip
    """Eq. 4 into x_t and eps.  tables: `noising_tables` on the device.  t: (N,) int32.  samples: (N,) uint32."""
    n, count = len(x_0), _count(x_0)
    stream = np.uint64(seed), counters, np.int32(slot), _last(Purpose.EPS)
    how = launch("q_sample_at", n, count, x_0.dtype)
    run.launch(how, x_t, eps, x_0, *tables, t, samples, np.int64(n), np.int64(count), *stream)


# --- Algorithm 2, lines 3 and 4 --------------------------------------------------------------------------------------


def takes(x_t: Array, t: Steps, output: Array, predicts: str, var: Any) -> bool:
    """Whether `p_sample` has a kernel: one t and dtype, no prediction of μ, a variance that is not the network's."""
    fixed = not (isinstance(var, str) and var == "learned")
    known = predicts in ("eps", "x_0", "v") and x_t.dtype in (np.float32, np.float64)
    return bool(fixed and known and x_t.dtype == output.dtype and x_t.ndim and np.ndim(t) == 0)


def reverse_coefficients(
    schedule: Schedule, t: Steps, dtype: Any, *, predicts: str, var: str | Table, clip: bool, temperature: float
) -> tuple[Table, int]:
    """k_0, k_1, k_2, k_3, σ of noise.cu's reverse step, (len(t), 5) rounded to dtype, and its form.

    t: (n,) steps.  As `reverse.p_sample`: float64 up to the rounding, but σ = temperature · √σ_t² in dtype.
    Raises ValueError where ε says nothing of x_0.
    """
    t = np.asarray(t)
    abar = schedule.alpha_bar[t]
    none = np.zeros_like(abar)
    if predicts == "eps":
        forward.check_eps_predictable(schedule, t)
        k = [1 / np.sqrt(abar), np.sqrt(1 - abar) / np.sqrt(abar)]
    else:
        k = [np.sqrt(abar), np.sqrt(1 - abar)] if predicts == "v" else [none, none]
    if predicts == "eps" and not clip:
        k += [1 / np.sqrt(schedule.alpha[t]), reverse.mean_slope(schedule, t, "eps")]
        form = 0
    else:
        k += reversed(forward.posterior_coefficients(schedule, t))
        form = MEAN_FROM_X_0 | PREDICTS_X_0 * (predicts == "x_0") | CLIP * clip
    variance = reverse.reverse_variance(schedule, var)[t].astype(dtype)
    sigma = float(temperature) * np.sqrt(variance)
    return np.stack([*(c.astype(dtype) for c in k), sigma], axis=-1), form


def reverse_table(
    schedule: Schedule, dtype: Any, *, start: int, predicts: str, var: str | Table, clip: bool, temperature: float
) -> tuple[Table, int]:
    """`reverse_coefficients` of t = 0 … start, (start + 1, 5), row 0 being zeros, and the form: of `p_sample_at`."""
    kinds = dict(predicts=predicts, var=var, clip=clip, temperature=temperature)
    rows, form = reverse_coefficients(schedule, np.arange(1, start + 1), dtype, **kinds)  # type: ignore[arg-type]
    return np.concatenate([np.zeros((1, 5), dtype), rows]), form


def p_sample(
    run: Device, schedule: Schedule, x_t: Array, t: int, output: Array, seed: int, samples: Any, *, predicts: str,
    var: str | Table, clip: bool, temperature: float,
) -> tuple[Array, Array]:  # fmt: skip
    """One step of Algorithm 2: x_{t-1} and x̂_0, where `takes` says so."""
    check_same_shape(x_t=x_t, **{"eps" if predicts == "eps" else "output": output})
    check_step(schedule.T, t, x_t)
    t = int(t)
    kinds = dict(predicts=predicts, var=var, clip=bool(clip), temperature=temperature)
    k, form = reverse_coefficients(schedule, [t], x_t.dtype, **kinds)  # type: ignore[arg-type]
    ids = _ids(seed, t, samples, x_t)
    x_t, output = run.contiguous(x_t), run.contiguous(output)
    x_prev, x_0_hat = run.empty(x_t.shape, x_t.dtype), run.empty(x_t.shape, x_t.dtype)
    if x_t.size:
        n, count = len(x_t), _count(x_t)
        stream = np.uint64(seed), np.uint32(t), _last(Purpose.Z)
        how = launch("p_sample", n, count, x_t.dtype)
        run.launch(
            how, x_prev, x_0_hat, x_t, output, numbers(run, ids), np.int64(n), np.int64(count), *stream, *k[0],
            np.int32(form),
        )  # fmt: skip
    return x_prev, x_0_hat


def p_sample_at(
    run: Device, x_prev: Array, x_0_hat: Array, x_t: Array, output: Array, table: Array, form: int, seed: int,
    counters: Array, slot: int, samples: Array,
) -> None:  # fmt: skip
    """The reverse step from t = counters[slot]; x_prev may be x_t.  table, form: `reverse_table`, on the device."""
    n, count = len(x_t), _count(x_t)
    stream = np.uint64(seed), counters, np.int32(slot), _last(Purpose.Z)
    how = launch("p_sample_at", n, count, x_t.dtype)
    run.launch(
        how, x_prev, x_0_hat, x_t, output, samples, np.int64(n), np.int64(count), *stream, table, np.int32(form)
    )  # fmt: skip


def _ids(seed: int, step: int, samples: Any, x: Array) -> Array:
    ids = random._checked(seed, step, samples, 0)
    if len(ids) != len(x):
        raise ValueError(f"samples: wanted one number for each of the {len(x)} images, got {len(ids)}")
    return ids
