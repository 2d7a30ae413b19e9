"""Adam, clipping and EMA over the flat vector, against the textbook written out in float64."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpm_ref.checks import Array
from ddpm_ref.nn import optim
from ddpm_ref.nn.optim import AdamSettings, gradient_norm, update


def textbook(theta: Array, gradients: list[Array], s: AdamSettings) -> tuple[Array, Array]:
    """Parameters and their average after all steps: one line for each line of the algorithm."""
    theta = theta.astype(np.float64)
    m, v, average = np.zeros_like(theta), np.zeros_like(theta), theta
    for k, g in enumerate(gradients, start=1):
        norm = np.linalg.norm(g)
        if s.clip_norm is not None and norm > s.clip_norm:
            g = g / norm * s.clip_norm
        m = s.beta_1 * m + (1 - s.beta_1) * g
        v = s.beta_2 * v + (1 - s.beta_2) * g**2
        m_hat, v_hat = m / (1 - s.beta_1**k), v / (1 - s.beta_2**k)
        lr = s.lr if k > s.warmup else s.lr * k / s.warmup
        theta = theta - lr * m_hat / (np.sqrt(v_hat) + s.epsilon)
        average = theta if k == 1 else s.ema * average + (1 - s.ema) * theta
    return theta, average


def run(theta: Array, gradients: list[Array], s: AdamSettings) -> tuple[Array, Array, Array, Array]:
    """theta, m, v and the average after all steps of `update`, in theta's dtype."""
    theta = theta.copy()
    m, v, average = np.zeros_like(theta), np.zeros_like(theta), theta.copy()
    for k, g in enumerate(gradients, start=1):
        update(theta, g.astype(theta.dtype), m, v, average, k, s)
    return theta, m, v, average


def problem(seed: int, size: int, steps: int, scale: float = 1.0) -> tuple[Array, list[Array]]:
    """A start, and gradients whose norms vary a hundredfold around scale, so that some steps clip and some do not."""
    rng = np.random.default_rng(seed)
    norms = scale * 10 ** rng.uniform(-1, 1, steps) / math.sqrt(size)
    return rng.standard_normal(size), [norm * rng.standard_normal(size) for norm in norms]


# ---- the update

SETTINGS = {
    "the defaults": AdamSettings(),
    "without warm-up": AdamSettings(warmup=0, lr=0.01),
    "past the warm-up": AdamSettings(warmup=7, lr=0.1, ema=0.9),
    "without clipping": AdamSettings(warmup=0, lr=0.05, clip_norm=None, ema=0.5),
    "always clipping": AdamSettings(warmup=0, lr=0.05, clip_norm=1e-3, ema=0.5),
    "a large epsilon": AdamSettings(warmup=0, lr=0.05, epsilon=0.3, ema=0.5),
    "other betas": AdamSettings(warmup=2, lr=0.02, beta_1=0.5, beta_2=0.7, ema=0.3),
    "no memory": AdamSettings(warmup=0, lr=0.02, beta_1=0.0, beta_2=0.0, ema=0.0),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_forty_steps_are_the_textbooks(name: str) -> None:
    theta, gradients = problem(1, 50, 40)
    expected, average = textbook(theta, gradients, SETTINGS[name])
    found, _, _, found_average = run(theta, gradients, SETTINGS[name])
    moved = np.abs(expected - theta).max()
    assert moved > 1e-8
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9 * moved)
    np.testing.assert_allclose(found_average, average, rtol=0, atol=1e-9 * moved)


some_settings = st.builds(
    AdamSettings,
    lr=st.floats(0, 1),
    warmup=st.integers(0, 9),
    beta_1=st.floats(0, 0.99),
    beta_2=st.floats(0, 0.999),
    epsilon=st.floats(1e-8, 1),
    clip_norm=st.none() | st.floats(1e-3, 10),
    ema=st.floats(0, 0.99),
)


@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(1, 12), some_settings)
def test_any_settings_are_the_textbooks(seed: int, size: int, steps: int, s: AdamSettings) -> None:
    theta, gradients = problem(seed, size, steps)
    expected, average = textbook(theta, gradients, s)
    found, _, _, found_average = run(theta, gradients, s)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found_average, average, rtol=1e-9, atol=1e-9)


def test_the_moments_are_those_of_the_clipped_gradient() -> None:
    g = np.array([3.0, 4.0])  # norm 5, clipped to (0.6, 0.8)
    _, m, v, _ = run(np.zeros(2), [g], AdamSettings(beta_1=0.9, beta_2=0.999))
    np.testing.assert_allclose(m, [0.06, 0.08], rtol=1e-12)
    np.testing.assert_allclose(v, [0.36e-3, 0.64e-3], rtol=1e-12)


def test_the_first_step_moves_every_parameter_by_the_rate_against_its_gradient() -> None:
    s = AdamSettings(lr=0.1, warmup=0, epsilon=1e-12)
    theta, _, _, average = run(np.zeros(3), [np.array([1e-3, -0.5, 0.2])], s)
    np.testing.assert_allclose(theta, [-0.1, 0.1, -0.1], rtol=1e-6)
    np.testing.assert_array_equal(average, theta)


