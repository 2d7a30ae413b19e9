"""One reverse step: mean and variance of p_θ(x_{t-1} | x_t), and Algorithm 2's line 4 (§3.2; Eqs. 1, 11)."""

import numpy as np

from ddpm_ref.checks import Array
from ddpm_ref.conformance.forward_properties import (
    POSTERIOR_MISTAKES,
    Draws,
    draws,
    estimate,
    posterior_mean,
    spread,
)
from ddpm_ref.conformance.judge import Broken, Case, Explanation, NotOffered
from ddpm_ref.conformance.likeness import half_precision
from ddpm_ref.conformance.property import Property
from ddpm_ref.conformance.schedule_properties import VARIANCE_MISTAKES
from ddpm_ref.conformance.tolerance import Formula
from ddpm_ref.forward import per_image, q_posterior
from ddpm_ref.reverse import PARAMETRISATIONS, output_from_x_0, output_to_x_0, p_mean
from ddpm_ref.schedule import Schedule

# At t = 1 some clamp the variance to 1e-20 and multiply noise by its root.
CLAMPED_NOISE = 1e-9


def variance_output(case: Case, t: Array) -> tuple[Array, ...]:
    """What the network says of σ_t², one image for each step: () unless variances are learned."""
    if not case.c.learned:
        return ()
    rng = case.rng(1)
    shape = (len(t), *case.c.shape)
    if case.c.var == "learned_range":
        return (case.rounded(rng.uniform(-1, 1, shape)),)
    log_var = np.log(per_image(case.process.beta[t], np.empty(shape))) + rng.uniform(-1, 0.5, shape)
    return (case.rounded(log_var if case.c.var == "learned_log" else np.exp(log_var)),)


def variance_formula(case: Case) -> Formula:
    """σ_t² as declared, of the inputs (x_t[, var_output]), for t > 1."""
    var = case.c.var
    if not isinstance(var, str):
        table = np.concatenate([[0.0], var])
        return spread(lambda s, t: table[t])
    if var == "beta":
        return spread(lambda s, t: s.beta[t])
    if var == "beta_tilde":
        return spread(lambda s, t: s.beta_tilde[t])

    def learned(s: Schedule, t: Array, x_t: Array, v: Array) -> Array:
        if var == "learned_var":
            return v
        if var == "learned_log":
            return np.exp(v)
        share = (v + 1) / 2
        log_beta, log_tilde = (per_image(np.log(table[t]), x_t) for table in (s.beta, s.beta_tilde))
        return np.exp(share * log_beta + (1 - share) * log_tilde)

    return learned


def mean_formula(case: Case, predicts: str | None = None, clip: bool = False, form: str = "direct") -> Formula:
    """μ_θ of (x_t, output): Eq. 11 for ε, the output itself for μ, else Eq. 7 at x̂_0 (for all with form="Eq. 7").

    clip: x̂_0 is clipped to data_range, and the mean is Eq. 7 at it.
    """
    predicts = predicts or case.c.predicts

    def formula(s: Schedule, t: Array, x_t: Array, output: Array) -> Array:
        if not clip and form == "direct":
            if predicts == "eps":
                return p_mean(s, x_t, t, output)
            if predicts == "mu":
                return output
        x_0_hat = output_to_x_0(s, x_t, t, output, predicts)
        return q_posterior(s, np.clip(x_0_hat, *case.c.data_range) if clip else x_0_hat, x_t, t)[0]

    return formula


