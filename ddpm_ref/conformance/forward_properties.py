"""The forward process, its posterior and what x_t says of x_0 (§2, §3.2; Eqs. 2, 4, 6, 7, 15)."""

from dataclasses import dataclass

import numpy as np

from ddpm_ref.checks import Array
from ddpm_ref.conformance.judge import Broken, Case, Mistakes
from ddpm_ref.conformance.property import Property
from ddpm_ref.conformance.schedule_properties import VARIANCE_MISTAKES
from ddpm_ref.conformance.tolerance import Formula
from ddpm_ref.forward import per_image, predict_eps, q_posterior, q_sample, q_step
from ddpm_ref.reverse import PARAMETRISATIONS, output_from_x_0, output_to_x_0
from ddpm_ref.schedule import Schedule


@dataclass(frozen=True)
class Draws:
    """One image for each step tried: x_0, ε, x_t, an estimate x̂_0 of x_0, and the network's output that says it."""

    t: Array
    x_0: Array
    eps: Array
    x_t: Array
    output: Array


def draws(case: Case, first: int = 1, outside: bool = False, inner: bool = False) -> Draws:
    """Inputs for every step from `first` on where the network's output determines x_0.

    The output is off by 0.3 standard deviations of what it predicts, but its x̂_0 stays inside data_range, so that
    clipping has nothing to do; with outside, half of the elements of x̂_0 lie beyond it. inner: no x_0 near the ends.
    """
    rng, s, (low, high) = case.rng(), case.process, case.c.data_range
    t = case.steps[case.steps >= first]
    t = t[(s.alpha_bar[t] > 0) & (s.alpha_bar[t] < 1)]
    x_0, eps = case.images(rng, t, inner), case.normal(rng, t)
    x_t = case.rounded(q_sample(s, x_0, t, eps))
    middle, half = (low + high) / 2, (high - low) / 2
    noise = per_image(np.sqrt((1 - s.alpha_bar[t]) / s.alpha_bar[t]), x_t)
    x_0_hat = x_0 - 0.3 * noise * rng.standard_normal(x_0.shape)
    x_0_hat = middle + np.clip(x_0_hat - middle, -0.9 * half, 0.9 * half)
    if outside:
        beyond = middle + np.sign(x_0_hat - middle) * half * rng.uniform(1.2, 2, x_0.shape)
        x_0_hat = np.where(rng.random(x_0.shape) < 0.5, beyond, x_0_hat)
    output = case.rounded(output_from_x_0(s, x_t, t, x_0_hat, case.c.predicts))
    return Draws(t, x_0, eps, x_t, output)


# --- Eqs. 2 and 4 ----------------------------------------------------------------------------------------------------


def one_step(case: Case) -> None:
    """x_t = √(1 - β_t) x_{t-1} + √β_t ε at every t."""
    d = draws(case)
    case.judge(
        case.ask("q_step", d.t, d.x_0, None, d.eps),
        lambda s, t, x, eps: q_step(s, x, t, eps),
        d.t,
        d.x_0,
        d.eps,
        mistakes={
            "β_t where √β_t is meant": lambda s, t, x, e: (
                per_image(np.sqrt(s.alpha[t]), x) * x + per_image(s.beta[t], x) * e
            ),
            "1 - β_t where √(1 - β_t) is meant": lambda s, t, x, e: (
                per_image(s.alpha[t], x) * x + per_image(np.sqrt(s.beta[t]), x) * e
            ),
            "1 - β_t and β_t where their roots are meant": lambda s, t, x, e: (
                per_image(s.alpha[t], x) * x + per_image(s.beta[t], x) * e
            ),
            "x_{t-1} is not scaled by √(1 - β_t)": lambda s, t, x, e: x + per_image(np.sqrt(s.beta[t]), x) * e,
            "this is q(x_t | x_0), Eq. 4": lambda s, t, x, e: q_sample(s, x, t, e),
        },
    )


