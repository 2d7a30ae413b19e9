"""Algorithm 2 as a whole: the loop run with a known model, and every transition held against p_θ."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ddpm_ref.checks import Array
from ddpm_ref.conformance.adapter import AdapterError, to_numpy
from ddpm_ref.conformance.chance import (
    FALSE_ALARM,
    along,
    chi_square_bounds,
    distribution_bound,
    largest_is_likely,
    normal_bound,
    normal_distance,
)
from ddpm_ref.conformance.judge import Broken, Case, Explanation, NotOffered
from ddpm_ref.conformance.property import Property
from ddpm_ref.conformance.reverse_properties import (
    CLAMPED_NOISE,
    mean_formula,
    mean_mistakes,
    variance_formula,
    variance_mistakes,
)
from ddpm_ref.conformance.tolerance import Formula
from ddpm_ref.forward import per_image
from ddpm_ref.reverse import output_from_x_0
from ddpm_ref.schedule import Schedule

ELEMENTS = 3072  # of one batch: enough that a variance 20 % off at one step is seen


@dataclass
class Watched:
    """What a sampling loop asked of the model: x and t (theirs, as given) of every call, and what it was answered."""

    case: Case
    n: int
    x: list[Array] = field(default_factory=list)
    t: list[Array] = field(default_factory=list)
    output: list[Array] = field(default_factory=list)
    var_output: list[Array] = field(default_factory=list)
    result: Array = None

    def __call__(self, x: Any, t: Any) -> Any:
        """The best predictor for data N(0, I), x̂_0 = √ᾱ_t x: x stays N(0, I), and a third of x̂_0 leaves [-1, 1]."""
        c = self.case.c
        x, t = to_numpy("the loop, to the model,", x), to_numpy("the loop, to the model,", t)
        if x.shape[1:] != c.shape:
            raise AdapterError(f"the model was given x of shape {x.shape}, wanted (n, {', '.join(map(str, c.shape))})")
        s = self.case.process
        step = np.broadcast_to(np.clip(np.rint(t) - c.t_first + 1, 1, c.T).astype(int), x.shape[:1])
        x_0_hat = per_image(np.sqrt(s.alpha_bar[step]), x) * x
        output = output_from_x_0(s, x, step, x_0_hat, c.predicts).astype(c.dtype)
        self.x.append(x)
        self.t.append(t)
        self.output.append(output.astype(np.float64))
        if not c.learned:
            return output
        size = np.broadcast_to(per_image(np.log(s.beta[step]), x), x.shape) - 0.5
        said = {"learned_log": size, "learned_var": np.exp(size), "learned_range": np.full(x.shape, 0.25)}[str(c.var)]
        self.var_output.append(said.astype(c.dtype).astype(np.float64))
        return output, said.astype(c.dtype)

    def steps(self) -> Array:
        """The paper's t of each call; NaN where the rows were given different ones."""
        values = [np.unique(t) for t in self.t]
        return np.array([v[0] - self.case.c.t_first + 1 if len(v) == 1 else np.nan for v in values])


