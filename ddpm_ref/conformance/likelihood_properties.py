"""The bound: L_T, L_{t-1} and L_0 (§3.1, §3.3; Eqs. 5, 13)."""

import math

import numpy as np

from ddpm_ref.checks import Array
from ddpm_ref.conformance.adapter import AdapterError, NotFinite, NotThere
from ddpm_ref.conformance.decoder_properties import SMALLEST, decoder, log_probability, unit
from ddpm_ref.conformance.forward_properties import Draws, draws, posterior_mean, posterior_variance
from ddpm_ref.conformance.judge import Broken, Case, NotOffered
from ddpm_ref.conformance.property import Property
from ddpm_ref.conformance.reverse_properties import (
    mean_formula,
    reverse_mean,
    reverse_variance,
    variance_formula,
    variance_output,
)
from ddpm_ref.conformance.tolerance import Formula
from ddpm_ref.forward import q_posterior
from ddpm_ref.gaussian import normal_kl
from ddpm_ref.schedule import Schedule

FLOOR = 40.0  # no clamp is below e^-40 (1e-12 in the released code, 1e-15 elsewhere)
DEEP_FLOORS = (-math.log(1e-300), -math.log(np.finfo(float).tiny))  # but for these
DEEPEST = -1e30  # in place of the -∞ of a σ that clamps make as small as 1e-10


def prior(case: Case) -> None:
    """L_T = KL(q(x_T | x_0) ‖ N(0, I)), the mean over an image's elements, for each image."""
    t, rng = np.full(4, case.c.T), case.rng()
    x_0 = case.images(rng, t) * np.array([0.2, 1, 30, 100]).reshape(-1, *[1] * len(case.c.shape))
    x_0 = case.rounded(x_0)
    got = case.adapter.array("prior_kl", (4,), x_0.astype(case.c.dtype))
    axes, size = tuple(range(1, x_0.ndim)), int(np.prod(case.c.shape))

    def formula(s: Schedule, t: Array, x: Array) -> Array:
        return s.L_T((x**2).mean(axis=axes)) * unit(case)

    wanted, tol = case.tolerance(formula, t, x_0)
    tol = tol + 8 * case.eps
    wrong: dict[str, Formula] = {
        "the sum over an image, not the mean": lambda s, t, x: formula(s, t, x) * size,
        "in bits: declare units": lambda s, t, x: formula(s, t, x) / math.log(2),
        "in nats: declare units": lambda s, t, x: formula(s, t, x) * math.log(2),
    }
    case.compare(got, wanted, tol, t, lambda: case.explain(got, formula, t, (x_0,), tol, wrong))


def bound(case: Case) -> None:
    """L_{t-1} = KL(q(x_{t-1} | x_t, x_0) ‖ p_θ(x_{t-1} | x_t)) for t > 1, the mean over an image's elements."""
    d = draws(case, first=2)
    v = variance_output(case, d.t)
    got = _ask_bound(case, d, v)
    mean, var = mean_formula(case), variance_formula(case)

    def kl(s: Schedule, t: Array, x_0: Array, x_t: Array, y: Array, *v: Array, p: Schedule | None = None) -> Array:
        mean_q, var_q = q_posterior(s, x_0, x_t, t)
        terms = normal_kl(mean_q, var_q, mean(p or s, t, x_t, y), var(p or s, t, x_t, *v))
        return terms.reshape(len(t), -1).mean(axis=1) * unit(case)

    def squared_kl(s: Schedule, t: Array, x_0: Array, x_t: Array, y: Array, *v: Array) -> Array:
        mean_q, var_q = q_posterior(s, x_0, x_t, t)
        terms = normal_kl(mean_q, var_q**2, mean(s, t, x_t, y), var(s, t, x_t, *v) ** 2)
        return terms.reshape(len(t), -1).mean(axis=1) * unit(case)

    inputs = (d.x_0, d.x_t, d.output, *v)
    wanted, tol = case.tolerance(kl, d.t, *inputs)
    # The two means may be rounded apart: by the tables, and by ε of their own.
    apart = case.tolerance(lambda s, t, *x: kl(s, t, *x, p=case.process), d.t, *inputs)[1]
    s, sigma2 = case.process, var(case.process, d.t, d.x_t, *v)
    off = 4 * case.eps * (np.abs(d.x_t) + np.abs(d.x_0))
    gap = np.abs(q_posterior(s, d.x_0, d.x_t, d.t)[0] - mean(s, d.t, d.x_t, d.output))
    rounding = ((gap * off + off**2) / sigma2).reshape(len(d.t), -1).mean(axis=1) + 64 * case.eps
    tol = tol + apart + rounding * unit(case)
    if (np.abs(got - wanted) <= tol).all():
        return
    if _own_kl(case, d, v, got, rounding):
        case.follows(
            ("posterior-mean", posterior_mean),
            ("posterior-var", posterior_variance),
            ("reverse-mean", reverse_mean),
            ("reverse-var", reverse_variance),
        )
        return
    size = int(np.prod(case.c.shape))
    wrong: dict[str, Formula] = {
        "the sum over an image, not the mean": lambda *a: kl(*a) * size,
        "in bits: declare units": lambda *a: kl(*a) / math.log(2),
        "in nats: declare units": lambda *a: kl(*a) * math.log(2),
        "T times it": lambda *a: kl(*a) * case.c.T,
        "the divergence the other way round": lambda s, t, x_0, x_t, y, *v: (
            normal_kl(mean(s, t, x_t, y), var(s, t, x_t, *v), *q_posterior(s, x_0, x_t, t))
            .reshape(len(t), -1)
            .mean(axis=1)
            * unit(case)
        ),
        "variances taken for standard deviations": squared_kl,
        "the part of the means alone (Eq. 8, without its constant)": lambda s, t, x_0, x_t, y, *v: (
            ((q_posterior(s, x_0, x_t, t)[0] - mean(s, t, x_t, y)) ** 2 / (2 * var(s, t, x_t, *v)))
            .reshape(len(t), -1)
            .mean(axis=1)
            * unit(case)
        ),
    }
    case.compare(got, wanted, tol, d.t, lambda: case.explain(got, kl, d.t, inputs, tol, wrong))