NOISING_MISTAKES: Mistakes = {
    "1 - ᾱ_t where √(1 - ᾱ_t) is meant": lambda s, t, x, e: (
        per_image(np.sqrt(s.alpha_bar[t]), x) * x + per_image(1 - s.alpha_bar[t], x) * e
    ),
    "ᾱ_t where √ᾱ_t is meant": lambda s, t, x, e: (
        per_image(s.alpha_bar[t], x) * x + per_image(np.sqrt(1 - s.alpha_bar[t]), x) * e
    ),
    "ᾱ_t and 1 - ᾱ_t where their roots are meant": lambda s, t, x, e: (
        per_image(s.alpha_bar[t], x) * x + per_image(1 - s.alpha_bar[t], x) * e
    ),
    "√(1 - ᾱ_t) and √ᾱ_t are swapped": lambda s, t, x, e: q_sample(s, e, t, x),
    "√ᾱ_t for √(1 - ᾱ_t) before ε": lambda s, t, x, e: per_image(np.sqrt(s.alpha_bar[t]), x) * (x + e),
    "(1 - t/T) x_0 + t/T ε, the straight line of flow matching": lambda s, t, x, e: (
        per_image(1 - t / s.T, x) * x + per_image(t / s.T, x) * e
    ),
    "this is one step, Eq. 2": lambda s, t, x, e: q_step(s, x, t, e),
    "the noise is subtracted": lambda s, t, x, e: q_sample(s, x, t, -e),
}


def noising(case: Case) -> None:
    """x_t = √ᾱ_t x_0 + √(1 - ᾱ_t) ε at every t, with ᾱ the product of their own β."""
    d = draws(case)
    got = case.ask("q_sample", d.t, d.x_0, None, d.eps)
    case.judge(got, lambda s, t, x, e: q_sample(s, x, t, e), d.t, d.x_0, d.eps, mistakes=NOISING_MISTAKES)


def noising_moments(case: Case) -> None:
    """q(x_t | x_0) has mean √ᾱ_t x_0 and variance 1 - ᾱ_t."""
    d = draws(case)
    case.judge(
        case.ask("q_mean_var", d.t, d.x_0, None, pick=0),
        lambda s, t, x: per_image(np.sqrt(s.alpha_bar[t]), x) * x,
        d.t,
        d.x_0,
        mistakes={"the mean is ᾱ_t x_0 where √ᾱ_t x_0 is meant": lambda s, t, x: per_image(s.alpha_bar[t], x) * x},
    )
    case.judge(
        case.ask("q_mean_var", d.t, d.x_0, None, pick=1),
        spread(lambda s, t: 1 - s.alpha_bar[t]),
        d.t,
        d.x_0,
        mistakes={
            "√(1 - ᾱ_t), a standard deviation where the variance is meant": spread(
                lambda s, t: np.sqrt(1 - s.alpha_bar[t])
            ),
            "log(1 - ᾱ_t) where the variance is meant": spread(lambda s, t: np.log(1 - s.alpha_bar[t])),
            "β_t, the variance of one step": spread(lambda s, t: s.beta[t]),
        },
    )


def spread(table: Formula) -> Formula:
    """One number per step as an image of it."""

    def formula(s: Schedule, t: Array, x: Array, *_: Array) -> Array:
        return np.broadcast_to(per_image(table(s, t), x), x.shape)

    return formula


