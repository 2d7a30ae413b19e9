"""A sampling loop watched through the model it asks: what it asked, in which order, and the transitions it made."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ddpm_ref.checks import Array
from ddpm_ref.conformance.adapter import AdapterError, to_numpy
from ddpm_ref.conformance.freshness import Finding, not_fresh
from ddpm_ref.conformance.judge import Broken, Case, NotOffered
from ddpm_ref.conformance.tolerance import Formula
from ddpm_ref.forward import per_image
from ddpm_ref.reverse import output_from_x_0, output_to_x_0
from ddpm_ref.schedule import Schedule

ELEMENTS = 3072  # of one batch: enough that a variance 20 % off at one step is seen
LAST_MOVE, LAST_STEPS = 0.1, 3  # the steps at the end move x by so much: a loop that leaves one out is seen


@dataclass
class Watched:
    """What a sampling loop asked of the model: x and t (theirs) of every call, a row each, and what it was answered."""

    case: Case
    n: int
    x: list[Array] = field(default_factory=list)
    t: list[Array] = field(default_factory=list)
    output: list[Array] = field(default_factory=list)
    var_output: list[Array] = field(default_factory=list)
    result: Array = None

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.case.seed)

    def __call__(self, x: Any, t: Any) -> Any:
        """Nearly the best predictor for data N(0, I), x̂_0 = √ᾱ_t x + 0.3 √(1 - ᾱ_t) u with random u.

        So x stays about N(0, I), a third of x̂_0 leaves [-1, 1], and ε̂ is of size 0.3 also where ᾱ_t is near 1, so that
        a wrong factor of it shows.
        """
        c, s = self.case.c, self.case.process
        x, t = to_numpy("the loop, to the model,", x), to_numpy("the loop, to the model,", t)
        if x.shape[1:] != c.shape:
            raise AdapterError(f"the model was given x of shape {x.shape}, wanted (n, {', '.join(map(str, c.shape))})")
        if t.size not in (1, len(x)):
            raise AdapterError(f"the model was given t of shape {t.shape}, wanted ({len(x)},) or one number")
        t = np.broadcast_to(t.reshape(-1), x.shape[:1])
        number = t - c.t_first + 1
        step = np.clip(np.rint(number), 1, c.T).astype(int)
        last = (step <= LAST_STEPS) & (np.abs(number - step) < 1e-3)
        spread = 0.3 * np.sqrt(1 - s.alpha_bar[step])
        x_0_hat = per_image(np.sqrt(s.alpha_bar[step]), x) * x + per_image(np.where(last, LAST_MOVE, 0.0), x)
        x_0_hat = x_0_hat + per_image(spread, x) * self.rng.standard_normal(x.shape)
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

    def told(self) -> Array:
        """The paper's t that the model was told at each call; NaN where the rows were given different ones."""
        return np.array([t[0] if (t == t[0]).all() else np.nan for t in self.t]) - self.case.c.t_first + 1

    def numbers(self) -> Array:
        """The paper's t of each call: as told, or by its place in a loop of T calls that were not told 1 … T."""
        told, T = self.told(), self.case.c.T
        if len(told) == T and not np.array_equal(np.sort(told), np.arange(1, T + 1)):
            return np.arange(T, 0, -1)
        return told

    def put_together(self) -> "Watched":
        """Calls about parts of the batch made into calls about all of it: parts of a step, or of a whole chain."""
        sizes, calls, told = {len(x) for x in self.x}, len(self.x), self.told()
        if sizes == {self.n}:
            return self
        parts, rest = divmod(self.n, max(sizes))
        if len(sizes) == 1 and not rest and calls % parts == 0:
            order = np.arange(calls)
            for groups in (order.reshape(-1, parts), order.reshape(parts, -1).T):
                if (told[groups] == told[groups[:, :1]]).all():
                    x, t, output, *more = ([np.concatenate([a[i] for i in g]) for g in groups] for a in self._lists())
                    return Watched(self.case, self.n, x, t, output, more[0] if more else [], self.result)
        raise NotOffered(f"asks the model about {min(sizes)} images at a time, not n = {self.n}: put them together")

    def _lists(self) -> Sequence[list[Array]]:
        return (self.x, self.t, self.output, *([self.var_output] if self.var_output else []))


