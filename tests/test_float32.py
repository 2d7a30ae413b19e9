"""float32 against float64: every error within the bound that the rounding of each term allows.

Coefficients are float64 until they multiply data, so a float32 result may be off by a few roundings of its terms and
no more, whatever the step: 1 - ᾱ_1 computed in float32 would already be wrong in its fourth digit.
"""

import numpy as np
import pytest
from every_call import CALLS, Batch, Results, answers, batches, oracles
from hypothesis import given
from hypothesis import strategies as st
from strategies import expand, seeds, short

from ddpm_ref import PARAMETRISATIONS, GaussianOracle, Schedule, mean_slope, reverse_variance, sample
from ddpm_ref.checks import Array
from ddpm_ref.forward import posterior_coefficients

# Of float32 operations: half a unit in the last place, and a little for the float64 results that stand for exact ones.
UNIT = 2**-24 * (1 + 1e-6)

Rounding = list[tuple[int, Array]]
"""A bound on the error of a float32 result: Σ γ_k · condition, of k roundings each, γ_k = k u / (1 - k u)."""


def within(rounding: Rounding) -> Array:
    return sum(k * UNIT / (1 - k * UNIT) * condition for k, condition in rounding)


class Coefficients:
    """The coefficients of Eqs. 2-15 at each image's step in float64, shaped to multiply, and |x|, |y|, |z|.

    The condition of Σ c_i a_i is Σ |c_i| |a_i|. Each product is rounded in c_i and by itself, and each sum once: a
    term of two has 3 roundings. A result that goes through another, as μ_θ through x̂_0, has those of both.
    """

    def __init__(self, b: Batch) -> None:
        s = b.schedule
        self.X, self.Y, self.Z = np.abs(b.x), np.abs(b.y), np.abs(b.z)
        self.alpha, self.beta, abar, self.sigma2, self.beta_tilde = (
            expand(table, b.t, b.x) for table in (s.alpha, s.beta, s.alpha_bar, reverse_variance(s), s.beta_tilde)
        )
        self.signal, self.noise = np.sqrt(abar), np.sqrt(1 - abar)
        self.c_0, self.c_t = (expand(np.r_[0, c], b.t, b.x) for c in posterior_coefficients(s, np.arange(1, s.T + 1)))

    def x_0_hat(self, predicts: str) -> tuple[int, Array]:
        """Of `output_to_x_0` with x_t = x and y as output."""
        X, Y, signal, noise = self.X, self.Y, self.signal, self.noise
        return {
            "eps": (3, (X + noise * Y) / signal),
            "x_0": (0, Y),
            "mu": (3, (Y + self.c_t * X) / self.c_0),
            "v": (3, signal * X + noise * Y),
        }[predicts]

    def output(self, predicts: str) -> tuple[int, Array]:
        """Of `output_from_x_0` with x_t = x and x_0 = y."""
        eps = (self.X + self.signal * self.Y) / self.noise
        return {
            "eps": (3, eps),
            "x_0": (0, self.Y),
            "mu": (3, self.c_0 * self.Y + self.c_t * self.X),
            "v": (6, self.signal * eps + self.noise * self.Y),
        }[predicts]

    def mean(self, predicts: str, clip: bool = False) -> tuple[int, Array]:
        """Of μ_θ: Eq. 11 for ε, the output itself for μ, else Eq. 7 at x̂_0; clipping magnifies no error."""
        if predicts == "eps" and not clip:
            return 3, (self.X + self.beta / self.noise * self.Y) / np.sqrt(self.alpha)
        if predicts == "mu" and not clip:
            return 0, self.Y
        k, condition = self.x_0_hat(predicts)
        return k + 3, self.c_0 * condition + self.c_t * self.X

    def step(self, predicts: str, clip: bool = False) -> list[Rounding]:
        """Of `p_mean_var`."""
        return [[self.mean(predicts, clip)], [(1, self.sigma2)], [self.x_0_hat(predicts)]]

    def drawn(self, predicts: str) -> list[Rounding]:
        """Of `p_sample`: σ_t has a rounding and a half, the temperature and the products four, the last sum one."""
        k, condition = self.mean(predicts)
        return [[(k + 1, condition), (7, 0.7 * np.sqrt(self.sigma2) * self.Z)], [self.x_0_hat(predicts)]]