def composition(case: Case) -> None:
    """t steps of their q_step are one q_sample: mean and variance composed from what they do to 1 and to 0.

        A_t = a_t A_{t-1}    V_t = a_t² V_{t-1} + b_t²    q_sample: A_t x_0 + √V_t ε

    Asked only where every step is tried (images not too large).
    """
    t = np.arange(1, case.c.T + 1)
    shape = (len(t), *case.c.shape)
    one, zero = np.ones(shape), np.zeros(shape)
    first = (slice(None), *[0] * len(case.c.shape))
    a, b = (case.ask("q_step", t, x, None, e)[first] for x, e in ((one, zero), (zero, one)))
    big_a, root_v = (case.ask("q_sample", t, x, None, e)[first] for x, e in ((one, zero), (zero, one)))
    A, V = np.cumprod(a), np.zeros(len(t))
    for i in range(len(t)):
        V[i] = a[i] ** 2 * (V[i - 1] if i else 0) + b[i] ** 2
    drift = case.eps * (t + 4)
    for got, wanted, formula in (
        (big_a, A, lambda s, t: np.sqrt(s.alpha_bar[t])),
        (root_v, np.sqrt(V), lambda s, t: np.sqrt(1 - s.alpha_bar[t])),
    ):
        tol = case.tolerance(formula, t)[1] + 4 * drift * np.abs(wanted)
        case.compare(got, wanted, tol, t, lambda: (_apart(case), None))


def _apart(case: Case) -> str:
    """Why noising steps and q_sample do not fit together, in words."""
    wrong = [name for name, check in (("q-step", one_step), ("q-sample", noising)) if case.broken(check) is not None]
    return f"follows from {' and '.join(wrong)}" if wrong else "q_step and q_sample belong to different processes"


# --- Eqs. 6, 7 and 15 ------------------------------------------------------------------------------------------------


def _posterior(**changed: Formula) -> Formula:
    """Eq. 7's mean with some of its coefficients replaced."""

    def formula(s: Schedule, t: Array, x_0: Array, x_t: Array) -> Array:
        c = {
            "c_0": lambda s, t: np.sqrt(s.alpha_bar[t - 1]) * s.beta[t] / (1 - s.alpha_bar[t]),
            "c_t": lambda s, t: np.sqrt(s.alpha[t]) * (1 - s.alpha_bar[t - 1]) / (1 - s.alpha_bar[t]),
        } | changed
        return per_image(c["c_0"](s, t), x_0) * x_0 + per_image(c["c_t"](s, t), x_t) * x_t

    return formula


POSTERIOR_MISTAKES: Mistakes = {
    "√ᾱ_t for √ᾱ_{t-1} before x_0": _posterior(
        c_0=lambda s, t: np.sqrt(s.alpha_bar[t]) * s.beta[t] / (1 - s.alpha_bar[t])
    ),
    "ᾱ_{t-1} for √ᾱ_{t-1} before x_0": _posterior(
        c_0=lambda s, t: s.alpha_bar[t - 1] * s.beta[t] / (1 - s.alpha_bar[t])
    ),
    "√α_t for √ᾱ_{t-1} before x_0": _posterior(c_0=lambda s, t: np.sqrt(s.alpha[t]) * s.beta[t] / (1 - s.alpha_bar[t])),
    "√β_t for β_t before x_0": _posterior(
        c_0=lambda s, t: np.sqrt(s.alpha_bar[t - 1]) * np.sqrt(s.beta[t]) / (1 - s.alpha_bar[t])
    ),
    "α_t for √α_t before x_t": _posterior(
        c_t=lambda s, t: s.alpha[t] * (1 - s.alpha_bar[t - 1]) / (1 - s.alpha_bar[t])
    ),
    "√ᾱ_t for √α_t before x_t": _posterior(
        c_t=lambda s, t: np.sqrt(s.alpha_bar[t]) * (1 - s.alpha_bar[t - 1]) / (1 - s.alpha_bar[t])
    ),
    "ᾱ_t for ᾱ_{t-1} before x_t": _posterior(c_t=lambda s, t: np.sqrt(s.alpha[t])),
    "ᾱ_t for ᾱ_{t-1}": _posterior(
        c_0=lambda s, t: np.sqrt(s.alpha_bar[t]) * s.beta[t] / (1 - s.alpha_bar[t]),
        c_t=lambda s, t: np.sqrt(s.alpha[t]),
    ),
    "the coefficients of x_0 and x_t are swapped": lambda s, t, x_0, x_t: q_posterior(s, x_t, x_0, t)[0],
}


