"""One term of the bound, and the objective of a training run, with their gradients (Eqs. 5, 8, 12-14)."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import (
    SIX,
    assert_gradient,
    batch_shapes,
    every_parametrisation,
    expand,
    gradient_per_image,
    grey_levels,
    seeds,
    training_batch,
)

from ddpm_ref import (
    PARAMETRISATIONS,
    Losses,
    Objective,
    Schedule,
    absolute_error,
    batch_mean,
    bound_term,
    bound_weights,
    combine,
    discretized_gaussian_log_likelihood,
    huber_error,
    output_from_x_0,
    p_mean,
    p_mean_var,
    q_posterior,
    reverse_variance,
    simple_loss,
    squared_error,
    weighted,
)
from ddpm_ref.checks import Array
from ddpm_ref.gaussian import normal_kl

ERRORS = {"squared": squared_error, "l1": absolute_error, "huber": huber_error}


def bound(b: Any, output: Any = None, **kind: Any) -> Losses:
    return bound_term(SIX, b.x_0, b.x_t, b.t, b.output if output is None else output, levels=b.levels, **kind)


def run(objective: Objective, b: Any, output: Any = None, **kind: Any) -> tuple[Losses, Array | None]:
    output = b.output if output is None else output
    return objective(SIX, b.x_0, b.x_t, b.t, b.eps, output, levels=b.levels, **kind)


@st.composite
def objectives(draw: Any) -> Objective:
    """Any objective that the constructor takes."""
    var = draw(st.sampled_from(["beta", "beta_tilde", "learned"]))
    w_simple, w_elbo = draw(st.sampled_from([(1.0, 0.0), (0.0, 1.0), (0.7, 0.4), (0.0, 2.0)]))
    assume(var != "learned" or w_elbo)
    weight = draw(st.sampled_from(["simple", "bound"])) if var != "learned" else "simple"
    predicts, error = draw(st.sampled_from(PARAMETRISATIONS)), draw(st.sampled_from(list(ERRORS)))
    return Objective(predicts, var, error, weight, w_simple, w_elbo)


# --- one term of the bound -------------------------------------------------------------------------------------------


@every_parametrisation
@pytest.mark.parametrize(
    "var", ["beta", "beta_tilde", "learned", np.linspace(0.02, 0.3, 7)], ids=["beta", "beta_tilde", "learned", "table"]
)
@given(shape=batch_shapes, seed=seeds, levels=grey_levels)
def test_the_bounds_gradient_is_that_of_its_value(predicts: str, var: Any, shape: Any, seed: int, levels: int) -> None:
    kind = dict(predicts=predicts, var=var)
    b = training_batch(seed, shape, predicts=predicts, var=var, levels=levels)
    assert_gradient(bound(b, **kind).d_output, gradient_per_image(lambda y: bound(b, y, **kind).per_image, b.output))


@every_parametrisation
@pytest.mark.parametrize("var", ["beta", "beta_tilde", "learned"])
def test_the_bounds_term_is_the_kl_at_t_over_1_and_the_decoder_at_1(predicts: str, var: Any) -> None:
    b = training_batch(7, (6, 2, 3), predicts=predicts, var=var)
    got = bound(b, predicts=predicts, var=var).per_image
    for n, t in enumerate(b.t):
        one = slice(n, n + 1)
        mean, sigma2, _ = p_mean_var(SIX, b.x_t[one], int(t), b.output[one], predicts=predicts, var=var)
        if t == 1:
            terms = -discretized_gaussian_log_likelihood(b.x_0[one], mean, sigma2, b.levels)[0]
        else:
            terms = normal_kl(*q_posterior(SIX, b.x_0[one], b.x_t[one], int(t)), mean, sigma2)
        np.testing.assert_allclose(got[n], terms.mean(), rtol=1e-9)


@every_parametrisation
@pytest.mark.parametrize("var", ["beta", "beta_tilde"])
@given(shape=batch_shapes, seed=seeds)
def test_eq_8_over_t_1_the_bound_is_the_weighted_square_plus_a_constant(
    predicts: str, var: Any, shape: Any, seed: int
) -> None:
    b = training_batch(seed, shape, predicts=predicts)
    b.t = np.maximum(b.t, 2)
    target = output_from_x_0(SIX, b.x_t, b.t, b.x_0, predicts)
    square = weighted(squared_error(b.output, target), bound_weights(SIX, predicts, var)[b.t])
    term = bound(b, predicts=predicts, var=var)
    ratio = SIX.beta_tilde[b.t] / reverse_variance(SIX, var)[b.t]
    C = 0.5 * (ratio - 1 - np.log(ratio))
    np.testing.assert_allclose(term.per_image - square.per_image, C, rtol=0, atol=1e-9 * (1 + term.per_image.max()))
    np.testing.assert_allclose(term.d_output, square.d_output, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("var", ["beta", "beta_tilde"])
@given(shape=batch_shapes, seed=seeds)
def test_eq_8_is_eq_10_is_eq_12(var: Any, shape: Any, seed: int) -> None:
    """As functions of any ε_θ: through μ̃_t(x_t, x_0), through the true noise, and with the weight of ‖ε - ε_θ‖²."""
    b = training_batch(seed, shape)
    sigma2 = expand(reverse_variance(SIX, var), b.t, b.x_t)
    beta, alpha, abar = (expand(a, b.t, b.x_t) for a in (SIX.beta, SIX.alpha, SIX.alpha_bar))
    mu_theta = p_mean(SIX, b.x_t, b.t, b.output)
    eq_8 = (q_posterior(SIX, b.x_0, b.x_t, b.t)[0] - mu_theta) ** 2 / (2 * sigma2)
    eq_10 = ((b.x_t - beta / np.sqrt(1 - abar) * b.eps) / np.sqrt(alpha) - mu_theta) ** 2 / (2 * sigma2)
    eq_12 = beta**2 / (2 * sigma2 * alpha * (1 - abar)) * (b.eps - b.output) ** 2
    np.testing.assert_allclose(eq_8, eq_12, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(eq_10, eq_12, rtol=1e-7, atol=1e-9)
    weighed = weighted(squared_error(b.output, b.eps), bound_weights(SIX, var=var)[b.t]).per_image
    np.testing.assert_allclose(weighed, eq_12.reshape(len(b.t), -1).mean(axis=1), rtol=1e-9)


def test_the_bound_takes_one_step_for_all() -> None:
    b = training_batch(3, (3, 4))
    for t in (1, 4):
        one = bound_term(SIX, b.x_0, b.x_t, t, b.output, levels=17)
        each = bound_term(SIX, b.x_0, b.x_t, np.full(3, t), b.output, levels=17)
        np.testing.assert_array_equal(one.per_image, each.per_image)
        np.testing.assert_array_equal(one.d_output, each.d_output)


@every_parametrisation
@pytest.mark.parametrize("var", ["beta", "learned"])
def test_the_bound_of_float32_arrays_is_computed_in_float64(predicts: str, var: str) -> None:
    narrow = training_batch(8, (6, 2, 3), predicts=predicts, var=var)
    for name in ("x_0", "x_t", "output"):
        setattr(narrow, name, getattr(narrow, name).astype(np.float32))
    wide = SimpleNamespace(**{k: v if k in ("t", "levels") else v.astype(np.float64) for k, v in vars(narrow).items()})
    got, expected = (bound(b, predicts=predicts, var=var) for b in (narrow, wide))
    np.testing.assert_array_equal(got.per_image, expected.per_image)
    np.testing.assert_array_equal(got.d_output, expected.d_output.astype(np.float32))


@every_parametrisation
def test_clip_stops_the_gradient_where_x_0_was_clipped_and_only_there(predicts: str) -> None:
    b = training_batch(11, (24, 3, 2), predicts=predicts)
    b.t[:4] = 1
    x_0 = p_mean_var(SIX, b.x_t, b.t, b.output, predicts=predicts).x_0_hat
    clipped = np.abs(x_0) > 1
    assert all(0 < part.mean() < 1 for part in (clipped[:4], clipped[4:]))
    with_clip, without = bound(b, predicts=predicts, clip=True), bound(b, predicts=predicts)
    assert (with_clip.d_output[clipped] == 0).all()
    np.testing.assert_allclose(with_clip.d_output[~clipped], without.d_output[~clipped], rtol=1e-9)
    differences = gradient_per_image(lambda y: bound(b, y, predicts=predicts, clip=True).per_image, b.output)
    smooth = np.abs(np.abs(x_0) - 1) > 0.01  # the differences must not step over the kink
    assert_gradient(with_clip.d_output[smooth], differences[smooth])


def test_a_perfect_output_with_beta_tilde_costs_nothing_but_the_decoder() -> None:
    b = training_batch(5, (6, 4))
    term = bound(b, b.eps, var="beta_tilde")
    np.testing.assert_allclose(term.per_image[b.t > 1], 0, atol=1e-13)
    assert (term.per_image[b.t == 1] > 0.01).all()


def test_the_bound_refuses_a_variance_of_0_and_bad_arguments() -> None:
    b = training_batch(1, (3, 4))
    for refused in (lambda: bound(b, var=np.zeros(7)), lambda: bound_weights(SIX, var=np.zeros(7))):
        with pytest.raises(ValueError, match=r"var: .* every sigma_t\^2 > 0, since"):
            refused()
    with pytest.raises(ValueError, match=r"var: .* every sigma_t\^2 > 0, since"):
        bound(b, var=np.array([1.0, 0, 1, 1, 1, 1, 1]))
    for change, message in [
        ({"x_0": b.x_0.astype(int)}, "x_0: wanted a floating array"),
        ({"x_t": b.x_t.astype(int)}, "x_t: wanted a floating array"),
        ({"t": 0}, r"t: wanted steps in 1\.\.6, got 0"),
        ({"t": np.array([1, 2, 7])}, r"t: wanted steps in 1\.\.6, got 1\.\.7"),
        ({"x_0": b.x_0[:, :1]}, "x_0: wanted the shape of x_t"),
        ({"output": b.output.astype(int)}, "output: wanted a floating array"),
        ({"levels": 1}, "levels: wanted an integer >= 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            bound(SimpleNamespace(**vars(b) | change))


# --- Objective -------------------------------------------------------------------------------------------------------


@given(objectives(), batch_shapes, seeds, grey_levels, st.booleans())
def test_an_objectives_gradient_is_that_of_its_value(
    objective: Objective, shape: Any, seed: int, levels: int, learned_weights: bool
) -> None:
    b = training_batch(seed, shape, predicts=objective.predicts, var=objective.var, levels=levels)
    s = np.linspace(-1, 1, 7) if learned_weights else None
    losses, d_s = run(objective, b, log_variance=s)
    differences = gradient_per_image(lambda y: run(objective, b, y, log_variance=s)[0].per_image, b.output)
    assert_gradient(losses.d_output, differences)
    if s is None or d_s is None:
        assert s is d_s
    else:
        up, down = (run(objective, b, log_variance=s + d)[0].per_image for d in (1e-5, -1e-5))
        np.testing.assert_allclose(d_s, (up - down) / 2e-5, rtol=1e-6, atol=1e-6)


@given(objectives(), st.sampled_from([np.float32, np.float64]), st.booleans())
def test_losses_are_float64_and_gradients_keep_the_outputs_dtype(
    objective: Objective, dtype: Any, learned_weights: bool
) -> None:
    b = training_batch(0, (3, 2, 2), predicts=objective.predicts, var=objective.var)
    for name in ("x_0", "x_t", "eps", "output"):
        setattr(b, name, getattr(b, name).astype(dtype))
    losses, d_s = run(objective, b, log_variance=np.linspace(-1, 1, 7, dtype=dtype) if learned_weights else None)
    assert losses.per_image.dtype == np.float64
    assert losses.d_output.dtype == batch_mean(losses)[1].dtype == dtype
    assert losses.d_output.shape == b.output.shape
    assert d_s is None or d_s.dtype == np.float64


@every_parametrisation
@pytest.mark.parametrize("var", ["beta", "beta_tilde"])
def test_an_objective_is_the_weighted_sum_of_its_parts(predicts: str, var: Any) -> None:
    b = training_batch(2, (5, 2, 2), predicts=predicts)
    target = output_from_x_0(SIX, b.x_t, b.t, b.x_0, predicts)
    bare = Objective(predicts, var)
    np.testing.assert_allclose(run(bare, b)[0].per_image, squared_error(b.output, target).per_image, rtol=1e-9)
    for error, function in ERRORS.items():
        simple = weighted(function(b.output, target), bound_weights(SIX, predicts, var)[b.t])
        expected = combine((0.3, simple), (0.2, bound(b, predicts=predicts, var=var)))
        got, _ = run(Objective(predicts, var, error, "bound", 0.3, 0.2), b)
        np.testing.assert_allclose(got.per_image, expected.per_image, rtol=1e-9)
        np.testing.assert_allclose(got.d_output, expected.d_output, rtol=1e-9, atol=1e-12)


@every_parametrisation
def test_l_simple_sends_no_gradient_to_learned_variances(predicts: str) -> None:
    b = training_batch(4, (3, 5, 2), predicts=predicts, var="learned")
    mixed, _ = run(Objective(predicts, "learned", w_simple=1, w_elbo=0.5), b)
    only_bound, _ = run(Objective(predicts, "learned", w_simple=0, w_elbo=0.5), b)
    np.testing.assert_array_equal(mixed.d_output[..., 2:], only_bound.d_output[..., 2:])
    assert (only_bound.d_output[..., 2:] != 0).all()
    target = output_from_x_0(SIX, b.x_t, b.t, b.x_0, predicts)
    simple = squared_error(b.output[..., :2], target)
    np.testing.assert_allclose((mixed.d_output - only_bound.d_output)[..., :2], simple.d_output, rtol=1e-9, atol=1e-9)


def test_the_default_objective_is_l_simple_on_eps() -> None:
    assert Objective().learned_weights is False
    b = training_batch(6, (4, 3))
    loss, gradient = batch_mean(run(Objective(), b)[0])
    expected, expected_gradient = simple_loss(b.output, b.eps)
    assert loss == expected
    np.testing.assert_array_equal(gradient, expected_gradient)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"predicts": "noise"}, "predicts: wanted one of 'eps', 'x_0', 'mu', 'v', got 'noise'"),
        ({"var": "sigma"}, "var: wanted one of 'beta', 'beta_tilde', 'learned', got 'sigma'"),
        ({"error": "l2"}, "error: wanted one of 'squared', 'l1', 'huber', got 'l2'"),
        ({"weight": None}, "weight: wanted one of 'simple', 'bound', got None"),
        ({"w_simple": 0.0}, "w_simple, w_elbo: wanted >= 0 and not both 0, got 0.0 and 0.0"),
        ({"w_simple": -1.0, "w_elbo": 2.0}, "w_simple, w_elbo: wanted >= 0"),
        ({"w_elbo": -0.1}, "w_simple, w_elbo: wanted >= 0"),
        ({"w_elbo": float("nan")}, "w_simple, w_elbo: wanted >= 0"),
        ({"var": "learned"}, 'var: "learned" wants w_elbo > 0 and weight "simple"'),
        ({"var": "learned", "w_elbo": 1.0, "weight": "bound"}, 'var: "learned" wants'),
    ],
    ids=str,
)
def test_an_objective_that_makes_no_sense_is_an_error(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Objective(**wrong)


def test_the_papers_objectives_of_table_2_are_allowed() -> None:
    for predicts in ("eps", "mu"):
        for var in ("beta", "learned"):
            assert Objective(predicts, var, w_simple=0.0, w_elbo=1.0).w_elbo == 1
        assert Objective(predicts).weight == "simple"
    assert Objective(var="learned", weight="bound", w_simple=0.0, w_elbo=1.0).w_simple == 0, "no part has that weight"


@pytest.mark.parametrize("t", [np.array([0, -1]), np.array([1]), np.array([1, 2, 3]), 1001])
@pytest.mark.parametrize("objective", [Objective(weight="bound"), Objective(w_simple=0, w_elbo=1), Objective()])
def test_steps_that_do_not_fit_the_batch_are_refused(t, objective):
    x = np.zeros((2, 3))
    with pytest.raises(ValueError, match="t: wanted"):
        objective(Schedule.linear(), x, x, t, x, x, levels=17)