def of_errors(b: Batch) -> dict[str, list[Rounding]]:
    """Of losses, which are summed in float64, and their gradients: r has one rounding, 1 / D one, each product one."""
    D = b.x[0].size
    r = np.abs(b.x - b.y)
    slope = np.minimum(r, 0.8)
    each = {
        "squared_error": [[(3, r * r)], [(3, 2 * r / D)]],
        "absolute_error": [[(1, r)], [(1, np.full_like(r, 1 / D))]],
        # δ is rounded too; r - slope/2 loses digits to the subtraction.
        "huber_error": [[(4, slope * (r + slope / 2))], [(3, slope / D)]],
    }
    return {name: [[(k, per_image(c)) for k, c in loss], grad] for name, (loss, grad) in each.items()}


def per_image(values: Array) -> Array:
    return values.reshape(len(values), -1).mean(axis=1)


def of_weighted_losses(b: Batch) -> list[Rounding]:
    """Of ½ r² and 2 |r| by e^{-s}: rounded once more for each factor and the sum."""
    each = of_errors(b._replace(y=b.y)) | {"absolute_error": of_errors(b._replace(y=b.z))["absolute_error"]}
    scale = np.exp(-np.linspace(-1, 1, b.schedule.T + 1))[b.t]
    (loss_2, grad_2), (loss_1, grad_1) = each["squared_error"], each["absolute_error"]
    loss = [(k, c * w * scale) for w, terms in ((0.5, loss_2), (2.0, loss_1)) for k, c in terms]
    factor = scale.reshape(-1, *[1] * (b.x.ndim - 1))
    grad = [(k + 4, c * w * factor) for w, terms in ((0.5, grad_2), (2.0, grad_1)) for k, c in terms]
    return [loss, grad, loss]


def of_everything(b: Batch, exact: Results) -> dict[str, list[Rounding]]:
    """The bounds of every call. What is computed in float64 is only rounded at the end, from its `exact` results."""
    c = Coefficients(b)
    X, Y, signal, noise = c.X, c.Y, c.signal, c.noise
    kept, rounded = [(0, np.zeros(1))], [[(1, np.abs(r))] for r in exact]
    in_float64 = [kept, *rounded[1:]]
    return {
        "q_step": [[(3, np.sqrt(c.alpha) * X + np.sqrt(c.beta) * Y)]],
        "q_sample": [[(3, signal * X + noise * Y)]],
        "q_mean_var": [[(2, signal * X)], [(1, noise**2)]],
        "q_posterior": [[(3, c.c_0 * X + c.c_t * Y)], [(1, c.beta_tilde)]],
        "predict_x_0": [[c.x_0_hat("eps")]],
        "predict_eps": [[c.output("eps")]],
        "p_mean": [[c.mean("eps")]],
        **{f"output_to_x_0 {p}": [[c.x_0_hat(p)]] for p in PARAMETRISATIONS},
        **{f"output_from_x_0 {p}": [[c.output(p)]] for p in PARAMETRISATIONS},
        **{f"p_mean_var {p}": c.step(p) for p in PARAMETRISATIONS},
        **{f"p_mean_var {p}, clipped": c.step(p, clip=True) for p in PARAMETRISATIONS},
        **{f"p_sample {p}": c.drawn(p) for p in PARAMETRISATIONS},
        **of_errors(b),
        "weighted and combined": of_weighted_losses(b),
        **{f"bound_term {p}": in_float64 for p in PARAMETRISATIONS},
        "bound_term, clipped": in_float64,
        "bound_term, learned variance": in_float64,
        "discretized_gaussian_log_likelihood": [kept] * 3,
        "prior_kl": [kept],
    }


