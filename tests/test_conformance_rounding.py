"""What right implementations do to numbers, met in released code: none of it is called a mistake, and NaN is placed."""

import numpy as np
import pytest

from ddpm_ref.conformance import check
from ddpm_ref.schedule import SCHEDULES


class RoundedOnce:
    """Tables and coefficients computed in float64 and kept as float32, as most PyTorch code does."""

    def __init__(self, schedule: str) -> None:
        self.conventions = {"schedule": schedule, "var": "beta_tilde", "shape": (4,)}
        s = SCHEDULES[schedule]()
        beta, abar, before = s.beta[1:], s.alpha_bar[1:], s.alpha_bar[:-1]
        self._betas, self._alpha_bar = beta, abar
        self._c_0 = (beta * np.sqrt(before) / (1 - abar)).astype(np.float32)
        self._c_t = ((1 - before) * np.sqrt(s.alpha[1:]) / (1 - abar)).astype(np.float32)
        self._var = s.beta_tilde[1:].astype(np.float32)

    def betas(self):
        return self._betas.astype(np.float32)

    def alpha_bar(self):
        return self._alpha_bar.astype(np.float32)

    def q_posterior(self, x_0, x_t, t):
        return self._c_0[t - 1, None] * x_0 + self._c_t[t - 1, None] * x_t, self._var[t - 1]


@pytest.mark.parametrize("schedule", ["linear", "quadratic", "cosine", "sigmoid"])
def test_tables_rounded_once_from_float64_are_right_at_every_step(schedule):
    """β_T = 0.999 as a float32 says α_T to 1.2e-5 only."""
    report = check(RoundedOnce(schedule), only=["beta", "alpha-bar", "posterior-mean", "posterior-var"])
    assert [r.status for r in report] == ["holds"] * 4, report.table()


def test_a_table_rounded_to_half_precision_is_still_wrong():
    adapter = RoundedOnce("cosine")
    adapter._c_0 = adapter._c_0.astype(np.float16).astype(np.float32)
    assert [r.id for r in check(adapter, only=["posterior-mean", "posterior-var"]).broken] == ["posterior-mean"]


class Tensor:
    """What NumPy sees of a torch tensor: an __array__ that knows no copy."""

    def __init__(self, values):
        self.values = values

    def detach(self):
        return self

    cpu = double = detach

    def __array__(self, dtype=None):
        return np.asarray(self.values, dtype=dtype)


def test_a_tensor_whose_array_knows_no_copy_is_read_without_a_warning():
    """Warnings are errors in this suite."""

    class Adapter:
        def betas(self):
            return Tensor(np.linspace(1e-4, 0.02, 1000))

    assert [r.status for r in check(Adapter(), only=["beta-range", "beta"])] == ["holds"] * 2


class LogVariance:
    """A mean that is NaN, and log σ² in place of σ²."""

    def p_mean_var(self, x_t, t, output):
        return np.full_like(x_t, np.nan), np.log(np.linspace(1e-4, 0.02, 1000, dtype=np.float32))[t - 1]


def test_a_nan_mean_leaves_the_variance_to_be_judged_and_its_logarithm_is_recognised():
    mean, var = check(LogVariance(), only=["reverse-mean", "reverse-var"])
    assert mean.status == var.status == "broken"
    assert np.isnan(mean.got)
    assert var.t == 2 and var.got == pytest.approx(np.log(1e-4 + 0.0199 / 999)) and "log σ_t²" in var.diagnosis


class Sampler:
    """Algorithm 2 in float32 for a network that predicts x_0, images leaving through [0, 1]; NaN from t = spoil on.

    So little noise that the images end near 0, the grey where 0.5 + x/2 rounds away most digits of x.
    """

    def __init__(self, spoil: int = 0) -> None:
        self.conventions = {"predicts": "x_0", "var": [1e-8] * 1000}
        self.spoil = spoil

    def sample(self, model, n):
        rng, s = np.random.default_rng(0), SCHEDULES["linear"]()
        x = rng.standard_normal((n, 3, 8, 8)).astype(np.float32)
        for t in range(1000, 0, -1):
            x_0 = model(x, np.full(n, t)) * (np.nan if t == self.spoil else 1)
            c_0 = np.sqrt(s.alpha_bar[t - 1]) * s.beta[t] / (1 - s.alpha_bar[t])
            c_t = np.sqrt(s.alpha[t]) * (1 - s.alpha_bar[t - 1]) / (1 - s.alpha_bar[t])
            x = (c_0 * x_0 + c_t * x).astype(np.float32)
            if t > 1:
                x += 1e-4 * rng.standard_normal(x.shape).astype(np.float32)
        return (np.float32(0.5) + x / 2).clip(0, 1) * 2 - 1


LOOP = ["sample-start", "sample-visits", "sample-steps", "sample-last"]


def test_a_loop_whose_images_leave_through_0_to_1_is_right():
    report = check(Sampler(), only=LOOP)
    assert [r.status for r in report] == ["holds"] * 4, report.table()


def test_a_nan_in_a_loop_is_named_where_it_begins_and_breaks_nothing_else():
    report = check(Sampler(spoil=700), only=LOOP)
    assert [r.status for r in report] == ["holds", "holds", "broken", "not offered"], report.table()
    assert report.broken[0].t == 700


class ClampedDecoder:
    """Learned variances between β_1 and a β̃_1 clamped to 1e-20, and L_0 with every probability raised to 1e-15."""

    def __init__(self, off: float = 0.0) -> None:
        self.conventions = {"var": "learned_range", "decoder_cdf": "tanh", "shape": (64,)}
        self.off = off

    def p_mean_var(self, x_t, t, output, v):
        beta = np.linspace(1e-4, 0.02, 1000)[t - 1, None]
        abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
        before = np.append(1, abar)[t - 1, None]
        tilde = np.maximum((1 - before) / (1 - abar[t - 1, None]) * beta, 1e-20)
        var = np.exp((v + 1) / 2 * np.log(beta) + (1 - v) / 2 * np.log(tilde))
        return (x_t - beta / np.sqrt(1 - abar[t - 1, None]) * output) / np.sqrt(1 - beta), var

    def bound_term(self, x_0, x_t, t, output, v):
        mean, var = self.p_mean_var(x_t, t, output, v)
        a, b = ((x_0 - mean + sign / 255) / np.sqrt(var) for sign in (-1, 1))
        p = np.diff([0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (e + 0.044715 * e**3))) for e in (a, b)], axis=0)[0]
        return -np.log(np.maximum(p, 1e-15)).mean(axis=1) + self.off


def test_a_decoder_that_clamps_lost_probabilities_is_right_and_one_that_is_off_is_not():
    assert [r.status for r in check(ClampedDecoder(), only=["bound-last"])] == ["holds"]
    assert [r.status for r in check(ClampedDecoder(off=20.0), only=["bound-last"])] == ["broken"]
