"""What oracles make of their arguments: other dtypes, defaults, data of any shape, batches with outliers."""

from typing import Any

import numpy as np
import pytest
from strategies import SIX

from ddpm_ref import EmpiricalOracle, GaussianOracle, MixtureOracle, Oracle
from ddpm_ref.gaussian import Gaussian
from ddpm_ref.oracles import _grid

RNG = np.random.default_rng(0)
MEAN, MEANS, X_T = RNG.standard_normal(3), RNG.standard_normal((2, 3)), RNG.standard_normal((4, 3))
ROOT = RNG.standard_normal((3, 3))
COV = ROOT @ ROOT.T


def oracles(dtype: Any) -> list[Oracle]:
    """One of each kind, from arrays that have been float32."""
    mean, means, cov, weights = (a.astype(np.float32).astype(dtype) for a in (MEAN, MEANS, COV, np.array([0.25, 0.75])))
    return [
        GaussianOracle(mean, cov, SIX),
        MixtureOracle(weights, means, np.stack([cov, 2 * cov]), SIX),
        EmpiricalOracle(means, SIX),
    ]


def test_oracles_of_float32_arrays_compute_in_float64() -> None:
    x = X_T.astype(np.float32)
    for narrow, wide in zip(oracles(np.float32), oracles(np.float64), strict=True):
        for t in (1, 6):
            expected = wide.log_q(x.astype(np.float64), t)
            np.testing.assert_array_equal(narrow.log_q(x, t), expected)
            np.testing.assert_array_equal(narrow.log_q(x.astype(np.float64), t), expected)
            np.testing.assert_array_equal(narrow.x_0(X_T, t), wide.x_0(X_T, t))
            np.testing.assert_array_equal(narrow.posterior_variance(x, t), wide.posterior_variance(x, t))
        for (w, part), (v, exact) in zip(narrow.marginal(2), wide.marginal(2), strict=True):
            assert w == v
            np.testing.assert_array_equal(part.log_density(x), exact.log_density(x.astype(np.float64)))
        assert {a.dtype for _, part in narrow.parts() for a in (part.mean, part.variances)} == {np.dtype(np.float64)}
    mixture = oracles(np.float32)[1]
    assert isinstance(mixture, MixtureOracle) and mixture.weights.dtype == np.float64


def test_oracles_of_integers_are_those_of_the_same_floats() -> None:
    for whole, exact in [
        (GaussianOracle([1, 2, 3], 2, SIX), GaussianOracle([1.0, 2.0, 3.0], 2.0, SIX)),
        (MixtureOracle([0, 1], [[0, 0, 0], [1, 2, 3]], 2, SIX), GaussianOracle([1.0, 2.0, 3.0], 2.0, SIX)),
        (EmpiricalOracle([[1, 2, 3]], SIX), GaussianOracle([1.0, 2.0, 3.0], 0.0, SIX)),
    ]:
        np.testing.assert_allclose(whole(X_T, 3), exact(X_T, 3), rtol=1e-12)


def test_an_oracle_keeps_its_own_copy_of_what_it_was_made_of() -> None:
    for make, array in [
        (lambda mean: GaussianOracle(mean, COV, SIX), MEAN.copy()),
        (lambda means: MixtureOracle([0.5, 0.5], means, 0.1, SIX), MEANS.copy()),
        (lambda points: EmpiricalOracle(points, SIX), MEANS.copy()),
    ]:
        oracle = make(array)
        before = oracle(X_T, 3), oracle.log_q(X_T, 3), oracle.marginal(0)[0][1].mean.copy()
        array += 5
        for one, other in zip(
            before, (oracle(X_T, 3), oracle.log_q(X_T, 3), oracle.marginal(0)[0][1].mean), strict=True
        ):
            np.testing.assert_array_equal(one, other)


def test_a_covariance_that_is_not_given_is_the_identity_and_of_points_none() -> None:
    for gaussian in (Gaussian(MEAN), GaussianOracle(MEAN).data):
        np.testing.assert_array_equal(gaussian.cov, np.eye(3))
    for _, part in [*MixtureOracle([0.5, 0.5], MEANS).parts(), *EmpiricalOracle(MEANS).parts()]:
        np.testing.assert_array_equal(part.cov, np.zeros((3, 3)))


