"""The CUDA kernels of clipping, Adam and EMA, run on the CPU: NumPy's bits, in any order of threads."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cuda_host.host_device import ORDERS, HostDevice
from ddpm_ref_cupy import update as kernels
from hypothesis import assume, given
from hypothesis import strategies as st

from ddpm_ref.checks import Array
from ddpm_ref.nn import optim
from ddpm_ref.nn.optim import AdamSettings

Host = Callable[..., HostDevice]

sizes = st.integers(0, 70) | st.sampled_from([1023, 1024, 1025, 4097])
seeds, orders = st.integers(0, 2**32 - 1), st.sampled_from(ORDERS)
settings = st.builds(
    AdamSettings,
    lr=st.sampled_from([2e-4, 0.1]),
    warmup=st.sampled_from([0, 7]),
    beta_1=st.sampled_from([0.0, 0.9]),
    beta_2=st.sampled_from([0.0, 0.999]),
    epsilon=st.sampled_from([1e-8, 0.3]),
    clip_norm=st.sampled_from([None, 1e-3, 1.0, 1e9]),
    ema=st.sampled_from([0.0, 0.9999]),
)


def vectors(size: int, seed: int, dtype: Any = np.float32) -> list[Array]:
    """params, grads, m, v, ema."""
    made = list(np.random.default_rng(seed).standard_normal((5, size)).astype(dtype))
    made[3] = np.abs(made[3])
    return made


def on(run: HostDevice, arrays: list[Array]) -> list[Array]:
    return [run.to_device(a) for a in arrays]


def bits(arrays: list[Array]) -> list[bytes]:
    return [a.tobytes() for a in arrays]


def clip_factor(norm: float, s: AdamSettings) -> np.float32:
    return np.float32(1 if s.clip_norm is None or norm <= s.clip_norm else s.clip_norm / norm)


@given(sizes, seeds, settings, st.integers(1, 9), st.sampled_from([np.float32, np.float64]), orders)
def test_every_vector_has_numpys_bits(
    host: Host, size: int, seed: int, s: AdamSettings, step: int, dtype: Any, order: str
) -> None:
    run, theirs = host(order), vectors(size, seed, dtype)
    ours = on(run, theirs)
    norm = kernels.update(run, *ours, step, s)
    expected = optim.update(*theirs, step, s)
    assert norm == pytest.approx(expected, rel=1e-14, abs=0)
    # The norms' last bits may differ, with the order of summation; they reach float64's results alone.
    assume(clip_factor(norm, s) == clip_factor(expected, s))
    for a, b in zip(ours, theirs, strict=True):
        if dtype == np.float32:
            np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))
        else:
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


@given(st.integers(1, 40), seeds, settings, st.integers(1, 9), orders)
def test_a_step_counted_on_the_device_gives_the_same_bits(
    host: Host, size: int, seed: int, s: AdamSettings, step: int, order: str
) -> None:
    run, start = host(order), vectors(size, seed)
    called, counted = on(run, start), on(run, start)
    scalars = run.empty((kernels.SCALARS,), np.float64)
    norm = kernels.update(run, *called, step, s)
    counters = run.to_device(np.array([0, step], np.int32))
    kernels.update_at(run, *counted, counters, 1, scalars, s)
    assert scalars[0] == norm and bits(called) == bits(counted)


def test_many_steps_follow_numpy(host: Host) -> None:
    run, theirs = host("random"), vectors(37, 3)
    ours, s = on(run, theirs), AdamSettings(lr=0.01, warmup=5, clip_norm=2.0, ema=0.9)
    for step in range(1, 30):
        grads = np.random.default_rng(step).standard_normal(37).astype(np.float32)
        kernels.update(run, ours[0], run.to_device(grads), *ours[2:], step, s)
        optim.update(theirs[0], grads, *theirs[2:], step, s)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-9)


def test_the_norm_is_summed_in_float64_in_an_order_of_its_own(host: Host) -> None:
    grads = np.full(50_003, 1.1, np.float32)
    norms = set()
    for order in ORDERS:
        run = host(order)
        made = on(run, [np.zeros_like(grads), grads, *np.zeros((3, len(grads)), np.float32)])
        norms.add(kernels.update(run, *made, 1, AdamSettings()))
    assert len(norms) == 1
    assert norms.pop() == pytest.approx(math.sqrt(len(grads) * float(grads[0]) ** 2), rel=1e-13, abs=0)
    large = np.full((5, 100), 3e38, np.float32)  # its square is beyond float32
    assert kernels.update(host(), *on(host(), list(large)), 1, AdamSettings()) == pytest.approx(3e39, rel=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 17, 2_000])
def test_a_gradient_that_is_not_finite_changes_nothing(host: Host, bad: float, place: int) -> None:
    run, start = host(), vectors(2_001, 2)
    start[1][place] = bad
    ours = on(run, start)
    assert not math.isfinite(kernels.update(run, *ours, 3, AdamSettings()))
    assert bits(ours) == bits(start)


def test_vectors_that_do_not_begin_at_16_bytes_get_the_same_numbers(host: Host) -> None:
    run, theirs = host(), vectors(21, 5)
    ours = [run.to_device(np.concatenate([[0], a]).astype(np.float32))[1:] for a in theirs]
    kernels.update(run, *ours, 2, AdamSettings(clip_norm=None))
    optim.update(*theirs, 2, AdamSettings(clip_norm=None))
    assert bits(ours) == bits(theirs)


def test_launches_cover_the_vector() -> None:
    for n in (1, 1024, 1025, 35_746_307, 10**9):
        assert 1 <= kernels.sum_blocks(n) <= kernels.SUMS
        assert 1 <= kernels.apply_blocks(n) <= kernels.MOST_BLOCKS
    assert kernels.apply_blocks(35_746_307) * 4 * kernels.BLOCK >= 35_746_307


@pytest.mark.parametrize(
    "old, new",
    [
        ("if (!(norm < 1.0 / 0.0)) return;", ""),
        ("k > 1 ? ema : 0.0", "ema"),
        ("const i64 at = 4 * i;", "const i64 at = 4 * (i / 2);"),
        ("i64 i = 4 * whole + first_index(); i < n; i += index_step()) adam", "i64 i = 4 * whole; i < n; i++) adam"),
        ("norm <= clip_norm ? 1.0 : ", ""),
        ("pow(beta_2, k)", "pow(beta_2, k - 1)"),
        ("const double k = counters[slot]", "const double k = counters[0]"),
    ],
)
def test_a_change_of_the_kernels_text_shows(host: Host, old: str, new: str) -> None:
    run = host(replace={"update": [(old, new)]})
    wrong = False
    for bad, step in ((0.0, 1), (np.inf, 2)):
        theirs = vectors(37, 4)
        theirs[1][3] += bad
        ours, scalars = on(run, theirs), run.empty((kernels.SCALARS,), np.float64)
        s = AdamSettings(warmup=9, clip_norm=1e9)
        kernels.update_at(run, *ours, run.to_device(np.array([7, step], np.int32)), 1, scalars, s)
        optim.update(*theirs, step, s)
        wrong |= bits(ours) != bits(theirs)
    assert wrong
