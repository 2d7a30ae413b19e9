"""The tables: β_t, ᾱ_t and the posterior's variance (§2, §4; Eqs. 4, 7)."""

import numpy as np

from ddpm_ref.checks import Array
from ddpm_ref.conformance.conventions import named_beta
from ddpm_ref.conformance.judge import Broken, Case, NotOffered
from ddpm_ref.conformance.likeness import half_precision
from ddpm_ref.conformance.property import Property
from ddpm_ref.conformance.tolerance import epsilon, process_of, schedule_drift
from ddpm_ref.schedule import SCHEDULES


def all_steps(case: Case) -> Array:
    """1 … T: tables are short."""
    return np.arange(1, case.c.T + 1)


def _given(case: Case, name: str) -> Array:
    return case.adapter.array(name, (case.c.T,))


def beta_in_range(case: Case) -> None:
    """0 < β_t < 1 for every t; β_T = 1 is allowed (it ends in pure noise)."""
    beta, t = _given(case, "betas"), all_steps(case)
    bad = ~((beta > 0) & (beta <= 1))
    bad[:-1] |= beta[:-1] == 1
    if bad.any():
        first = int(np.argmax(bad))
        raise Broken(float(beta[first]), "a number in (0, 1)", t=int(t[first]))


def beta_is_declared(case: Case) -> None:
    """β_t is the declared schedule's, to the rounding of its formula in the declared precision."""
    wanted = case.c.declared_beta()
    if wanted is None:
        raise NotOffered("no schedule declared")
    beta, t = _given(case, "betas"), all_steps(case)
    tol = schedule_drift(wanted, case.eps, case.c.schedule)
    case.compare(beta, wanted, tol, t, lambda: (which_schedule(case, beta, wanted), None))


def which_schedule(case: Case, beta: Array, wanted: Array) -> str:
    """What else a β table might be, in words."""
    T = case.c.T
    if half := half_precision(beta):
        return half
    loose = schedule_drift(wanted, epsilon("float32"), case.c.schedule)
    if case.c.precision == "float64" and (np.abs(beta - wanted) <= loose).all():
        return 'as precise as float32; declare precision="float32" if that is meant'

    def is_(other: Array, off: float = 1e-4) -> bool:
        return bool((np.abs(beta - other) <= off * np.abs(other) + 3e-7).all())

    for what, other in (
        ("√β", np.sqrt(wanted)),
        ("β²", wanted**2),
        ("1 - β", 1 - wanted),
        ("β reversed in t", wanted[::-1]),
    ):
        if is_(other):
            return f"this is {what} of the declared schedule"
    if is_(np.append(wanted[1:], beta[-1])):
        return "the values of t + 1: off by one step"
    if is_(np.insert(wanted[:-1], 0, beta[0])):
        return "the values of t - 1: off by one step"
    for name in SCHEDULES:
        for scale, text in ((1.0, ""), (1000 / T, " with end points times 1000/T")):
            with np.errstate(all="ignore"):
                args = (
                    {}
                    if scale == 1 or name in ("jsd", "cosine", "sigmoid", "constant")
                    else dict(beta_1=1e-4 * scale, beta_T=0.02 * scale)
                )
                try:
                    other = named_beta(name, T, **args)
                except ValueError:
                    continue
            if name != case.c.schedule and is_(other):
                return f'this is schedule "{name}"{text}: declare it if it is meant'
    sigmoid = 1e-4 + (0.02 - 1e-4) / (1 + np.exp(-np.linspace(-6, 6, T)))
    if is_(sigmoid):
        return "β itself a sigmoid from -6 to 6 between 1e-4 and 0.02, not ᾱ: declare the list of betas if it is meant"
    first, last = beta[0], beta[-1]
    return _shape_of_ends(beta, first, last, T)


def _shape_of_ends(beta: Array, first: float, last: float, T: int) -> str:
    """A table between other end points than declared: linear in β or in √β, or a sigmoid."""
    curves = {
        "linear in t": np.linspace(first, last, T),
        'linear in √β ("quadratic")': np.linspace(max(first, 0) ** 0.5, max(last, 0) ** 0.5, T) ** 2,
    }
    for text, curve in curves.items():
        if np.allclose(beta, curve, rtol=1e-4, atol=3e-7):
            return f"{text} from β_1 = {first:.6g} to β_T = {last:.6g}: declare schedule_args if that is meant"
    return ""


