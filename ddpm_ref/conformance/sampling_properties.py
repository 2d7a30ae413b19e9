"""Algorithm 2 as a whole: the loop run with a known model, and every transition held against p_θ."""

import contextlib
from typing import Any

import numpy as np

from ddpm_ref.checks import Array
from ddpm_ref.conformance.adapter import AdapterError, NotFinite, NotThere, Stop, to_numpy
from ddpm_ref.conformance.chance import FALSE_ALARM, chi_square_bounds, normal_bound
from ddpm_ref.conformance.forward_properties import Draws, estimate, posterior_mean
from ddpm_ref.conformance.freshness import MANY, SILENT, Finding, alike, not_normal, reused, rms
from ddpm_ref.conformance.judge import Broken, Case, Explanation, NotOffered, shifted
from ddpm_ref.conformance.property import Property
from ddpm_ref.conformance.reverse_properties import (
    CLAMPED_NOISE,
    ask_mean,
    clipping,
    mean_formula,
    mean_mistakes,
    reverse_mean,
    step_mean,
    variance_formula,
    variance_mistakes,
)
from ddpm_ref.conformance.tolerance import Formula, process_of
from ddpm_ref.conformance.watched import Chain, Watched, chain_of, watch


def visits(case: Case) -> None:
    """The network is asked once at each of t = T, …, 1, in this order, with one t for the whole batch."""
    seen, T = watch(case), case.c.T
    told, wanted = seen.told(), np.arange(T, 0, -1)
    n = min(len(told), T)
    bad = np.flatnonzero(~(np.abs(told[:n] - wanted[:n]) <= 1e-3))
    if not len(bad) and len(told) == T:
        return
    if not len(bad):
        what = f"the loop ends at t = {told[-1]:.0f}" if len(told) < T else "the loop goes on after t = 1"
        raise Broken(f"{len(told)} calls", f"{T} calls", what)
    at = int(bad[0])
    theirs = f"their t = {seen.t[at][0]:g}"
    due = int(case.c.theirs(wanted[at : at + 1])[0])
    raise Broken(theirs, f"{due}", _visits_mistake(told, wanted, at), t=int(wanted[at]))


def _visits_mistake(told: Array, wanted: Array, at: int) -> str:
    if np.isnan(told[at]):
        return "the images of one batch were given different t"
    if len(told) == len(wanted):
        for text, other in (
            ("the network is given t - 1 (or t_first should be declared 0)", wanted - 1),
            ("the network is given t + 1 (or t_first should be declared 1)", wanted + 1),
            ("the loop runs upwards", wanted[::-1]),
        ):
            if np.array_equal(told, other):
                return text
    if np.array_equal(told, wanted[1:]):
        return f"the loop begins at t = {told[0]:.0f}"
    if at and told[at] == told[at - 1]:
        return f"the network is asked twice at t = {told[at]:.0f}"
    if np.array_equal(told[at:], wanted[at + 1 :]):
        return f"t = {wanted[at]} is left out"
    if not np.allclose(told, np.rint(told)) or told.max() <= 1.5:
        return "t is scaled before it reaches the network: undo that in the adapter's model"
    return f"the loop takes {len(told)} steps" if len(told) < len(wanted) else ""


class _Begun(Watched):
    """A model that stops the loop at its first call."""

    def __call__(self, x: Any, t: Any) -> Any:
        self.x.append(to_numpy("the loop, to the model,", x))
        raise Stop


