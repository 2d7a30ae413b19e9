"""Numba's clipping, Adam and EMA: NumPy's bits, whatever the threads, and nothing written outside the vectors."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

pytest.importorskip("numba", reason="the Numba backend is not installed here: pip install 'ddpm-ref[numba]'")

from ddpm_ref_numba import NumbaBackend, launch
from ddpm_ref_numba import update as kernels

from ddpm_ref.checks import Array
from ddpm_ref.nn import optim
from ddpm_ref.nn.optim import AdamSettings

sizes = st.integers(0, 70) | st.sampled_from([kernels.CHUNK - 1, kernels.CHUNK, 3 * kernels.CHUNK + 5])
seeds, threads = st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 3])
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


def vectors(size: int, seed: int) -> list[Array]:
    """params, grads, m, v, ema."""
    made = list(np.random.default_rng(seed).standard_normal((5, size)).astype(np.float32))
    made[3] = np.abs(made[3])
    return made


def clip_factor(norm: float, s: AdamSettings) -> np.float32:
    return np.float32(1 if s.clip_norm is None or norm <= s.clip_norm else s.clip_norm / norm)


@given(sizes, seeds, settings, st.integers(1, 3), threads)
def test_every_vector_has_numpys_bits(size: int, seed: int, s: AdamSettings, step: int, count: int) -> None:
    ours, theirs = vectors(size, seed), vectors(size, seed)
    with launch.guard():
        norm = NumbaBackend(count).update(*ours, step, s)
    expected = optim.update(*theirs, step, s)
    assert norm == pytest.approx(expected, rel=1e-14, abs=0)
    assume(clip_factor(norm, s) == clip_factor(expected, s))  # their last bits may differ: once in 10⁸ / 10¹⁶ sums
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


def test_the_norm_and_the_update_are_the_same_for_every_number_of_threads() -> None:
    results = []
    for count in (1, 2, 3):
        ours = vectors(100_003, 1)
        results.append((NumbaBackend(count).update(*ours, 2, AdamSettings(warmup=0)), ours))
    for norm, ours in results[1:]:
        assert norm == results[0][0]
        for a, b in zip(ours, results[0][1], strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_norm_is_summed_in_float64() -> None:
    grads = np.full(1_000_003, 1.1, np.float32)
    expected = math.sqrt(len(grads) * float(grads[0]) ** 2)
    assert kernels.gradient_norm(NumbaBackend(2), grads) == pytest.approx(expected, rel=1e-13, abs=0)
    large = np.full(100, 3e38, np.float32)  # its square is beyond float32
    assert kernels.gradient_norm(NumbaBackend(1), large) == pytest.approx(3e39, rel=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 17, 40_000])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float, place: int) -> None:
    ours = vectors(40_001, 2)
    ours[1][place] = bad
    before = [a.copy() for a in ours]
    assert not math.isfinite(NumbaBackend(2).update(*ours, 3, AdamSettings()))
    for a, b in zip(ours, before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_first_step_copies_the_parameters_to_their_average() -> None:
    params, grads, m, v, ema = vectors(33, 3)
    NumbaBackend(1).update(params, grads, m, v, ema, 1, AdamSettings(warmup=0))
    np.testing.assert_array_equal(ema, params)


def test_float64_and_strided_vectors_are_updated_by_numpys_body() -> None:
    for make in (lambda a: a.astype(np.float64), lambda a: np.repeat(a, 2)[::2]):
        ours, theirs = ([make(a) for a in vectors(50, 4)] for _ in range(2))
        assert NumbaBackend(2).update(*ours, 2, AdamSettings()) == optim.update(*theirs, 2, AdamSettings())
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_guard_finds_an_update_of_one_number_too_many() -> None:
    ours = vectors(20, 5)
    with launch.guard(), pytest.raises(AssertionError, match="wrote outside"):
        kernels.update_kernel(1, *ours, 21, *[0.5] * 10)