# exp in float32 has the platform's own error; the others go on from rounded results, and their parts are above.
ELSEWHERE = {"p_mean_var, learned variance", "sample", "Objective", "bound_terms"}


every_bound = pytest.mark.parametrize("name", [name for name in CALLS if name not in ELSEWHERE])


def assert_within_rounding(name: str, b: Batch) -> None:
    exact = CALLS[name](b)
    found = CALLS[name](b.of(lambda a: a.astype(np.float32)))
    for narrow, wide, bound in zip(found, exact, of_everything(b, exact)[name], strict=True):
        # Below its smallest normal number float32 rounds absolutely.
        slack = within(bound) + 2**-140 - np.abs(narrow.astype(np.float64) - wide)
        assert (slack >= 0).all(), f"t = {b.t[np.argwhere(slack < 0)[0][0]]}"


@every_bound
@given(b=batches())
def test_float32_is_float64_up_to_the_rounding_of_each_term(name: str, b: Batch) -> None:
    assert_within_rounding(name, b)


@every_bound
def test_so_it_is_at_every_step_of_the_papers_schedule(name: str) -> None:
    x, y, z = np.random.default_rng(2).standard_normal((3, 1000)).astype(np.float16).astype(np.float64)
    assert_within_rounding(name, Batch(Schedule.linear(), x, y, z, np.arange(1, 1001)))


@pytest.mark.parametrize("kind", ["beta", "beta_tilde"])
@given(seed=seeds, S=st.sampled_from([0.0, 0.1, 1.0]))
def test_float32_samples_are_those_of_float64_up_to_the_rounding_of_every_step(kind: str, seed: int, S: float) -> None:
    """Each step takes on the error so far, |dx_{t-1} / dx_t| times, and adds its own.

    x_{t-1} = x_t / √α_t - β_t / √(α_t (1 - ᾱ_t)) g_t x_t + σ_t z: each term has at most 7 roundings, ε* = g_t x_t one.
    """
    rng, schedule = np.random.default_rng(seed), short(50)
    oracle, sigma2 = GaussianOracle(np.zeros(2), S, schedule), reverse_variance(schedule, kind)
    x_T, *z = rng.standard_normal((schedule.T + 1, 3, 2)).astype(np.float32)
    found = sample(schedule, oracle, x_T, lambda t: z[t - 1], var=kind)
    x_t, error = x_T.astype(np.float64), np.zeros((3, 2))
    for t in range(schedule.T, 0, -1):
        abar = schedule.alpha_bar[t]
        a, gain = 1 / np.sqrt(schedule.alpha[t]), mean_slope(schedule, t) * np.sqrt(1 - abar) / (abar * S + 1 - abar)
        noise = np.sqrt(sigma2[t]) * z[t - 1] if t > 1 else np.zeros((3, 2))
        # The error so far is rounded with the rest: of second order, but counted.
        size = np.abs(x_t) + error
        error = np.abs(a + gain) * error + within([(7, (a + np.abs(gain)) * size + np.abs(noise))])
        x_t = (a + gain) * x_t + noise
    assert found.dtype == np.float32
    assert (np.abs(found - x_t) <= error).all(), (np.abs(found - x_t), error)


@given(batches(), seeds)
def test_an_oracle_asked_in_float32_answers_as_in_float64(b: Batch, seed: int) -> None:
    """It computes in float64: what stands for images is rounded at the end, densities and weights are not."""
    images = len(PARAMETRISATIONS) + 1  # and the score
    for oracle in oracles(b.schedule, b.x.shape[1:], seed):
        narrow, wide = (answers(oracle, each) for each in (b.of(lambda a: a.astype(np.float32)), b))
        for k, (one, exact) in enumerate(zip(narrow, wide, strict=True)):
            assert one.dtype == (np.float32 if k < images else np.float64)
            np.testing.assert_array_equal(one, exact.astype(one.dtype))