def mean_mistakes(case: Case) -> dict[str, Formula]:
    """What a reverse mean is often mistaken for."""

    def eq_11(slope: Formula, root: Formula = lambda s, t: 1 / np.sqrt(s.alpha[t])) -> Formula:
        return lambda s, t, x, y: per_image(root(s, t), x) * (x - per_image(slope(s, t), x) * y)

    wrong: dict[str, Formula] = {}
    if case.c.predicts == "eps":
        wrong = {
            "1/√α_t is missing": eq_11(
                lambda s, t: s.beta[t] / np.sqrt(1 - s.alpha_bar[t]), lambda s, t: np.ones(len(t))
            ),
            "1/√ᾱ_t for 1/√α_t": eq_11(
                lambda s, t: s.beta[t] / np.sqrt(1 - s.alpha_bar[t]), lambda s, t: 1 / np.sqrt(s.alpha_bar[t])
            ),
            "1/α_t for 1/√α_t": eq_11(
                lambda s, t: s.beta[t] / np.sqrt(1 - s.alpha_bar[t]), lambda s, t: 1 / s.alpha[t]
            ),
            "1 - ᾱ_t for √(1 - ᾱ_t) under β_t": eq_11(lambda s, t: s.beta[t] / (1 - s.alpha_bar[t])),
            "√β_t for β_t before ε": eq_11(lambda s, t: np.sqrt(s.beta[t]) / np.sqrt(1 - s.alpha_bar[t])),
            "√(1 - ᾱ_{t-1}) for √(1 - ᾱ_t)": eq_11(
                lambda s, t: s.beta[t] / np.sqrt(np.maximum(1 - s.alpha_bar[t - 1], 1e-300))
            ),
            "√(1 - α_t) for √(1 - ᾱ_t)": eq_11(lambda s, t: np.sqrt(s.beta[t])),
            "√α_t multiplies where it should divide": eq_11(
                lambda s, t: s.beta[t] / np.sqrt(1 - s.alpha_bar[t]), lambda s, t: np.sqrt(s.alpha[t])
            ),
            "ε is added, not subtracted": eq_11(lambda s, t: -s.beta[t] / np.sqrt(1 - s.alpha_bar[t])),
        }
    predicts, right = case.c.predicts, mean_formula(case)
    low, high = case.c.data_range
    wrong["the mean itself is clipped to data_range"] = lambda s, t, x, y: np.clip(right(s, t, x, y), low, high)
    wrong["x̂_0 is clipped to [0, 1], not to data_range"] = lambda s, t, x, y: q_posterior(
        s, np.clip(output_to_x_0(s, x, t, y, predicts), 0, 1), x, t
    )[0]
    wrong["this is x̂_0 itself"] = lambda s, t, x, y: output_to_x_0(s, x, t, y, predicts)
    for text, posterior in POSTERIOR_MISTAKES.items():
        wrong[f"Eq. 7 with {text}"] = lambda s, t, x, y, f=posterior: f(s, t, output_to_x_0(s, x, t, y, predicts), x)
    for other in PARAMETRISATIONS:
        if other != predicts:
            text = f'as if the network predicted {other}: declare predicts="{other}" if it does'
            wrong[text] = mean_formula(case, other)
    return wrong


def ask_mean(case: Case, name: str, d: Draws, v: tuple[Array, ...] | None = None) -> Array:
    """Their μ_θ: of p_mean_var, or of reverse_step with z = 0; v: what the network says of σ_t², or some."""
    more = variance_output(case, d.t) if v is None else v
    if name == "p_mean_var":
        return case.ask(name, d.t, d.x_t, None, d.output, *more, pick=0)
    return case.ask(name, d.t, d.x_t, None, d.output, np.zeros_like(d.x_t), *more)


def _mean(case: Case, name: str) -> None:
    d = draws(case)
    got = ask_mean(case, name, d)
    also = mean_formula(case, form="Eq. 7")
    try:
        case.judge(got, mean_formula(case), d.t, d.x_t, d.output, also=also, mistakes=mean_mistakes(case))
    except Broken:
        if _is_own(case, d, got):
            case.follows(("predict-x-0", estimate), ("posterior-mean", posterior_mean))
        raise


