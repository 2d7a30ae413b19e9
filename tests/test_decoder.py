"""The discretised decoder of Eq. 13, its gradient, and log Φ in both tails."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats
from strategies import derivative

from ddpm_ref import Schedule, discretized_gaussian_log_likelihood, reverse_variance
from ddpm_ref.checks import Array
from ddpm_ref.gaussian import erfcx, log_normal_cdf

U = np.finfo(np.float64).eps
LEVELS = (2, 3, 17, 256, 65536)
levels_of_images = st.sampled_from(LEVELS)
means = st.floats(-3, 3)
variances = st.floats(-12, 1).map(np.exp)


def grid(levels: int) -> Array:
    return np.linspace(-1, 1, levels)


def log_p(x_0: Any, mean: Any, var: Any, levels: int) -> Array:
    return discretized_gaussian_log_likelihood(np.asarray(x_0), np.asarray(mean), np.asarray(var), levels)[0]


def edges(x: Any, levels: int) -> tuple[Array, Array]:
    """Both edges of x's bin, ±∞ outside the grid."""
    half = 1 / (levels - 1)
    return np.where(x <= -1, -np.inf, x - half), np.where(x >= 1, np.inf, x + half)


def by_scipy(x: Any, mean: Any, var: Any, levels: int) -> tuple[Array, Array]:
    """log(Φ(b) - Φ(a)) through log_ndtr, and the relative error its cancellation leaves."""
    a, b = ((edge - mean) / np.sqrt(var) for edge in edges(x, levels))
    a, b = np.where(a + b > 0, -b, a), np.where(a + b > 0, -a, b)
    lower, upper = special.log_ndtr(a), special.log_ndtr(b)
    kept = -np.expm1(lower - upper)
    return upper + np.log(kept), 4 * U * (4 - upper) / kept


def by_quadrature(x: Any, mean: Any, var: Any, levels: int, nodes: int = 40) -> tuple[Array, Array, Array]:
    """log p, d log p / d mean and d log p / d var of inner bins by Gauss-Legendre: all terms positive, none cancel."""
    u, weight = np.polynomial.legendre.leggauss(nodes)
    d = (x[:, None] + u / (levels - 1) - mean) / np.sqrt(var)
    log_density = -d * d / 2 - np.log(2 * np.pi * var) / 2
    top = log_density.max(axis=1, keepdims=True)
    mass = weight / (levels - 1) * np.exp(log_density - top)
    p = mass.sum(axis=1)
    return (
        np.log(p) + top[:, 0],
        (mass * d).sum(axis=1) / p / np.sqrt(var),
        (mass * (d * d - 1)).sum(axis=1) / p / (2 * var),
    )


# --- Eq. 13 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", LEVELS)
@given(mean=means, var=variances)
def test_the_probabilities_of_all_grey_levels_sum_to_1(levels: int, mean: Any, var: Any) -> None:
    logs = log_p(grid(levels), mean, var, levels)
    np.testing.assert_allclose(special.logsumexp(logs), 0, atol=1e-12)