def test_the_average_starts_as_a_copy_of_the_first_parameters_whatever_it_held() -> None:
    theta, gradients = problem(2, 9, 2)
    m, v, average = np.zeros(9), np.zeros(9), np.full(9, 1e30)
    update(theta, gradients[0], m, v, average, 1, AdamSettings())
    np.testing.assert_array_equal(average, theta)
    before = average.copy()
    update(theta, gradients[1], m, v, average, 2, AdamSettings(ema=0.75))
    np.testing.assert_allclose(average, 0.75 * before + 0.25 * theta, rtol=1e-14)


@pytest.mark.parametrize("chunk", [1, 7, 50, 1 << 20])
def test_the_chunk_size_changes_nothing(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    theta, gradients = problem(3, 50, 5)
    expected = run(theta, gradients, AdamSettings(warmup=0))
    monkeypatch.setattr(optim, "_CHUNK", chunk)
    for found, wanted in zip(run(theta, gradients, AdamSettings(warmup=0)), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_float32_stays_float32_and_near_float64() -> None:
    theta, gradients = problem(4, 50, 20)
    s = AdamSettings(warmup=0, lr=0.01, ema=0.9)
    for found, exact in zip(run(theta.astype(np.float32), gradients, s), run(theta, gradients, s), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5 * np.abs(exact).max())


def test_the_norm_before_clipping_is_returned_and_the_gradient_left_as_it_was() -> None:
    theta, (g,) = problem(5, 300, 1, scale=50.0)
    copy = g.copy()
    g.flags.writeable = False  # writing into it would raise
    norm = update(theta, g, np.zeros(300), np.zeros(300), np.zeros(300), 1, AdamSettings())
    np.testing.assert_array_equal(g, copy)
    assert norm == pytest.approx(np.linalg.norm(g), rel=1e-12) and norm > 1


def test_a_rate_of_0_leaves_the_parameters_and_still_collects_the_moments() -> None:
    theta, gradients = problem(6, 9, 3)
    found, m, v, average = run(theta, gradients, AdamSettings(lr=0.0))
    np.testing.assert_array_equal(found, theta)
    np.testing.assert_allclose(average, theta, rtol=1e-14)
    assert np.all(m != 0) and np.all(v > 0)


def test_a_gradient_of_0_moves_nothing_from_rest() -> None:
    found, m, v, _ = run(np.ones(4), [np.zeros(4)] * 3, AdamSettings(warmup=0))
    assert np.all(found == 1) and not m.any() and not v.any()


# ---- the norm


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [0, 1, 1000, (1 << 16) - 1, 1 << 16, (1 << 17) + 3])
def test_gradient_norm_is_the_euclidean_norm(size: int, dtype: type) -> None:
    g: Array = np.random.default_rng(size).standard_normal(size).astype(dtype)
    norm = gradient_norm(g)
    assert isinstance(norm, float)
    assert norm == pytest.approx(np.linalg.norm(g.astype(np.float64)), rel=1e-6 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_gradient_shows_in_the_norm_and_changes_nothing(bad: float) -> None:
    g = np.ones(1000)
    g[500] = bad
    assert str(gradient_norm(g)) == str(bad)
    state = np.random.default_rng(7).random((4, 1000))
    before = state.copy()
    theta, m, v, average = state
    assert str(update(theta, g, m, v, average, 2, AdamSettings())) == str(bad)
    np.testing.assert_array_equal(state, before)


# ---- the settings


def test_the_defaults_are_the_papers_and_the_released_codes() -> None:
    s = AdamSettings()
    assert (s.lr, s.warmup, s.beta_1, s.beta_2, s.epsilon) == (2e-4, 5000, 0.9, 0.999, 1e-8)
    assert (s.clip_norm, s.ema) == (1.0, 0.9999)


def test_the_rate_rises_linearly_over_the_warm_up_and_stays() -> None:
    s = AdamSettings(lr=0.5, warmup=10)
    rates = [s.learning_rate(k) for k in (1, 2, 5, 9, 10, 11, 10**6)]
    assert rates == pytest.approx([0.05, 0.1, 0.25, 0.45, 0.5, 0.5, 0.5])
    assert AdamSettings(lr=0.5, warmup=0).learning_rate(1) == AdamSettings(lr=0.5, warmup=1).learning_rate(1) == 0.5


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("lr", [-1e-9, math.nan, math.inf]),
        ("warmup", [-1, 1.5, True, "5"]),
        ("beta_1", [-0.1, 1.0, 1.5, math.nan]),
        ("beta_2", [-0.1, 1.0, 1.5, math.nan]),
        ("ema", [-0.1, 1.0, 1.5, math.nan]),
        ("epsilon", [0.0, -1e-8, math.nan]),
        ("clip_norm", [0.0, -1.0, math.nan]),
    ],
)
def test_a_setting_out_of_range_is_an_error_that_names_it(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"^{name}: wanted .*got {value!r}$"):
            AdamSettings(**{name: value})


def test_the_norm_of_a_float32_gradient_neither_overflows_nor_vanishes() -> None:
    for size in (1e25, 1e-25):
        assert gradient_norm(np.full(4, size, np.float32)) == pytest.approx(2 * size, rel=1e-6)