def _begin(case: Case) -> Array:
    """x_T of a large batch, of a loop that is stopped at once; of the usual one if it comes in parts."""
    size = int(np.prod(case.c.shape))
    begun = _Begun(case, max(2, min(MANY, 200_000_000 // case.c.T) // size))
    with contextlib.suppress(Stop):
        case.adapter("sample", begun, begun.n)
    if begun.x and begun.x[0].shape == (begun.n, *case.c.shape):
        return begun.x[0]
    return watch(case).x[0]


def start(case: Case) -> None:
    """x_T ~ N(0, I): mean, variance, largest value, distribution function, neighbours, and images that are not copies.

    Of 131,072 numbers, from a loop that is stopped at once; 3 % in the variance is seen. False alarm below 1e-9 in all.
    """
    x, T = _begin(case), case.c.T
    if not np.isfinite(x).all():
        raise Broken("NaN or infinity", "finite numbers", t=T)
    p, k = FALSE_ALARM / 8, x.size
    found = alike(x[None], threshold=0.9, what="x_T")
    low, high = chi_square_bounds(k, p)
    if not found and abs(x.sum() / np.sqrt(k)) > normal_bound(p):
        found = Finding(T, float(x.mean()), 0.0, "the mean of x_T")
    if not found and not low <= (x * x).sum() <= high:
        found = Finding(T, float((x * x).mean()), 1.0, "the variance of x_T")
    found = found or alike(x[None], what="x_T") or not_normal(x, "x_T")
    if found:
        raise Broken(found.got, found.wanted, found.words, t=T)


def transitions(case: Case) -> None:
    """Every x_{t-1}, t > 1, is μ_θ(x_t, t) + σ_t z with fresh z ~ N(0, I), where the loop goes from t to t - 1.

    For each t and of all: ‖z‖², and z along x_t, the output and what of x̂_0 leaves data_range; the mean of z; of all
    steps: images and neighbours that share it, and its distribution function. False alarm below 1e-9 in all. A
    variance is seen if it is 20 % off at one t, or 1 % at all.
    """
    chain = chain_of(watch(case))
    sigma = chain.sigma(variance_formula(case))
    found, right = None, mean_formula(case, clip=case.c.clip)
    for formula in _allowed_means(case):
        found, right = chain.finding(chain.mean(formula), sigma), formula
        if not found:
            break
    with np.errstate(all="ignore"):
        z = (chain.after - chain.mean(right)) / sigma
    if found:
        words, copied = silent(chain, z), reused(z, chain.x_t, chain.t)
        if not copied and 0.8 < rms(z) < 1.25:  # else what is alike may be a mistake of the mean
            copied = alike(z, threshold=0.9)
        found = copied if copied and not words else found
        words = found.words if copied else _mistake(case, chain) or words or found.words
        raise Broken(found.got, found.wanted, words, t=found.t)
    late = z[sigma.reshape(len(z), -1).min(axis=1) > 1e4 * case.eps]  # where rounding is far below σ
    found = reused(z, chain.x_t, chain.t)
    if not found and len(late):
        found = alike(late) or not_normal(late, "the noise")
    if found:
        raise Broken(found.got, found.wanted, found.words, t=found.t)


NO_NOISE = "no noise is added"


def silent(chain: Chain, z: Array) -> str:
    """In words, at which steps no noise is added, if there are any."""
    none = np.array([rms(row) < SILENT for row in z])
    if none.all():
        return NO_NOISE
    t = np.sort(chain.t[none])
    return f"no noise is added at t = {', '.join(map(str, t[:5]))}{' …' * (len(t) > 5)}" if len(t) else ""


def _mistake(case: Case, chain: Chain) -> str:
    """The known mistake that explains the chain, in words.

    Told apart by some images of every eighth step, small t left out because of rounding; else by small t too, or more.
    """
    t, right = chain.t, mean_formula(case, clip=case.c.clip)
    eighth, few = t % 8 == 0, max(2, 1024 // int(np.prod(case.c.shape)))
    for pick, images in (
        ((t > 40) & eighth, few),
        ((t > 2) & ((t <= 40) | eighth), few),
        ((t <= 40) | eighth, few),
        ((t > 40) & (t % 2 == 0), None),
    ):
        part = chain.some(pick, images)
        shown = pick.any() and part.finding(part.mean(right), part.sigma(variance_formula(case)))
        if shown and (words := _likeliest(case, part)):
            return words
    return ""


def _likeliest(case: Case, chain: Chain) -> str:
    """Of the known mistakes that the chain does not contradict, the one of the highest likelihood, in words.

    First what their own reverse_step does, if it is wrong: then the loop only follows it.
    """
    right, var = mean_formula(case, clip=case.c.clip), variance_formula(case)
    mean, sigma = chain.mean(right), chain.sigma(var)
    n, rows = chain.x_t.shape[1], (-1, *case.c.shape)
    x, y, *v = (a.reshape(rows) for a in (chain.x_t, chain.output, *chain.var_output))
    text, own = _own_mean(case, np.repeat(chain.t, n), x, y, tuple(v))
    tries = [] if own is None else [(text, own.reshape(mean.shape), sigma)]
    other = "x̂_0 is not clipped" if case.c.clip else "x̂_0 is clipped: declare clip=True if that is meant"
    means = {other: mean_formula(case, clip=not case.c.clip)} | mean_mistakes(case)
    tries += [(text, chain.mean(f), sigma) for text, f in means.items()]
    tries += [("σ_t² where σ_t is meant: the variance is used as the standard deviation", mean, sigma**2)]
    tries += [("σ_t = β^¼: the root of the variance is taken twice", mean, np.sqrt(sigma))]
    tries += [(text, mean, chain.sigma(f)) for text, f in variance_mistakes(case).items()]
    if case.own_alpha_bar is not None:
        theirs = process_of(case.process.beta[1:], alpha_bar=case.own_alpha_bar)
        m = right(theirs, chain.t, chain.x_t, chain.output)
        tries += [("as its own alpha_bar table says", m, sigma)]
        tries += [("as its own alpha_bar table says, and σ_t² where σ_t is meant", m, sigma**2)]
    for text, by in (("t - 1", -1), ("t + 1", 1)):
        m, sd = chain.mean(shifted(right, by)), chain.sigma(shifted(var, by))
        tries += [(f"the values of {text}, of mean and noise, while the model is asked at t", m, sd)]
    least, words = np.inf, ""
    for text, m, sd in tries:
        with np.errstate(all="ignore"):
            deviance = float((((chain.after - m) / sd) ** 2 + 2 * np.log(sd)).sum())
        if deviance < least and not chain.finding(m, sd):
            least, words = deviance - 1e-6 * abs(deviance), text  # the first of two that are the same
    return words


CAUSES = (
    ("posterior-mean", posterior_mean),
    ("predict-x-0", estimate),
    ("clip", clipping),
    ("step-mean", step_mean),
    ("reverse-mean", reverse_mean),
)


def _own_mean(case: Case, t: Array, x_t: Array, output: Array, v: tuple[Array, ...]) -> tuple[str, Array | None]:
    """What their own reverse step gives without noise, if one of its parts is broken, and what is said of that."""
    found = [(id, words) for id, check in CAUSES if (words := case.broken(check)) is not None]
    name = "reverse_step" if "reverse_step" in case.adapter else "p_mean_var"
    if not found or name not in case.adapter:
        return "", None
    try:
        own = ask_mean(case, name, Draws(t, x_t, x_t, x_t, output), v)
    except (AdapterError, Broken, NotFinite, NotThere):
        return "", None
    id, words = found[0]
    return f"as {id}{': ' * bool(words)}{words}", own


def _allowed_means(case: Case) -> list[Formula]:
    """The declared mean; under clip, for a network that predicts μ, also μ left as it is."""
    means = [mean_formula(case, clip=case.c.clip)]
    return [*means, mean_formula(case)] if case.c.clip and case.c.predicts == "mu" else means


def last_of_loop(case: Case) -> None:
    """The loop returns the mean of its last step, without noise; clipped to data_range or as grey levels will do."""
    seen = watch(case)
    s, x, y, final = case.process, seen.x[-1], seen.output[-1], seen.numbers()[-1]
    if not np.isfinite(x).all():
        raise NotOffered("x_1 is not finite: see the steps before")
    if not (abs(final - np.rint(final)) <= 1e-3 and 0.5 < final < case.c.T + 0.5):
        raise NotOffered(f"the loop asks the model last at t = {final:g}")
    t, (low, high) = np.full(seen.n, int(np.rint(final))), case.c.data_range
    wanted, tol = case.tolerance(mean_formula(case, clip=case.c.clip), t, x, y)
    tol = tol + case.tolerance(mean_formula(case, form="Eq. 7"), t, x, y)[1] + CLAMPED_NOISE
    tol = tol + 4 * case.eps * max(abs(low), abs(high), 1)  # mapped to [0, 1] and, in the adapter, back
    if not np.isfinite(seen.result).all():
        raise Broken("NaN or infinity", "finite numbers", t=int(t[0]))
    for formula in _allowed_means(case):
        mean = formula(s, t, x, y)
        for right in (mean, np.clip(mean, low, high)):
            if (np.abs(seen.result - right) <= tol).all():
                return
        if _grey(case, seen.result) and (np.abs(seen.result - right) <= _level(case) + tol).all():
            case.notes.append("rounded or truncated to grey levels")
            return
    case.compare(seen.result, wanted, tol, t, lambda: _last_mistake(case, seen, wanted, tol, t))


def _level(case: Case) -> float:
    return (case.c.data_range[1] - case.c.data_range[0]) / (case.c.levels - 1)


def _grey(case: Case, x: Array) -> bool:
    """Whether these are grey levels in data_range."""
    level = (x - case.c.data_range[0]) / _level(case)
    return bool((np.abs(level - np.rint(level)) <= 1e-3).all() and level.min() > -0.5 and level.max() < case.c.levels)


def _last_mistake(case: Case, seen: Watched, wanted: Array, tol: Array, t: Array) -> Explanation:
    (low, high), got, step = case.c.data_range, seen.result, int(t[0])
    inputs = (seen.x[-1], seen.output[-1])
    text, own = _own_mean(case, t, *inputs, (seen.var_output[-1],) if seen.var_output else ())
    if own is not None and (np.abs(got - own) <= tol).all():
        return text, None
    if np.allclose(got, seen.x[-1], atol=1e-6) or np.allclose(got, np.clip(seen.x[-1], low, high), atol=1e-6):
        return f"x_{step} is returned: what the last step gives is thrown away", None
    inside = got == np.clip(got, low, high)
    for right in (wanted, np.clip(wanted, low, high)):
        if np.allclose(got, (right - low) / (high - low), atol=1e-3):
            return "rescaled to [0, 1]: undo that in the adapter", None
        for sigma2 in (case.process.beta[step], case.process.beta_tilde[max(step, 2)]):
            for sigma in (np.sqrt(sigma2), sigma2):
                if inside.any() and abs(rms((got - right)[inside]) / sigma - 1) < 0.15 and sigma > np.median(tol):
                    return (
                        f"noise is added at t = {step}: σ = {sigma:.4g}, Algorithm 2 has z = 0 in the last step",
                        None,
                    )
    formula = mean_formula(case, clip=case.c.clip)
    return case.explain(got, formula, t, inputs, tol, mean_mistakes(case))


PROPERTIES = (
    Property("sample-start", "Alg. 2, line 1", "sampling begins with N(0, I)", ("sample",), start),
    Property("sample-visits", "Alg. 2, line 2", "the loop visits T, …, 1 once each", ("sample",), visits),
    Property("sample-steps", "Alg. 2, line 4", "every step of the loop is μ_θ + σ_t z", ("sample",), transitions),
    Property("sample-last", "Alg. 2, line 3", "the loop ends without noise", ("sample",), last_of_loop),
)