def watch(case: Case) -> Watched:
    """Their loop, run once for all properties of it."""
    known: dict[str, Any] = case.shared
    if "watched" not in known:
        size = int(np.prod(case.c.shape))
        seen = Watched(case, max(2, min(-(-ELEMENTS // size), 20_000_000 // (size * case.c.T))))
        try:
            seen.result = case.adapter.array("sample", (seen.n, *case.c.shape), seen, seen.n, finite=False)
            known["watched"] = seen
        except Exception as error:
            known["watched"] = error
    if isinstance(known["watched"], Exception):
        raise known["watched"]
    if not known["watched"].x:
        raise AdapterError("sample never called the model")
    found: Watched = known["watched"]
    return found


def _in_order(case: Case) -> Watched:
    seen = watch(case)
    if len(seen.x) != case.c.T:
        raise NotOffered(
            f"the loop asks the model {len(seen.x)} times, not T = {case.c.T}: cannot be told apart by step"
        )
    return seen


def visits(case: Case) -> None:
    """The network is asked once at each of t = T, …, 1, in this order, with one t for the whole batch."""
    seen, T = watch(case), case.c.T
    steps = seen.steps()
    wanted = np.arange(T, 0, -1)
    n = min(len(steps), T)
    bad = np.flatnonzero(~(np.abs(steps[:n] - wanted[:n]) <= 1e-3))
    if not len(bad) and len(steps) == T:
        return
    if not len(bad):
        what = f"the loop ends at t = {steps[-1]:.0f}" if len(steps) < T else "the loop goes on after t = 1"
        raise Broken(f"{len(steps)} calls", f"{T} calls", what)
    first = int(bad[0])
    words = ""
    if np.isnan(steps[first]):
        words = "the images of one batch were given different t"
    elif len(steps) == T and np.array_equal(steps, wanted - 1):
        words = "the network is given t - 1 (or t_first should be declared 0)"
    elif len(steps) == T and np.array_equal(steps, wanted + 1):
        words = "the network is given t + 1 (or t_first should be declared 1)"
    elif np.array_equal(steps, wanted[::-1]):
        words = "the loop runs upwards"
    elif len(steps) < T:
        words = f"the loop takes {len(steps)} steps"
    elif not np.allclose(steps, np.rint(steps)) or steps.max() <= 1.5:
        words = "t is scaled before it reaches the network: undo that in the adapter's model"
    theirs = float(np.unique(seen.t[first])[0])
    raise Broken(
        f"their t = {theirs:g}", f"{int(case.c.theirs(wanted[first : first + 1])[0])}", words, t=int(wanted[first])
    )


def start(case: Case) -> None:
    """x_T ~ N(0, I): mean, variance, largest value, distribution function, and images that are not copies.

    False alarm below 1e-9 in all.
    """
    x = watch(case).x[0]
    if not np.isfinite(x).all():
        raise Broken("NaN or infinity", "finite numbers", t=case.c.T)
    if abs(along(*_pairs(x[None]))) > normal_bound(FALSE_ALARM / 6) or np.allclose(x[0], x[1], atol=1e-6):
        raise Broken("images that are alike", "independent ones", "the batch shares its x_T", t=case.c.T)
    p, k, T = FALSE_ALARM / 6, x.size, case.c.T
    low, high = chi_square_bounds(k, p)
    if not low <= (x * x).sum() <= high:
        raise Broken(float((x * x).mean()), 1.0, "the variance of x_T", t=T)
    if abs(x.sum() / np.sqrt(k)) > normal_bound(p):
        raise Broken(float(x.mean()), 0.0, "the mean of x_T", t=T)
    largest = float(np.abs(x).max())
    if not largest_is_likely(largest, k, p):
        raise Broken(largest, f"the largest of {k} standard normals", "its tails are not those of a normal", t=T)
    if normal_distance(x) > distribution_bound(k, p):
        raise Broken(
            normal_distance(x), 0.0, "the largest distance of its distribution function from the normal one", t=T
        )


Finding = tuple[int | None, object, object, str] | Literal[False]


def _wrong_step(residual: Array, sigma: Array, x_t: Array, t: Array) -> Finding:
    """The smallest t whose x_{t-1} - μ is not σ N(0, I), and what is wrong with it; None for t where only all show it.

    residual, sigma, x_t: their rows are steps.
    """
    with np.errstate(all="ignore"):
        z = residual / sigma
    n, k = len(t), z[0].size
    p = FALSE_ALARM / (5 * n + 2)
    low, high = chi_square_bounds(k, p)
    limit = normal_bound(p)
    flat, square = z.reshape(n, k), (z.reshape(n, k) ** 2).sum(axis=1)
    # Likeness is measured in units of the noise itself, so that a wrong σ is not taken for it; that costs 20 %.
    loose = 1.2 * limit * np.sqrt(square / k)
    lag = np.append(np.abs(_each_along(flat[:-1], flat[1:])), 0)
    for bad, got, wanted, words in (
        (~np.isfinite(square), "NaN or infinity", "finite numbers", ""),
        (
            np.abs(_each_along(*_pairs(z))) > loose,
            "noise that is alike",
            "noise of each image's own",
            "the batch shares its noise",
        ),
        (lag > loose, "noise like the step before's", "fresh noise", "noise is used again"),
        (~((low <= square) & (square <= high)), _rms, _rms, ""),
        (np.abs(flat.sum(axis=1)) > limit * np.sqrt(k), "noise with a mean", "mean 0", "the noise has a mean"),
        (
            np.abs(_each_along(flat, x_t.reshape(n, k))) > limit,
            "a mean that is off in proportion to x_t",
            "μ_θ(x_t, t)",
            "",
        ),
    ):
        if bad.any():
            i = int(np.flatnonzero(bad)[np.argmin(t[bad])])
            if callable(got):
                return int(t[i]), _rms(residual[i]), _rms(sigma[i]), words
            return int(t[i]), got, wanted, words
    low, high = chi_square_bounds(k * n, p)
    if not low <= square.sum() <= high:
        return None, _rms(z), 1.0, "the noise of all steps together, in units of σ_t"
    # ‖x‖² is itself random, which costs a self-normalised sum a little: half as much again.
    if abs(along(z, x_t)) > 1.5 * limit:
        return None, "means that are off in proportion to x_t", "μ_θ(x_t, t)", ""
    return False


def _each_along(z: Array, x: Array) -> Array:
    """`along`, of every row."""
    with np.errstate(all="ignore"):
        result: Array = np.einsum("ij,ij->i", z, x) / np.sqrt(np.einsum("ij,ij->i", x, x))
    return np.nan_to_num(result)


def _pairs(z: Array) -> tuple[Array, Array]:
    """Every second image of a batch (the second axis), and its neighbour, for each step."""
    m = z.shape[1] // 2 * 2
    return z[:, 0:m:2].reshape(len(z), -1), z[:, 1:m:2].reshape(len(z), -1)


def _rms(x: Array) -> float:
    return float(np.sqrt((x * x).mean()))


@dataclass(frozen=True)
class Chain:
    """The transitions of a loop whose mean is defined; axis 0 of every array is the step, axis 1 the image."""

    process: Schedule
    t: Array
    x_t: Array
    after: Array
    output: Array
    var_output: tuple[Array, ...]

    def mean(self, formula: Formula) -> Array:
        """A formula of (x_t, output), with each step's batch in place of one image."""
        return formula(self.process, self.t, self.x_t, self.output)

    def sigma(self, formula: Formula) -> Array:
        """The root of a formula of (x_t[, var_output])."""
        return np.sqrt(np.maximum(formula(self.process, self.t, self.x_t, *self.var_output), 0))

    def judge(self, mean: Array, sigma: Array) -> Finding:
        """What is wrong with these moments."""
        return _wrong_step(self.after - mean, sigma, self.x_t, self.t)

    def some(self) -> "Chain":
        """All small t and every eighth of the others: enough to tell mistakes apart."""
        pick = (self.t <= 40) | (self.t % 8 == 0)
        t, x_t, after, output = (x[pick] for x in (self.t, self.x_t, self.after, self.output))
        return Chain(self.process, t, x_t, after, output, tuple(v[pick] for v in self.var_output))


def _chain(case: Case) -> Chain:
    seen = _in_order(case)
    s, t = case.process, np.arange(case.c.T, 1, -1)
    for step, x in zip(t, seen.x[1:], strict=True):  # in the loop's order: after it all is lost
        if not np.isfinite(x).all():
            raise Broken("NaN or infinity", "finite numbers", "the loop's first", t=int(step))
    keep = s.alpha_bar[t] > 0 if case.c.predicts in ("eps", "mu") else np.ones(len(t), bool)
    x_t, after, output = (np.stack(a)[keep] for a in (seen.x[:-1], seen.x[1:], seen.output[:-1]))
    v = (np.stack(seen.var_output[:-1])[keep],) if seen.var_output else ()
    return Chain(s, t[keep], x_t, after, output, v)


def transitions(case: Case) -> None:
    """Every x_{t-1}, t > 1, is μ_θ(x_t, t) + σ_t z with fresh z ~ N(0, I).

    For each t: ‖z‖², ⟨z, x_t⟩, the mean of z, two images' z and two steps' z against bounds, and ‖z‖² and ⟨z, x_t⟩ of
    all steps; false alarm below 1e-9 in all. A variance is seen if it is 20 % off at one t, or 1 % at all.
    """
    chain = _chain(case)
    sigma = chain.sigma(variance_formula(case))
    wrong: Finding = False
    for formula in _allowed_means(case):
        wrong = chain.judge(chain.mean(formula), sigma)
        if not wrong:
            return
    assert wrong
    t, got, wanted, words = wrong
    if np.allclose(chain.after, chain.mean(mean_formula(case, clip=case.c.clip)), atol=1e-4 * float(sigma.max())):
        raise Broken(got, wanted, "no noise is added", t=t)
    # Moments that fit explain likeness between steps or images as well; where none fit, that is what is wrong.
    if mistake := _likeliest(case, chain.some()):
        got, wanted = ("other moments", "μ_θ(x_t, t) and σ_t²") if "noise" in words else (got, wanted)
    raise Broken(got, wanted, mistake or words, t=t)


def _likeliest(case: Case, chain: Chain) -> str:
    """Of the known mistakes that the chain does not contradict, the one of the highest likelihood."""
    right, var = mean_formula(case, clip=case.c.clip), variance_formula(case)
    mean, sigma = chain.mean(right), chain.sigma(var)
    other = "x̂_0 is not clipped" if case.c.clip else "x̂_0 is clipped: declare clip=True if that is meant"
    means = {other: mean_formula(case, clip=not case.c.clip)} | mean_mistakes(case)
    tries = [(text, chain.mean(f), sigma) for text, f in means.items()]
    tries += [(text, mean, chain.sigma(f)) for text, f in variance_mistakes(case).items()]
    tries += [("σ_t² where σ_t is meant", mean, sigma**2)]
    tries += [("σ_t = β^¼: the root of the variance is taken twice", mean, np.sqrt(sigma))]
    best, words = np.inf, ""
    for text, m, sd in tries:
        deviance = float((((chain.after - m) / sd) ** 2 + 2 * np.log(sd)).sum())
        if deviance < best and not chain.judge(m, sd):
            best, words = deviance, text
    return words


def _allowed_means(case: Case) -> list[Formula]:
    """The declared mean; under clip, for a network that predicts μ, also μ left as it is."""
    means = [mean_formula(case, clip=case.c.clip)]
    return [*means, mean_formula(case)] if case.c.clip and case.c.predicts == "mu" else means


def last_of_loop(case: Case) -> None:
    """The loop returns μ_θ(x_1, 1) without noise; clipping it to data_range at the very end is allowed."""
    seen = _in_order(case)
    s, x, y, n = case.process, seen.x[-1], seen.output[-1], seen.n
    if not np.isfinite(x).all():
        raise NotOffered("x_1 is not finite: see the steps before")
    t = np.ones(n, dtype=int)
    wanted, tol = case.tolerance(mean_formula(case, clip=case.c.clip), t, x, y)
    tol = tol + case.tolerance(mean_formula(case, form="Eq. 7"), t, x, y)[1] + CLAMPED_NOISE
    tol = tol + 4 * case.eps * np.abs(case.c.data_range).max()  # mapped to [0, 1] and, in the adapter, back
    for formula in _allowed_means(case):
        mean = formula(s, t, x, y)
        for right in (mean, np.clip(mean, *case.c.data_range)):
            if (np.abs(seen.result - right) <= tol).all():
                return

    def why() -> Explanation:
        return words(), None

    def words() -> str:
        off = _rms(seen.result - wanted)
        low, high = case.c.data_range
        for right in (wanted, np.clip(wanted, low, high)):
            if np.allclose(seen.result, (right - low) / (high - low), atol=1e-3):
                return "rescaled to [0, 1]: undo that in the adapter"
        for sigma2 in (s.beta[1], s.beta_tilde[2]):
            if abs(off / np.sqrt(sigma2) - 1) < 0.15:
                return f"noise is added at t = 1: σ_1 = {np.sqrt(sigma2):.4g}, Algorithm 2 has z = 0 there"
        return ""

    if not np.isfinite(seen.result).all():
        raise Broken("NaN or infinity", "finite numbers", t=1)
    case.compare(seen.result, wanted, tol, t, why)


PROPERTIES = (
    Property("sample-start", "Alg. 2, line 1", "sampling begins with N(0, I)", ("sample",), start),
    Property("sample-visits", "Alg. 2, line 2", "the loop visits T, …, 1 once each", ("sample",), visits),
    Property("sample-steps", "Alg. 2, line 4", "every step of the loop is μ_θ + σ_t z", ("sample",), transitions),
    Property("sample-last", "Alg. 2, line 3", "the loop ends without noise", ("sample",), last_of_loop),
)