def _own_kl(case: Case, d: Draws, v: tuple[Array, ...], got: Array, rounding: Array) -> bool:
    """Whether it is the divergence of their own moments: that those are wrong, other properties say."""
    if not {"q_posterior", "p_mean_var"} <= set(case.adapter.functions):
        return False
    q = [case.ask("q_posterior", d.t, d.x_0, d.x_t, None, pick=i) for i in (0, 1)]
    p = [case.ask("p_mean_var", d.t, d.x_t, None, d.output, *v, pick=i) for i in (0, 1)]
    with np.errstate(all="ignore"):
        wanted = normal_kl(*q, *p).reshape(len(d.t), -1).mean(axis=1)
    return bool((np.abs(got / unit(case) - wanted) <= 2 * rounding + 1e-3 * np.abs(wanted)).all())


def _ask_bound(case: Case, d: Draws, v: tuple[Array, ...]) -> Array:
    parts, rows = [], max(1, (1 << 19) // d.x_0[0].size)
    for begin in range(0, len(d.t), rows):
        part = slice(begin, begin + rows)
        x_0, x_t, y, *more = (x[part].astype(case.c.dtype) for x in (d.x_0, d.x_t, d.output, *v))
        try:
            parts.append(case.adapter.array("bound_term", (len(x_0),), x_0, x_t, case.c.theirs(d.t[part]), y, *more))
        except NotFinite as bad:
            raise Broken(bad.value, "a finite number", t=int(d.t[begin + bad.index[0]])) from None
    return np.concatenate(parts)


def last_term(case: Case) -> None:
    """L_0 = -log p_θ(x_0 | x_1) of the discretised decoder at t = 1, the mean over an image's elements.

    σ_1² is left open by the paper: β_1, β̃_2 (the released code), what p_mean_var says, or what the network learned.
    """
    d = draws(case, inner=True)
    if d.t[0] != 1:
        raise NotOffered("β_1 = 0: there is no first step")
    d = Draws(*(x[:1] for x in (d.t, d.x_0, d.eps, d.x_t, d.output)))
    v = variance_output(case, d.t)
    got = _ask_bound(case, d, v)
    mean, off = _first_mean(case, d, v)
    answers: dict[str, float] = {}
    for text, sigma2 in _first_variances(case, d, v).items():
        log_p, slack = log_probability(case, d.x_0, mean, sigma2)
        log_p = np.maximum(log_p, DEEPEST)
        edges = (log_probability(case, d.x_0, mean + w * off, sigma2)[0] for w in (-1, 1))
        moved = np.maximum(*(np.abs(np.maximum(edge, -FLOOR) - np.maximum(log_p, -FLOOR)) for edge in edges))
        lost = log_p < math.log(SMALLEST)  # to rounding, or to a clamp, or exact after all
        tol = np.where(lost, 0, 2 * moved + np.minimum(slack, 1e-3 * np.abs(log_p) + 0.01)).mean() + 64 * case.eps
        answers[text] = wanted = float(-log_p.mean())
        least, most = (np.where(lost, nats, -log_p).mean() for nats in (-math.log(SMALLEST), FLOOR))
        exact = abs(got[0] / unit(case) - wanted) <= tol + 0.01 * np.where(lost, -log_p, 0).mean()
        clamped = any(
            abs(got[0] / unit(case) - np.minimum(-log_p, f).mean()) <= 2 * tol + 1e-3 * f for f in DEEP_FLOORS
        )
        if exact or clamped or least - tol <= got[0] / unit(case) <= most + tol:
            return
    text, wanted = next(iter(answers.items()))
    if _is_own_decoder(case, d, v, got, mean):
        case.follows(("decoder", decoder), ("reverse-var", reverse_variance))
    words = ""
    for what, factor in (
        ("the sum over an image, not the mean", float(np.prod(case.c.shape))),
        ("in bits: declare units", 1 / math.log(2)),
        ("in nats: declare units", math.log(2)),
        ("the sign", -1.0),
    ):
        if any(abs(got[0] / unit(case) - factor * a) <= 1e-3 * abs(a) < np.inf for a in answers.values()):
            words = what
    other = "tanh" if case.c.decoder_cdf == "exact" else "exact"
    for sigma2 in _first_variances(case, d, v).values():
        if abs(got[0] / unit(case) + log_probability(case, d.x_0, mean, sigma2, other)[0].mean()) <= 1e-5 * (
            1 + got[0]
        ):
            words = f'Φ is {other}: declare decoder_cdf="{other}" if that is meant'
    raise Broken(float(got[0]), wanted * unit(case), words or _density(case, d, v, got, mean, text), t=1)


def _is_own_decoder(case: Case, d: Draws, v: tuple[Array, ...], got: Array, mean: Array) -> bool:
    """Whether it is what their own decoder says of the mean and one of the variances."""
    if "decoder" not in case.adapter:
        return False
    variances = list(_first_variances(case, d, v).values())
    if case.c.learned and case.broken(reverse_variance) is not None:
        variances.append(case.ask("p_mean_var", d.t, d.x_t, None, d.output, *v, pick=1))
    for sigma2 in variances:
        args = (x.astype(case.c.dtype) for x in (d.x_0, mean, np.broadcast_to(sigma2, mean.shape)))
        own = -case.adapter.array("decoder", d.x_0.shape, *args, finite=False).mean()
        if abs(got[0] - own) <= 1e-3 * (1 + abs(own)):
            return True
    return False


def _density(case: Case, d: Draws, v: tuple[Array, ...], got: Array, mean: Array, first: str) -> str:
    """Whether it is the density at x_0 that was taken for the bin's probability, perhaps with σ² for σ; in words."""
    for sigma2 in _first_variances(case, d, v).values():
        for text, var in (("", sigma2), (", and with σ² for σ", sigma2**2)):
            density = 0.5 * ((d.x_0 - mean) ** 2 / var + np.log(2 * np.pi * var)).mean()
            if abs(got[0] / unit(case) - density) <= 1e-2 * (1 + abs(density)):
                return f"the density at x_0, not the probability of its bin{text}"
    return f"what is wanted is with σ_1² = {first}"


def _first_mean(case: Case, d: Draws, v: tuple[Array, ...]) -> tuple[Array, Array]:
    """μ_θ(x_1, 1) and how far off it may be: theirs as it is, if they offer it (another property judges it)."""
    mean, off = case.tolerance(mean_formula(case), d.t, d.x_t, d.output)
    off = off + case.tolerance(mean_formula(case, form="Eq. 7"), d.t, d.x_t, d.output)[1]
    if "p_mean_var" in case.adapter:
        try:
            theirs = case.ask("p_mean_var", d.t, d.x_t, None, d.output, *v, pick=0)
        except (Broken, AdapterError, NotThere):
            return mean, off  # its own property says so
        return theirs, 8 * case.eps * (np.abs(d.x_t) + np.abs(d.x_0))
    return mean, off


def _first_variances(case: Case, d: Draws, v: tuple[Array, ...]) -> dict[str, Array]:
    """What σ_1² may be."""
    s, shape = case.process, d.x_0.shape
    if case.c.var == "learned_log":
        return {"the network's": np.exp(v[0])}
    if case.c.var == "learned_var":
        return {"the network's": v[0]}
    found: dict[str, Array] = {}
    if case.c.var == "learned_range":
        share = (v[0] + 1) / 2
        found["between log β_1 and log β̃_2"] = np.exp(share * np.log(s.beta[1]) + (1 - share) * np.log(s.beta_tilde[2]))
    elif not isinstance(case.c.var, str):
        found["the declared one"] = np.full(shape, max(case.c.var[0], 1e-20))
    found |= {"β̃_2": np.full(shape, s.beta_tilde[2]), "β_1": np.full(shape, s.beta[1])}
    if "p_mean_var" in case.adapter:
        try:
            theirs = case.ask("p_mean_var", d.t, d.x_t, None, d.output, *v, pick=1)
            found["that of p_mean_var"] = np.maximum(theirs, 1e-20)
        except (Broken, AdapterError, NotThere):
            pass  # its own property says so
    return found


PROPERTIES = (
    Property("prior-kl", "Eq. 5, §4", "L_T of each image", ("prior_kl",), prior),
    Property("bound-term", "Eq. 5", "L_{t-1}, t > 1", ("bound_term",), bound),
    Property("bound-last", "Eqs. 5, 13", "L_0, at t = 1", ("bound_term",), last_term),
)