def alpha_bar_is_product(case: Case) -> None:
    """ᾱ_t = ∏_{s≤t} (1 - β_s), of their own β; of the declared schedule's where betas are not offered.

    Tolerance: (t+1) ε relative, the worst of t rounded factors and products.
    """
    got, t = _given(case, "alpha_bar"), all_steps(case)
    beta = case.own_beta if case.own_beta is not None else case.c.declared_beta()
    if beta is None:
        bad = ~((got < np.concatenate([[1.0], got[:-1]])) & (got >= 0))
        if bad.any():
            raise Broken(float(got[np.argmax(bad)]), "a fall from 1 towards 0", t=int(t[np.argmax(bad)]))
        return
    s = case.process if case.own_beta is not None else process_of(beta)
    s = process_of(s.beta[1:])
    case.judge(
        got,
        lambda s, t: s.alpha_bar[t],
        t,
        s=s,
        mistakes={
            "an extra factor at the front: the product begins one β too early": lambda s, t: (
                s.alpha_bar[t] * got[0] / s.alpha_bar[1]
            ),
            "√ᾱ_t instead of ᾱ_t": lambda s, t: np.sqrt(s.alpha_bar[t]),
            "α_t instead of its product": lambda s, t: s.alpha[t],
            "1 - ᾱ_t instead of ᾱ_t": lambda s, t: 1 - s.alpha_bar[t],
            "ᾱ_{t-1}: the product ends one step early": lambda s, t: s.alpha_bar[t - 1],
        },
    )


def beta_tilde_table(case: Case) -> None:
    """β̃_t = (1 - ᾱ_{t-1}) / (1 - ᾱ_t) β_t. At t = 1, where it is 0, a clamp is allowed: 1e-20, or β̃_2."""
    got, t = _given(case, "beta_tilde"), all_steps(case)
    if not 0 <= got[0] <= max(case.process.beta_tilde[2], case.process.beta[1]) * (1 + 1e-3):
        raise Broken(float(got[0]), "0 (or a small clamp)", t=1)
    case.judge(got[1:], lambda s, t: s.beta_tilde[t], t[1:], mistakes=VARIANCE_MISTAKES)


VARIANCE_MISTAKES = {
    "β_t, not β̃_t": lambda s, t, *_: s.beta[t],
    "β̃_t, not β_t": lambda s, t, *_: s.beta_tilde[t],
    "√β̃_t, a standard deviation where the variance is meant": lambda s, t, *_: np.sqrt(s.beta_tilde[t]),
    "√β_t, a standard deviation where the variance is meant": lambda s, t, *_: np.sqrt(s.beta[t]),
    "β̃_t squared": lambda s, t, *_: s.beta_tilde[t] ** 2,
    "log β̃_t, not β̃_t": lambda s, t, *_: np.log(s.beta_tilde[t]),
    "(1 - ᾱ_{t-1}) / (1 - ᾱ_t) without β_t": lambda s, t, *_: (1 - s.alpha_bar[t - 1]) / (1 - s.alpha_bar[t]),
    "(1 - ᾱ_t) / (1 - ᾱ_{t-1}) β_t: the quotient is upside down": lambda s, t, *_: (
        (1 - s.alpha_bar[t]) / (1 - s.alpha_bar[t - 1]) * s.beta[t]
    ),
}


def log_beta_tilde_table(case: Case) -> None:
    """log β̃_t for t > 1; at t = 1, where it would be -∞, anything finite and below log β_1."""
    got, t = case.adapter.array("log_beta_tilde", (case.c.T,), finite=False), all_steps(case)
    if not np.isfinite(got[1:]).all():
        first = int(np.argmax(~np.isfinite(got[1:]))) + 1
        raise Broken(float(got[first]), "a finite number", t=first + 1)
    known = case.process.beta_tilde[1:] > 0
    case.judge(
        got[known],
        lambda s, t: np.log(s.beta_tilde[t]),
        t[known],
        mistakes={
            "β̃_t without its logarithm": lambda s, t: s.beta_tilde[t],
            "½ log β̃_t, of the standard deviation": lambda s, t: 0.5 * np.log(s.beta_tilde[t]),
            "log β_t, not log β̃_t": lambda s, t: np.log(s.beta[t]),
            "log₂ or log₁₀": lambda s, t: np.log2(s.beta_tilde[t]),
        },
    )


PROPERTIES = (
    Property("beta-range", "§2", "β_t lies in (0, 1)", ("betas",), beta_in_range),
    Property("beta", "§4", "β_t is the declared schedule's", ("betas",), beta_is_declared),
    Property("alpha-bar", "Eq. 4", "ᾱ_t is the product of 1 - β", ("alpha_bar",), alpha_bar_is_product),
    Property("beta-tilde", "Eq. 7", "the table of β̃_t", ("beta_tilde",), beta_tilde_table),
    Property("log-beta-tilde", "Eq. 7", "the table of log β̃_t, t > 1", ("log_beta_tilde",), log_beta_tilde_table),
)