def posterior_mean(case: Case) -> None:
    """The mean of q(x_{t-1} | x_t, x_0), √ᾱ_{t-1} β_t / (1 - ᾱ_t) x_0 + √α_t (1 - ᾱ_{t-1}) / (1 - ᾱ_t) x_t."""
    d = draws(case)
    case.judge(
        case.ask("q_posterior", d.t, d.x_0, d.x_t, None, pick=0),
        lambda s, t, x_0, x_t: q_posterior(s, x_0, x_t, t)[0],
        d.t,
        d.x_0,
        d.x_t,
        mistakes=POSTERIOR_MISTAKES,
    )


def posterior_variance(case: Case) -> None:
    """The variance of q(x_{t-1} | x_t, x_0), β̃_t for t > 1; at t = 1, where it is 0, a clamp is allowed.

    Where var is declared as a table, that of p_θ in its place is accepted, with a note: some code has but one.
    """
    d = draws(case)
    got = case.ask("q_posterior", d.t, d.x_0, d.x_t, None, pick=1)
    first, rest = d.t == 1, d.t > 1
    limit = max(case.process.beta_tilde[2], case.process.beta[1]) * (1 + 1e-3)
    if not ((got[first] >= 0) & (got[first] <= limit)).all():
        raise Broken(float(got[first].reshape(-1)[0]), "0 (or a small clamp)", t=1)
    mistakes = {text: spread(table) for text, table in VARIANCE_MISTAKES.items()}
    if not isinstance(case.c.var, str):
        declared = per_image(np.concatenate([[0.0], case.c.var])[d.t[rest]], got)
        if (np.abs(got[rest] - declared) <= 16 * case.eps * declared).all():
            case.notes.append("the declared σ_t² of p_θ stands in its place")
            return
    case.judge(got[rest], spread(lambda s, t: s.beta_tilde[t]), d.t[rest], d.x_0[rest], mistakes=mistakes)


def estimate(case: Case) -> None:
    """x̂_0 from the network's output, not clipped: (x_t - √(1 - ᾱ_t) ε) / √ᾱ_t, or its like for x_0, μ and v."""
    d, predicts = draws(case), case.c.predicts
    mistakes: dict[str, Formula] = {
        "the sign of the network's output": lambda s, t, x, y: output_to_x_0(s, x, t, -y, predicts),
        "not divided by √ᾱ_t": lambda s, t, x, y: (
            per_image(np.sqrt(s.alpha_bar[t]), x) * output_to_x_0(s, x, t, y, predicts)
        ),
        "1 - ᾱ_t for √(1 - ᾱ_t)": lambda s, t, x, y: (
            per_image(1 / np.sqrt(s.alpha_bar[t]), x) * (x - per_image(1 - s.alpha_bar[t], x) * y)
        ),
        "divided by ᾱ_t instead of √ᾱ_t": lambda s, t, x, y: (
            per_image(1 / np.sqrt(s.alpha_bar[t]), x) * output_to_x_0(s, x, t, y, predicts)
        ),
    }
    for other in PARAMETRISATIONS:
        if other != predicts:
            mistakes[f'as if the network predicted {other}: declare predicts="{other}" if it does'] = (
                lambda s, t, x, y, other=other: output_to_x_0(s, x, t, y, other)
            )
    case.judge(
        case.ask("predict_x_0", d.t, d.x_t, None, d.output),
        lambda s, t, x, y: output_to_x_0(s, x, t, y, predicts),
        d.t,
        d.x_t,
        d.output,
        mistakes=mistakes,
    )