def _is_own(case: Case, d: Draws, got: Array) -> bool:
    """Whether this is the mean of their own q_posterior, or of Eq. 7, at the x̂_0 of their own predict_x_0 or Eq. 15."""
    x_0_hat = output_to_x_0(case.process, d.x_t, d.t, d.output, case.c.predicts)
    if "predict_x_0" in case.adapter:
        x_0_hat = case.ask("predict_x_0", d.t, d.x_t, None, d.output)
    if case.c.clip:
        x_0_hat = np.clip(x_0_hat, *case.c.data_range)
    if "q_posterior" in case.adapter:
        own = case.ask("q_posterior", d.t, case.rounded(x_0_hat), d.x_t, None, pick=0)
    else:
        own = q_posterior(case.process, x_0_hat, d.x_t, d.t)[0]
    tol = case.tolerance(mean_formula(case, form="Eq. 7"), d.t, d.x_t, d.output)[1]
    return bool((np.abs(got - own) <= tol + 64 * case.eps * (np.abs(own) + np.abs(x_0_hat) + np.abs(d.x_t))).all())


def reverse_mean(case: Case) -> None:
    """μ_θ(x_t, t) = (x_t - β_t/√(1 - ᾱ_t) ε_θ) / √α_t, or its like for x_0, μ and v; x̂_0 lies inside data_range."""
    _mean(case, "p_mean_var")


def step_mean(case: Case) -> None:
    """Line 4 of Algorithm 2 with z = 0 gives μ_θ(x_t, t)."""
    _mean(case, "reverse_step")


def reverse_variance(case: Case) -> None:
    """σ_t² is the declared one at every t > 1. At t = 1 the paper leaves it open: finite and not negative will do."""
    d = draws(case)
    v = variance_output(case, d.t)
    got = case.ask("p_mean_var", d.t, d.x_t, None, d.output, *v, pick=1)
    first, rest = d.t == 1, d.t > 1
    inputs = (d.x_t[rest], *(x[rest] for x in v))
    formula, wrong = variance_formula(case), variance_mistakes(case)
    slack = by_logarithm(case, formula(case.process, d.t[rest], *inputs))
    case.judge(got[rest], formula, d.t[rest], *inputs, mistakes=wrong, slack=slack)
    if (got[first] < 0).any():
        raise Broken(float(got[first].min()), "a variance, not negative", t=1)


def by_logarithm(case: Case, var: Array) -> Array:
    """The rounding of a variance that is kept as its logarithm: e^(log σ²) is off by ε |log σ²|."""
    with np.errstate(all="ignore"):
        off: Array = 2 * case.eps * np.abs(np.log(var)) * var
    return np.where(np.isfinite(off), off, 0.0)


def variance_mistakes(case: Case) -> dict[str, Formula]:
    """What σ_t² is often mistaken for, and which declaration would fit."""
    right = variance_formula(case)
    wrong: dict[str, Formula] = {}
    for name, table in (("beta", lambda s, t: s.beta[t]), ("beta_tilde", lambda s, t: s.beta_tilde[t])):
        if case.c.var != name:
            wrong[f'σ_t² is {"β_t" if name == "beta" else "β̃_t"}: declare var="{name}" if that is meant'] = spread(
                table
            )
    wrong["the standard deviation where the variance is meant"] = lambda s, t, *x: np.sqrt(right(s, t, *x))
    wrong["log σ_t² where the variance is meant"] = lambda s, t, *x: np.log(right(s, t, *x))
    wrong["σ_t⁴ where σ_t² is meant"] = lambda s, t, *x: right(s, t, *x) ** 2
    if case.c.var == "learned_range":
        wrong["log β_t and log β̃_t are swapped"] = lambda s, t, x, v: right(s, t, x, -v)
        wrong["v itself is the fraction, not (v + 1) / 2"] = lambda s, t, x, v: right(s, t, x, 2 * v - 1)
        wrong["β_t and β̃_t are mixed, not their logarithms"] = lambda s, t, x, v: (
            (v + 1) / 2 * per_image(s.beta[t], x) + (1 - v) / 2 * per_image(s.beta_tilde[t], x)
        )
    return wrong | {text: spread(table) for text, table in VARIANCE_MISTAKES.items()}