def test_what_is_not_named_is_eps_beta_and_4096_draws() -> None:
    oracle = GaussianOracle(MEAN, COV, SIX)
    np.testing.assert_array_equal(oracle.model()(X_T, 3), oracle(X_T, 3))
    np.testing.assert_array_equal(oracle.log_p(X_T), oracle.log_p(X_T, "beta"))
    np.testing.assert_array_equal(oracle.bound_terms(), oracle.bound_terms("beta"))
    points = EmpiricalOracle(MEANS, SIX)
    default, told = (points.irreducible_loss(4, rng=np.random.default_rng(7), **n) for n in ({}, {"draws": 4096}))
    assert default == told


def test_weights_are_brought_to_a_sum_of_1() -> None:
    weights = MixtureOracle([0.5, 0.5 + 8e-10], MEANS).weights
    assert abs(weights.sum() - 1) < 1e-15 and weights[0] < 0.5 < weights[1]


def test_a_draw_is_the_mean_plus_the_root_of_the_covariance_times_its_normals() -> None:
    u = np.random.default_rng(1).standard_normal((5, 3))
    np.testing.assert_allclose(Gaussian(MEAN, 4.0).from_standard(u), MEAN + 2 * u, rtol=1e-12)
    gaussian = Gaussian(MEAN, COV)
    along = gaussian.along_axes(gaussian.from_standard(u) - MEAN)
    np.testing.assert_allclose(along, np.sqrt(gaussian.variances) * u, rtol=1e-10, atol=1e-12)


def test_scores_and_chains_have_the_shape_of_the_data() -> None:
    shape = (3, 1, 1)
    flat, shaped = GaussianOracle(MEAN, COV, SIX), GaussianOracle(MEAN.reshape(shape), COV, SIX)
    x_t = X_T.reshape(4, *shape)
    np.testing.assert_allclose(shaped.score(x_t, 2), flat.score(X_T, 2).reshape(x_t.shape), rtol=1e-12)
    np.testing.assert_allclose(shaped.log_p(x_t), flat.log_p(X_T), rtol=1e-12)
    for part in (*shaped.p_marginals(), shaped.q_marginal(3)):
        assert part.mean.shape == part.shape == shape


@pytest.mark.parametrize("oracle", oracles(np.float64)[1:], ids=lambda oracle: type(oracle).__name__)
def test_a_row_is_answered_the_same_beside_one_far_out(oracle: Oracle) -> None:
    far = np.concatenate([X_T, np.full((1, 3), 1e4)])
    for f in (oracle, oracle.log_q, oracle.posterior_variance):
        found = f(far, 2)
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found[:-1], f(X_T, 2), rtol=1e-12)


def test_a_covariance_that_is_not_finite_and_a_variance_of_0_at_the_last_step_are_errors() -> None:
    with pytest.raises(ValueError, match="cov: 1 of 1 values are NaN"):
        GaussianOracle([0.0], np.nan)
    with pytest.raises(ValueError, match=r"var: a density wants every sigma_t\^2 > 0"):
        GaussianOracle(MEAN, COV, SIX).bound(np.array([1.0, 0.0, 1, 1, 1, 1, 1]))


def test_finite_data_far_from_0_lose_no_digits_in_any_direction() -> None:
    far = np.array([1e6, 0.0, -3e6])
    near, shifted = EmpiricalOracle(MEANS, SIX), EmpiricalOracle(MEANS + far, SIX)
    for t in (1, 6):
        x_t = X_T + np.sqrt(SIX.alpha_bar[t]) * far
        np.testing.assert_allclose(shifted.x_0(x_t, t) - far, near.x_0(X_T, t), atol=1e-6)
        np.testing.assert_allclose(shifted.posterior_variance(x_t, t), near.posterior_variance(X_T, t), atol=1e-6)


@pytest.mark.parametrize(("D", "nodes"), [(1, 361), (2, 181**2)])
def test_the_grid_reaches_nine_deviations_each_way_and_has_the_normals_moments(D: int, nodes: int) -> None:
    u, weight = _grid(np.ones(D), 1.0)
    assert u.shape == (nodes, D) and weight.shape == (nodes,)
    np.testing.assert_allclose([u.min(), u.max(), weight.sum()], [-9, 9, 1], rtol=1e-12)
    np.testing.assert_allclose([weight @ u**k for k in (1, 2, 3, 4)], np.outer([0, 1, 0, 3], np.ones(D)), atol=1e-12)


def test_the_grid_grows_with_the_ratio_of_widths_up_to_2_20_nodes() -> None:
    assert len(_grid(np.array([2912.70]), 1.0)[0]) == 2 * 524_286 + 1
    for deviations in ([2912.71], [6.0, 6.0]):
        with pytest.raises(ValueError, match="rng: wanted a generator, as widths"):
            _grid(np.array(deviations), 1.0)