def watch(case: Case) -> Watched:
    """Their loop, run once for all properties of it."""
    known: dict[str, Any] = case.shared
    if "watched" not in known:
        size = int(np.prod(case.c.shape))
        n = max(2, min(-(-ELEMENTS // size), 20_000_000 // (size * case.c.T)))
        seen = Watched(case, n + n % 2)
        try:
            seen.result = case.adapter.array("sample", (seen.n, *case.c.shape), seen, seen.n, finite=False)
            if not seen.x:
                raise AdapterError("sample never called the model")
            known["watched"] = seen.put_together()
        except Exception as error:
            known["watched"] = error
    if isinstance(known["watched"], Exception):
        raise known["watched"]
    found: Watched = known["watched"]
    return found


@dataclass(frozen=True)
class Chain:
    """The transitions of a loop whose mean is defined; axis 0 of every array is the step, axis 1 the image."""

    case: Case
    t: Array
    x_t: Array
    after: Array
    output: Array
    var_output: tuple[Array, ...]

    @property
    def process(self) -> Schedule:
        """What it is judged by."""
        return self.case.process

    def mean(self, formula: Formula) -> Array:
        """A formula of (x_t, output), with each step's batch in place of one image."""
        return formula(self.process, self.t, self.x_t, self.output)

    def sigma(self, formula: Formula) -> Array:
        """The root of a formula of (x_t[, var_output])."""
        return np.sqrt(np.maximum(formula(self.process, self.t, self.x_t, *self.var_output), 0))

    def finding(self, mean: Array, sigma: Array) -> Finding | None:
        """What is wrong with these moments, or None."""
        return not_fresh(self.after - mean, sigma, self.t, self._directions())

    def _directions(self) -> dict[str, Array]:
        """Along which a wrong mean would be off: x_t, the output, and x̂_0 where it leaves data_range."""
        x_0_hat = output_to_x_0(self.process, self.x_t, self.t, self.output, self.case.c.predicts)
        low, high = self.case.c.data_range
        return {
            "in proportion to x_t": self.x_t,
            "in proportion to the network's output": self.output,
            "where x̂_0 is above data_range": np.maximum(x_0_hat - high, 0),
            "where x̂_0 is below data_range": np.maximum(low - x_0_hat, 0),
        }

    def some(self, pick: Array, images: int | None) -> "Chain":
        """The transitions of some steps, of the first images."""
        x_t, after, output, *more = (x[pick, :images] for x in (self.x_t, self.after, self.output, *self.var_output))
        return Chain(self.case, self.t[pick], x_t, after, output, tuple(more))


def chain_of(seen: Watched) -> Chain:
    """The transitions: calls at some t that are followed by a call at t - 1. Broken where numbers are not finite."""
    case, number = seen.case, seen.numbers()
    for i, x in enumerate(seen.x):  # in the loop's order: after it all is lost
        if not np.isfinite(x).all():
            t = int(number[i - 1]) if i and np.isfinite(number[i - 1]) else None
            words = ", where ᾱ_t = 0: ε does not say what x_0 is" if t and case.process.alpha_bar[t] == 0 else ""
            raise Broken("NaN or infinity", "finite numbers", f"the loop's first{words}", t=t)
    with np.errstate(invalid="ignore"):
        whole = (np.abs(number - np.rint(number)) <= 1e-3) & (number > 0.5) & (number < case.c.T + 0.5)
        links = np.flatnonzero(whole[:-1] & whole[1:] & (np.abs(number[:-1] - 1 - number[1:]) <= 1e-3))
    t = np.rint(number[links]).astype(int)
    if case.c.predicts in ("eps", "mu"):
        links, t = links[case.process.alpha_bar[t] > 0], t[case.process.alpha_bar[t] > 0]
    if not len(links):
        raise NotOffered("the loop never asks the model at t and then at t - 1")
    x_t, after, output = (np.stack([a[i + j] for i in links]) for a, j in ((seen.x, 0), (seen.x, 1), (seen.output, 0)))
    v = (np.stack([seen.var_output[i] for i in links]),) if seen.var_output else ()
    return Chain(case, t, x_t, after, output, v)