def clipping(case: Case) -> None:
    """Where x̂_0 leaves data_range, the mean is that of x̂_0 at its end if clip is declared, and goes on if not.

    Judged by their own means for x̂_0 inside, since the mean is linear in x̂_0: a wrong mean does not break this. Some
    elements stay inside, the others leave it on either side, by differing amounts. For a network that predicts μ both
    are accepted under clip (the released code leaves μ as it is).
    """
    d, (low, high), rng = draws(case), case.c.data_range, case.rng(3)
    middle, half, shape = (low + high) / 2, (high - low) / 2, d.x_t.shape
    name = "p_mean_var" if "p_mean_var" in case.adapter else "reverse_step"
    side = rng.choice([-1.0, 1.0], shape)
    far = np.where(rng.random(shape) < 0.5, rng.uniform(0.1, 0.9, shape), rng.uniform(1.1, 2.5, shape))

    def mean_at(factor: Array | float) -> tuple[Array, Array, Array]:
        """Their mean for x̂_0 at this distance from the middle, and how far rounding may lead, and x̂_0 itself."""
        x_0_hat = middle + side * half * factor
        output = case.rounded(output_from_x_0(case.process, d.x_t, d.t, x_0_hat, case.c.predicts))
        mean = ask_mean(case, name, Draws(d.t, d.x_0, d.eps, d.x_t, output))
        tol = case.tolerance(mean_formula(case, form="Eq. 7"), d.t, d.x_t, output)[1]
        estimate_of: Formula = lambda s, t, x, y: output_to_x_0(s, x, t, y, case.c.predicts)  # noqa: E731
        off = case.tolerance(estimate_of, d.t, d.x_t, output)[1]
        return mean, tol + 4 * case.eps * (np.abs(mean) + np.abs(d.x_t)), off

    (near, tol_near, _), (inside, tol_inside, _), (got, tol_got, off) = (mean_at(f) for f in (0.3, 0.9, far))
    slope, reach = (inside - near) / 0.6, (far - 0.9) / 0.6
    tol = tol_got + np.abs(1 + reach) * tol_inside + np.abs(reach) * tol_near + np.abs(slope) / half * off

    def at(x_0_hat: Array) -> Array:
        """The mean at x̂_0, from the two inside."""
        return inside + slope * (side * (x_0_hat - middle) / half - 0.9)

    x_0_hat = middle + side * half * far
    free, clipped = at(x_0_hat), at(np.clip(x_0_hat, low, high))
    if case.c.clip and case.c.predicts == "mu" and (np.abs(got - free) <= tol).all():
        return

    def why() -> Explanation:
        flat = np.abs(x_0_hat - middle).reshape(len(shape) and shape[0], -1).max(axis=1)
        threshold = per_image(np.maximum(flat / half, 1), x_0_hat)
        for text, other in (
            ("x̂_0 is clipped where it has no effect: the mean is that of the unclipped one, Eq. 11", free),
            ("x̂_0 is clipped: declare clip=True if that is meant", clipped),
            ("x̂_0 is clipped to [-1, 1], not to data_range", at(np.clip(x_0_hat, -1, 1))),
            ("x̂_0 is clipped to [0, 1], not to data_range", at(np.clip(x_0_hat, 0, 1))),
            ("x̂_0 is clipped from above only", at(np.minimum(x_0_hat, high))),
            ("x̂_0 is clipped from below only", at(np.maximum(x_0_hat, low))),
            (
                "the mean itself is clipped, not x̂_0",
                np.clip(q_posterior(case.process, x_0_hat, d.x_t, d.t)[0], low, high),
            ),
            (
                "x̂_0 is divided by its largest value where that is beyond data_range",
                at(middle + (x_0_hat - middle) / threshold),
            ),
        ):
            wanted = clipped if case.c.clip else free
            if not np.array_equal(other, wanted) and (np.abs(got - other) <= tol).all():
                return text, other
        return half_precision(got), None

    case.compare(got, clipped if case.c.clip else free, tol, d.t, why)