@pytest.mark.parametrize("levels", LEVELS)
@given(mean=means, var=variances)
def test_each_probability_is_the_difference_of_two_normal_cdfs(levels: int, mean: Any, var: Any) -> None:
    x = grid(levels)[:: max(1, levels // 300)]
    expected, error = by_scipy(x, mean, var, levels)
    known = error < 1e-3
    assert known.any()
    assert (np.abs(log_p(x, mean, var, levels) - expected) <= 1e-15 + error)[known].all()


@pytest.mark.parametrize("levels", [17, 256, 65536])
@given(mean=means, deviation=st.floats(-1, 3).map(np.exp))
def test_inner_bins_are_the_integral_of_the_density(levels: int, mean: Any, deviation: float) -> None:
    half = 1 / (levels - 1)
    var = (deviation * half) ** 2
    x = grid(levels)[1:-1]
    x = x[np.abs(x - mean) < 10 * np.sqrt(var)]
    got, backward = discretized_gaussian_log_likelihood(x, np.full_like(x, mean), np.full_like(x, var), levels)
    expected, d_mean, d_var = by_quadrature(x, mean, var, levels)
    # Narrow bins lose digits as their width in σ; the edges, differences of numbers near 1, lose 1/σ more.
    error = 100 * U / np.sqrt(var) * (1 + deviation)
    np.testing.assert_allclose(got, expected, rtol=0, atol=10 * error)
    got_mean, got_var = backward(np.ones_like(x))
    np.testing.assert_allclose(got_mean * np.sqrt(var), d_mean * np.sqrt(var), rtol=0, atol=100 * error)
    np.testing.assert_allclose(got_var * var, d_var * var, rtol=0, atol=1000 * error)


def test_the_outermost_bins_reach_to_infinity() -> None:
    for levels in LEVELS:
        half = 1 / (levels - 1)
        logs = log_p([-1.0, 1.0], 0.3, 0.04, levels)
        expected = special.log_ndtr([(-1 + half - 0.3) / 0.2, (0.3 - (1 - half)) / 0.2])
        np.testing.assert_allclose(logs, expected, rtol=1e-12)


def test_two_levels_split_the_line_at_zero() -> None:
    np.testing.assert_allclose(log_p([-1.0, 1.0], 0.5, 0.25, 2), special.log_ndtr([-1.0, 1.0]), rtol=1e-14)


@given(means, variances, levels_of_images)
def test_mirroring_data_and_mean_changes_nothing(mean: Any, var: Any, levels: int) -> None:
    x = grid(levels)[:: max(1, levels // 100)]
    np.testing.assert_allclose(log_p(x, mean, var, levels), log_p(-x, -mean, var, levels), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_float32_grey_levels_fall_into_their_own_bins(dtype: Any) -> None:
    for levels in LEVELS:
        x = grid(levels).astype(dtype)
        total = special.logsumexp(log_p(x, dtype(0.1), dtype(0.25), levels))
        np.testing.assert_allclose(total, 0, atol=1e-12 if dtype is np.float64 else 1e-6)


def test_it_broadcasts_as_the_reverse_step_does_and_is_float64() -> None:
    x_0 = np.zeros((2, 3, 3, 1), np.float32)
    value, backward = discretized_gaussian_log_likelihood(x_0, x_0 + 1, np.full((2, 1, 1, 1), 0.1, np.float32), 3)
    assert value.shape == x_0.shape and value.dtype == np.float64
    assert [g.shape for g in backward(np.ones_like(value))] == [x_0.shape] * 2


@given(st.integers(2, 300), means, variances)
def test_of_any_number_of_levels_the_probabilities_sum_to_1(levels: int, mean: float, var: float) -> None:
    np.testing.assert_allclose(special.logsumexp(log_p(grid(levels), mean, var, levels)), 0, atol=1e-11)


# --- the tails -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("far", [40, 100, 1e4])
def test_far_tails_are_finite_and_right(levels: int, side: int, far: float) -> None:
    sigma = 0.1
    x = np.unique(np.r_[grid(levels)[:: max(1, levels // 50)], 1.0])
    mean = side * (1 + far * sigma)
    value, backward = discretized_gaussian_log_likelihood(x, np.asarray(mean), np.asarray(sigma**2), levels)
    expected, error = by_scipy(x, mean, sigma**2, levels)
    assert np.isfinite(value).all()
    assert (np.abs(value - expected) <= error).all()
    # Beyond an edge d > 0 of a normal, d ≤ E[x] ≤ d + 1/d and d² ≤ E[x²] ≤ d² + 2: both gradients are such means.
    inside = np.isfinite(edges(x, levels)[side > 0])
    d = side * (mean - edges(x, levels)[side > 0][inside]) / sigma
    d_mean, d_var = (g[inside] for g in backward(np.ones_like(value)))
    assert inside.sum() == len(x) - 1
    slack = 1 + 1e-7
    assert (d <= -side * d_mean * sigma * slack).all() and (-side * d_mean * sigma <= (d + 1 / d) * slack).all()
    moment = 2 * sigma**2 * d_var + 1
    assert (d * d <= moment * slack).all() and (moment <= (d * d + 2) * slack).all()


def by_tanh(x: Any, mean: Any, var: Any, levels: int) -> Array:
    """The usual stand-in: Φ(u) ≈ ½ (1 + tanh(√(2/π) (u + 0.044715 u³))), probabilities floored at 1e-12."""
    below, above = (
        0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)))
        for u in ((edge - mean) / np.sqrt(var) for edge in (x - 1 / (levels - 1), x + 1 / (levels - 1)))
    )
    return np.log(np.maximum(above - below, 1e-12))


def test_in_the_far_tails_the_tanh_approximation_is_off_by_bits_and_this_is_not() -> None:
    """From 0.06 bits four σ away to dozens of bits at ten: there its floor takes over and its gradient is gone."""
    sigma = 0.01
    var = sigma**2
    for far, least in [(4, 0.05), (6, 1.0), (8, 5.0), (10, 20.0)]:
        x = np.array([0.0])
        mean = x - far * sigma
        exact, error = by_scipy(x, mean, var, 256)
        assert (np.abs(log_p(x, mean, var, 256) - exact) <= error).all()
        assert np.abs(by_tanh(x, mean, var, 256) - exact)[0] / np.log(2) > least, far


def test_the_certain_level_costs_nothing() -> None:
    value, backward = discretized_gaussian_log_likelihood(
        np.array([-1.0, 1.0]), np.array([-50.0, 50.0]), np.full(2, 0.01), 256
    )
    np.testing.assert_array_equal([value, *backward(np.ones(2))], 0)


# --- the gradient ----------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(-2, 2), st.floats(-3, 1)), min_size=1, max_size=8),
    st.sampled_from([2, 3, 17, 256]),
)
def test_the_gradient_is_that_of_the_value(elements: Any, levels: int) -> None:
    place, mean, log_var = np.array(elements).T
    x, var = grid(levels)[np.rint(place * (levels - 1)).astype(int)], np.exp(log_var)
    d = np.cos(np.arange(len(x)))
    value, backward = discretized_gaussian_log_likelihood(x, mean, var, levels)
    d_mean, d_var = backward(d)
    by_mean = derivative(lambda m: log_p(x, m, var, levels), mean, 1e-3 * np.sqrt(var))
    by_var = derivative(lambda v: log_p(x, mean, v, levels), var, 1e-3 * var)
    # In units of σ and of var the fourth-order difference is good to 1e-9 of the largest slope, plus rounding.
    slack = 1e-8 * (1 + np.abs(value))
    np.testing.assert_array_less(np.abs(d_mean - d * by_mean) * np.sqrt(var), slack)
    np.testing.assert_array_less(np.abs(d_var - d * by_var) * var, slack)


# --- L_0 of the paper ------------------------------------------------------------------------------------------------


def test_the_papers_distortion_beside_exact_and_noisy_means() -> None:
    """E[L_0] in bits/dim at x_0 = 0 with σ_1² = β̃_2: for the exact mean, and for errors ~ N(0, β̃_2)."""
    var = reverse_variance(Schedule.linear(), "beta")[1]
    assert f"{-log_p(0.0, 0.0, var, 256) / np.log(2):.4f}" == "1.3054"
    u, weight = np.polynomial.hermite_e.hermegauss(80)
    errors = u * np.sqrt(var)
    mean_loss = -(weight * log_p(0.0, errors, var, 256)).sum() / weight.sum()
    assert f"{mean_loss / np.log(2):.4f}" == "1.9630"
    assert f"{np.sqrt(var) * 127.5:.2f}" == "0.94"


@pytest.mark.parametrize("levels", [1, 0, -256, 256.0, True, None])
def test_levels_must_be_an_integer_of_2_or_more(levels: int) -> None:
    with pytest.raises(ValueError, match=f"levels: wanted an integer >= 2, got {levels!r}"):
        log_p(0.0, 0.0, 1.0, levels)


# --- Φ ---------------------------------------------------------------------------------------------------------------


def test_erfcx_agrees_with_scipy() -> None:
    y = np.r_[0, np.geomspace(1e-300, 1e300, 20_001), np.linspace(0, 60, 20_001)]
    np.testing.assert_allclose(erfcx(y), special.erfcx(y), rtol=5e-15)
    assert erfcx(np.inf) == 0
    assert erfcx(np.float32(2)).dtype == np.float64


def test_log_normal_cdf_agrees_with_scipy_in_both_tails() -> None:
    x = np.r_[np.linspace(-1000, -8, 5001), np.linspace(-8, 8, 5001), 0.0]
    np.testing.assert_allclose(log_normal_cdf(x), special.log_ndtr(x), rtol=1e-13)
    assert log_normal_cdf(np.float32(-1)).dtype == np.float64


@given(st.floats(-30, 8))
def test_log_normal_cdf_of_both_sides_sums_to_1(x: Any) -> None:
    np.testing.assert_allclose(np.logaddexp(log_normal_cdf(x), log_normal_cdf(-x)), 0, atol=1e-15)


def test_log_normal_cdf_far_out_follows_mills_ratio() -> None:
    for x in (1e3, 1e5, 1e8):
        expected = stats.norm.logpdf(x) - np.log(x) + np.log1p(-1 / x**2)
        np.testing.assert_allclose(log_normal_cdf(-x), expected, rtol=1e-13)
        assert log_normal_cdf(x) == 0


def test_log_phi_and_erfcx_of_float32_are_computed_in_float64() -> None:
    x = np.linspace(0, 6, 50, dtype=np.float32)
    for function in (erfcx, log_normal_cdf):
        np.testing.assert_array_equal(function(x), function(x.astype(np.float64)))


def test_float32_data_means_and_variances_are_computed_in_float64() -> None:
    rng = np.random.default_rng(0)
    x_0 = grid(256)[rng.integers(0, 256, 50)].astype(np.float32)
    mean, var = (x_0 + 0.01 * rng.standard_normal(50)).astype(np.float32), rng.uniform(1e-5, 0.1, 50).astype(np.float32)
    results = []
    for dtype in (np.float32, np.float64):
        value, backward = discretized_gaussian_log_likelihood(*(a.astype(dtype) for a in (x_0, mean, var)), 256)
        results.append([value, *backward(np.ones(50))])
    np.testing.assert_array_equal(*results)


def test_probabilities_that_underflow_on_the_way_raise_nothing() -> None:
    with np.errstate(all="raise"):
        value, _ = discretized_gaussian_log_likelihood(grid(17), np.full(17, 0.3), np.array(1e-6), 17)
    assert np.isfinite(value).all() and value.min() < -1e5


@pytest.mark.parametrize("name", ["x_0", "mean"])
def test_grey_levels_that_were_not_scaled_are_refused(name: str) -> None:
    arguments = {"x_0": np.zeros(2), "mean": np.zeros(2)} | {name: np.zeros(2, np.uint8)}
    with pytest.raises(ValueError, match=f"{name}: wanted a floating array"):
        discretized_gaussian_log_likelihood(**arguments, var=np.ones(2), levels=17)


@pytest.mark.parametrize("var", [0.0, -1.0])
def test_a_variance_that_is_none_is_refused(var):
    with pytest.raises(ValueError, match="var: wanted variances > 0"):
        discretized_gaussian_log_likelihood(np.zeros(2), np.zeros(2), np.array([1.0, var]), 17)


def test_log_phi_at_infinity_is_its_limit_without_a_warning():
    assert log_normal_cdf(np.array([-np.inf, np.inf])).tolist() == [-np.inf, 0.0]


@pytest.mark.parametrize("levels", [256, 65536])
def test_a_bin_far_narrower_than_sigma_keeps_its_digits(levels: int) -> None:
    """P = Φ(b) - Φ(a) would lose all of them; log φ + log width is exact to O(width²)."""
    x_0, mean = np.array([0.25, -0.5]), np.array([-3.0, 0.125])
    for sigma in (1e5, 1e10, 1e15):
        log_p, backward = discretized_gaussian_log_likelihood(x_0, mean, sigma**2, levels)
        m = (x_0 - mean) / sigma
        exact = -0.5 * m * m - 0.5 * np.log(2 * np.pi) + np.log(2 / (levels - 1) / sigma)
        np.testing.assert_allclose(log_p, exact, rtol=1e-12)
        d_mean, d_var = backward(np.ones(2))
        np.testing.assert_allclose(d_mean, m / sigma, rtol=1e-9)
        np.testing.assert_allclose(d_var, (m * m - 1) / (2 * sigma**2), rtol=1e-9)


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("width", [0.99e-4, 1e-5, 1e-7])
@pytest.mark.parametrize("tilt", [0.0, 1e-8, 1e-6, 1e-4, 0.005, 0.02, 0.3, 1.0, 5.0, 20.0])
def test_a_narrow_bin_is_the_quadrature_of_the_density_however_far_from_the_mean(
    tilt: float, width: float, side: int
) -> None:
    """tilt = mw/2: how much log φ falls from the middle of the bin, at m, to its edge; all in units of σ."""
    levels, x_0 = 256, np.array(1 / 255)
    sigma = 2 / 255 / width
    mean = x_0 - side * 2 * tilt / width * sigma
    m = (x_0 - mean) / sigma
    log_p, backward = discretized_gaussian_log_likelihood(x_0, mean, sigma**2, levels)

    node, weight = np.polynomial.legendre.leggauss(80)
    u = width / 2 * node
    exponent = -m * u - u * u / 2
    mass = weight / 2 * np.exp(exponent - exponent.max())
    exact = -0.5 * (m * m + np.log(2 * np.pi)) + np.log(width) + exponent.max() + np.log(mass.sum())
    d_mean, d_var = backward(np.array(1.0))
    np.testing.assert_allclose(log_p, exact, rtol=1e-14, atol=1e-13)
    np.testing.assert_allclose(d_mean * sigma, m + np.average(u, weights=mass), rtol=1e-12, atol=1e-20)
    second_moment = np.average((m + u) ** 2, weights=mass)
    np.testing.assert_allclose(d_var * sigma**2, 0.5 * (second_moment - 1), rtol=1e-13, atol=1e-13)