def noise_from_x_0(case: Case) -> None:
    """ε = (x_t - √ᾱ_t x_0) / √(1 - ᾱ_t): Eq. 4 solved for the noise."""
    d = draws(case)
    case.judge(
        case.ask("predict_eps", d.t, d.x_t, None, d.x_0),
        lambda s, t, x_t, x_0: predict_eps(s, x_t, t, x_0),
        d.t,
        d.x_t,
        d.x_0,
        mistakes={
            "divided by 1 - ᾱ_t, not its root": lambda s, t, x_t, x_0: (
                per_image((1 - s.alpha_bar[t]) ** -0.5, x_t) * predict_eps(s, x_t, t, x_0)
            ),
            "the sign": lambda s, t, x_t, x_0: -predict_eps(s, x_t, t, x_0),
            "ᾱ_t for √ᾱ_t before x_0": lambda s, t, x_t, x_0: (
                (x_t - per_image(s.alpha_bar[t], x_t) * x_0) / per_image(np.sqrt(1 - s.alpha_bar[t]), x_t)
            ),
            "not divided by √(1 - ᾱ_t)": lambda s, t, x_t, x_0: x_t - per_image(np.sqrt(s.alpha_bar[t]), x_t) * x_0,
        },
    )


def target_of(predicts: str) -> Formula:
    """What a network that predicts this is trained to put out, from x_0 and ε."""

    def formula(s: Schedule, t: Array, x_0: Array, eps: Array) -> Array:
        if predicts == "eps":
            return eps
        if predicts == "v":
            return per_image(np.sqrt(s.alpha_bar[t]), x_0) * eps - per_image(np.sqrt(1 - s.alpha_bar[t]), x_0) * x_0
        return output_from_x_0(s, q_sample(s, x_0, t, eps), t, x_0, predicts)

    return formula


def training_target(case: Case) -> None:
    """What the network is trained to put out: ε, x_0, the posterior's mean, or v = √ᾱ_t ε - √(1 - ᾱ_t) x_0."""
    d, formula = draws(case), target_of(case.c.predicts)
    mistakes: dict[str, Formula] = {
        "the sign": lambda s, t, x_0, e: -formula(s, t, x_0, e),
        "√(1 - ᾱ_t) ε, the noise as it is added, where ε is meant": lambda s, t, x_0, e: (
            per_image(np.sqrt(1 - s.alpha_bar[t]), e) * e
        ),
        "√ᾱ_t x_0 - √(1 - ᾱ_t) ε: in v, x_0 and ε are swapped": lambda s, t, x_0, e: target_of("v")(s, t, e, x_0),
    }
    for other in PARAMETRISATIONS:
        if other != case.c.predicts:
            mistakes[f'the target of {other}: declare predicts="{other}" if it is meant'] = target_of(other)
    case.judge(case.ask("target", d.t, d.x_0, None, d.eps), formula, d.t, d.x_0, d.eps, mistakes=mistakes)


PROPERTIES = (
    Property("q-step", "Eq. 2", "one noising step", ("q_step",), one_step),
    Property("q-sample", "Eq. 4", "x_t from x_0 and ε", ("q_sample",), noising),
    Property("q-mean-var", "Eq. 4", "mean and variance of q(x_t | x_0)", ("q_mean_var",), noising_moments),
    Property("q-composes", "Eqs. 2, 4", "t noising steps are one", ("q_step", "q_sample"), composition),
    Property("posterior-mean", "Eq. 7", "mean of q(x_{t-1} | x_t, x_0)", ("q_posterior",), posterior_mean),
    Property("posterior-var", "Eq. 7", "variance of q(x_{t-1} | x_t, x_0)", ("q_posterior",), posterior_variance),
    Property("predict-x-0", "Eq. 15", "x̂_0 from the network's output", ("predict_x_0",), estimate),
    Property("predict-eps", "Eq. 4", "ε from x_t and x_0", ("predict_eps",), noise_from_x_0),
    Property("target", "Eqs. 10, 14", "what the network is trained to put out", ("target",), training_target),
)