def step_noise(case: Case) -> None:
    """What z adds to a reverse step is exactly σ_t z at every t > 1: half the difference of steps with z and -z."""
    d = draws(case, first=2)
    v, z = variance_output(case, d.t), case.normal(case.rng(2), d.t)
    up, down = (case.ask("reverse_step", d.t, d.x_t, None, d.output, sign * z, *v) for sign in (1, -1))
    got = (up - down) / 2
    var = variance_formula(case)

    def noise(s: Schedule, t: Array, x_t: Array, z: Array, *v: Array) -> Array:
        return np.sqrt(var(s, t, x_t, *v)) * z

    wrong: dict[str, Formula] = {
        "σ_t² z where σ_t z is meant: the variance is used as the standard deviation": lambda s, t, x, z, *v: (
            var(s, t, x, *v) * z
        ),
        "σ_t = β^¼: the root of the variance is taken twice": lambda s, t, x, z, *v: var(s, t, x, *v) ** 0.25 * z,
        "no noise is added": lambda s, t, x, z, *v: np.zeros_like(z),
        "z is not scaled by σ_t": lambda s, t, x, z, *v: z,
        "½ log σ_t² z: the exponential is missing": lambda s, t, x, z, *v: 0.5 * np.log(var(s, t, x, *v)) * z,
        "the sign of z": lambda s, t, x, z, *v: -noise(s, t, x, z, *v),
    }
    for text, other in variance_mistakes(case).items():
        wrong.setdefault(text, lambda s, t, x, z, *v, f=other: np.sqrt(np.maximum(f(s, t, x, *v), 0)) * z)
    wanted, tol = case.tolerance(noise, d.t, d.x_t, z, *v)
    # The sum of mean and noise is rounded as a whole.
    tol = tol + 4 * case.eps * np.maximum(np.abs(up), np.abs(down)) + 4 * case.eps
    sigma2 = var(case.process, d.t, d.x_t, *v)
    tol = tol + by_logarithm(case, sigma2) / np.sqrt(sigma2) * np.abs(z)
    inputs = (d.x_t, z, *v)
    case.compare(got, wanted, tol, d.t, lambda: case.explain(got, noise, d.t, inputs, tol, wrong))


def last_step(case: Case) -> None:
    """At t = 1 a reverse step does not depend on z (Algorithm 2, line 3)."""
    d = draws(case)
    only = Draws(*(x[:1] for x in (d.t, d.x_0, d.eps, d.x_t, d.output)))
    if only.t[0] != 1:
        raise NotOffered("β_1 = 0: there is no first step")
    v, z = variance_output(case, only.t), case.normal(case.rng(2), only.t)
    one, other = (case.ask("reverse_step", only.t, only.x_t, None, only.output, sign * z, *v) for sign in (1, -1))
    size = np.abs(one - other) / 2
    if (size > CLAMPED_NOISE + 8 * case.eps * (1 + np.abs(one))).any():
        at = int(np.argmax(size))
        sigma = float((np.abs((one - other) / 2 / z)).reshape(-1)[at])
        raise Broken(sigma, 0.0, "noise is added at t = 1: σ_1 in front of z", t=1)


PROPERTIES = (
    Property("reverse-mean", "Eq. 11", "mean of p_θ(x_{t-1} | x_t)", ("p_mean_var",), reverse_mean),
    Property("reverse-var", "§3.2", "variance of p_θ(x_{t-1} | x_t), t > 1", ("p_mean_var",), reverse_variance),
    Property("clip", "Eqs. 7, 15", "x̂_0 beyond data_range", ("p_mean_var|reverse_step",), clipping),
    Property("step-mean", "Alg. 2, line 4", "a reverse step with z = 0", ("reverse_step",), step_mean),
    Property("step-noise", "Alg. 2, line 4", "noise of a reverse step is σ_t z", ("reverse_step",), step_noise),
    Property("last-step", "Alg. 2, line 3", "no noise at t = 1", ("reverse_step",), last_step),
)
