"""Holds or broken: the comparison of what came with what is wanted, and which known mistake it looks like."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ddpm_ref.checks import Array
from ddpm_ref.conformance.adapter import Adapter, AdapterError, NotFinite, NotThere
from ddpm_ref.conformance.conventions import Conventions
from ddpm_ref.conformance.likeness import constant_factor, explained_rows, extent, fits, half_precision, worst
from ddpm_ref.conformance.tolerance import Formula, epsilon, process_of, tolerance
from ddpm_ref.schedule import Schedule

MAX_ELEMENTS = 1 << 22  # of one array over all steps; with larger images only some steps are tried
CHUNK_ELEMENTS = 1 << 19


class NotOffered(Exception):
    """The property cannot be asked: what it needs is not there, or does not apply under the declared conventions."""


@dataclass
class Broken(Exception):
    """The property does not hold: where first (the paper's t, if it has one), what came, what is wanted, and why."""

    got: object
    wanted: object
    diagnosis: str = ""
    t: int | None = None
    where: str = ""


Check = Callable[["Case"], None]

Mistakes = Mapping[str, Formula]

Explanation = tuple[str, Array | None]
"""What a wrong result looks like, in words, and the values of that mistake if it is one of a formula."""


@dataclass
class Case:
    """One adapter under check: its conventions, its own process, and the inputs of each property."""

    adapter: Adapter
    seed: int = 0
    slug: str = ""
    notes: list[str] = field(default_factory=list)
    shared: dict[str, Any] = field(default_factory=dict)

    @property
    def c(self) -> Conventions:
        """The declared conventions."""
        return self.adapter.conventions

    @cached_property
    def eps(self) -> float:
        """Machine precision as declared."""
        return epsilon(self.c.precision)

    @cached_property
    def declared(self) -> Schedule | None:
        """The process of the declared schedule, or None."""
        beta = self.c.declared_beta()
        return None if beta is None else process_of(beta, name="declared")

    @cached_property
    def own_beta(self) -> Array | None:
        """Their betas(), if offered and in [0, 1] (that 0 is wrong, a property of its own says)."""
        beta = self._table("betas")
        return beta if beta is not None and ((beta >= 0) & (beta <= 1)).all() and beta.any() else None

    @cached_property
    def own_alpha_bar(self) -> Array | None:
        """Their alpha_bar(), if offered and falling within [0, 1)."""
        abar = self._table("alpha_bar")
        if abar is None or not (abar[0] < 1 and (np.diff(abar) < 0).all() and abar[-1] >= 0):
            return None
        return abar

    def _table(self, name: str) -> Array | None:
        try:
            return self.adapter.array(name, (self.c.T,)) if name in self.adapter else None
        except (AdapterError, NotFinite, NotThere):
            return None  # its own property says so

    @cached_property
    def process(self) -> Schedule:
        """What everything downstream is judged by: their own β, so that a wrong schedule breaks one line, not twenty.

        The declared schedule if their alpha_bar() agrees with it but not with their betas(); else their betas(); else
        the declared schedule if alpha_bar() agrees with it; else that ᾱ; else the declared schedule.
        """
        abar, own, declared = self.own_alpha_bar, self.own_beta, self.declared
        if own is not None:
            alone = declared is not None and self._has(abar, declared) and not self._has(abar, process_of(own))
            return declared if alone and declared is not None else process_of(own)
        if abar is None and declared is None:
            raise NotOffered("offer betas or alpha_bar, or declare a schedule")
        if abar is None or (declared is not None and self._has(abar, declared)):
            assert declared is not None
            return declared
        return process_of(1 - abar / np.concatenate([[1.0], abar[:-1]]), alpha_bar=abar)

    def _has(self, abar: Array | None, s: Schedule) -> bool:
        """Whether this table is the ᾱ of a process."""
        if abar is None:
            return False
        wanted, tol = self.tolerance(lambda s, t: s.alpha_bar[t], np.arange(1, self.c.T + 1), s=s)
        return bool((np.abs(abar - wanted) <= tol).all())

    def broken(self, check: Check) -> str | None:
        """The diagnosis of another property if it is broken; None if it holds or cannot be asked."""
        known: dict[Any, str | None] = self.shared.setdefault("broken", {})
        if check not in known:
            notes = self.notes[:]
            try:
                check(self)
                known[check] = None
            except Broken as b:
                known[check] = b.diagnosis
            except (NotOffered, NotThere, AdapterError, NotFinite):
                known[check] = None
            self.notes[:] = notes
        return known[check]

    def follows(self, *checks: tuple[str, Check]) -> None:
        """NotOffered where one of these properties is broken and explains all that is wrong here."""
        found = [name for name, check in checks if self.broken(check) is not None]
        if found:
            raise NotOffered(f"cannot be judged apart: it follows from {' and '.join(found)}")

    # --- inputs

    def rng(self, *more: int) -> np.random.Generator:
        """Fresh random numbers, the same in every run, for the property at hand."""
        return np.random.default_rng([self.seed, *self.slug.encode(), *more])

    @cached_property
    def steps(self) -> Array:
        """The steps tried, in the paper's numbering: all of them, or both ends and some between for large images."""
        T, room = self.c.T, max(MAX_ELEMENTS // int(np.prod(self.c.shape)), 12)
        if room >= T:
            return np.arange(1, T + 1)
        ends = [1, 2, 3, T - 1, T]
        return np.unique(np.clip([*ends, *np.linspace(1, T, room - len(ends)).astype(int)], 1, T))

    def normal(self, rng: np.random.Generator, t: Array) -> Array:
        """Standard normals, one image for each step, in the declared precision."""
        return self.rounded(rng.standard_normal((len(t), *self.c.shape)))

    def images(self, rng: np.random.Generator, t: Array, inner: bool = False) -> Array:
        """Images on the grid of grey levels, one for each step; inner: of the middle 80 % of them, if there are any."""
        low, high = self.c.data_range
        last = self.c.levels - 1
        first, end = (-(-last // 10), last * 9 // 10 + 1) if inner and self.c.levels > 10 else (0, last + 1)
        grey = rng.integers(first, end, (len(t), *self.c.shape)) / last
        return self.rounded(low + (high - low) * grey)

    def rounded(self, x: Array) -> Array:
        """In float64, but exactly representable in the declared precision."""
        return np.asarray(x, dtype=self.c.dtype).astype(np.float64)

    # --- calls

    def ask(self, name: str, t: Array, *inputs: Array | None, pick: int | None = None) -> Array:
        """Their function at every step, a batch at a time. None stands for t; pick: which part of (mean, var)."""
        rows = max(1, CHUNK_ELEMENTS // int(np.prod(self.c.shape)))
        parts = []
        for begin in range(0, len(t), rows):
            chunk = slice(begin, begin + rows)
            theirs = self.c.theirs(t[chunk])
            args = [theirs if x is None else x[chunk].astype(self.c.dtype) for x in inputs]
            shape = (len(theirs), *self.c.shape)
            try:
                if pick is None:
                    parts.append(self.adapter.array(name, shape, *args))
                else:
                    parts.append(self.adapter.mean_or_var(name, shape, pick, *args))
            except NotFinite as bad:
                step = int(t[begin + bad.index[0]])
                raise Broken(bad.value, "a finite number", "", t=step) from None
        return np.concatenate(parts)

    def tolerance(self, formula: Formula, t: Array, *inputs: Array, s: Schedule | None = None) -> tuple[Array, Array]:
        """What is wanted at these steps and how far off rounding may be."""
        return tolerance(s or self.process, self.eps, formula, t, inputs)

    # --- judgement

    def judge(
        self,
        got: Array,
        formula: Formula,
        t: Array,
        *inputs: Array,
        mistakes: Mistakes | None = None,
        also: Formula | None = None,
        s: Schedule | None = None,
        slack: Array | float = 0.0,
    ) -> None:
        """Broken unless got is formula(process, t, *inputs) within rounding, at every step.

        also: another algebraic form of the formula, whose rounding is allowed too.  slack: more tolerance.
        mistakes: formulas of known mistakes, by what to say of them.
        """
        wanted, tol = self.tolerance(formula, t, *inputs, s=s)
        if also is not None:
            tol = tol + self.tolerance(also, t, *inputs, s=s)[1]
        tol = tol + slack
        self.compare(got, wanted, tol, t, lambda: self.explain(got, formula, t, inputs, tol, mistakes or {}, s))

    def compare(self, got: Array, wanted: Array, tol: Array, t: Array, why: Callable[[], Explanation]) -> None:
        """Broken, at the smallest t, unless |got - wanted| ≤ tol everywhere; rows are steps.

        Where a known mistake explains what came, the smallest t is that from which on it does, if that is smaller: at
        small t rounding alone might have led as far.
        """
        error = np.abs(got - wanted)
        bad = ~(error <= tol)
        if not bad.any():
            with np.errstate(all="ignore"):
                self.notes.extend(worst(error, wanted, t))
            return
        rows = bad.reshape(len(t), -1).any(axis=1)
        words, mistake = why()
        if mistake is not None:
            rows |= explained_rows(got, wanted, mistake, self.eps)
        row = int(np.flatnonzero(rows)[np.argmin(t[rows])])
        excess = np.where(np.isfinite(error[row]), error[row] / tol[row], np.inf).reshape(-1)
        at = int(np.argmax(excess))
        one, other = float(np.reshape(got[row], -1)[at]), float(np.reshape(wanted[row], -1)[at])
        raise Broken(one, other, words, t=int(t[row]), where=extent(t, rows, int(self.c.theirs(t[row]))))

    def explain(
        self,
        got: Array,
        formula: Formula,
        t: Array,
        inputs: tuple[Array, ...],
        tol: Array,
        mistakes: Mistakes,
        s: Schedule | None = None,
    ) -> Explanation:
        """The known mistake that fits, in words, and its values; ("", None) if none does."""
        s = s or self.process
        wanted = formula(s, t, *inputs)
        bad = ~(np.abs(got - wanted) <= tol)
        if half := half_precision(got):
            return half, None
        loose = tolerance(s, epsilon("float32"), formula, t, inputs)[1]
        single = self.c.precision == "float64" and bool((np.abs(got - wanted) <= loose).all())
        if single and len(np.unique(t)) > 1:  # at t = 1 alone it would hide much
            return 'as precise as float32; declare precision="float32" if that is meant', None
        for text, wrong, process in self._suspects(formula, mistakes, s):
            try:
                candidate, slack = tolerance(process, self.eps, wrong, t, inputs)
            except ValueError:  # not defined at that step, as ε where ᾱ_t = 0
                continue
            if fits(got, candidate, slack, wanted, tol, bad):
                return text, candidate
        if single:
            return 'as precise as float32; declare precision="float32" if that is meant', None
        return constant_factor(got, wanted, bad), None

    def _suspects(self, formula: Formula, mistakes: Mistakes, s: Schedule) -> list[tuple[str, Formula, Schedule]]:
        """The mistakes of one formula, then those of any: off by one, other tables than β's."""
        found = [(text, wrong, s) for text, wrong in mistakes.items()]
        for text, shift in (("the values of t - 1", -1), ("the values of t + 1", 1)):
            found.append((f"{text}: off by one step (or is it t_first?)", shifted(formula, shift), s))
        if self.slug != "sample-last":
            wrapped = process_of(s.beta[1:], alpha_bar=s.alpha_bar[1:])
            wrapped.alpha_bar[0] = s.alpha_bar[-1]
            found.append(("at t = 1, ᾱ_T for ᾱ_0: index t - 1 = -1 wraps round", formula, wrapped))
        if self.own_alpha_bar is not None and self.slug != "alpha-bar":
            theirs = process_of(s.beta[1:], alpha_bar=self.own_alpha_bar)
            found.append(("as its own alpha_bar table says, which is not the product of 1 - β", formula, theirs))
        if self.declared is not None:
            found.append(("as the declared schedule says, but not as its own betas do", formula, self.declared))
        return found


def shifted(formula: Formula, shift: int) -> Formula:
    """A formula evaluated at another step than it is asked for."""
    return lambda s, t, *inputs: formula(s, np.clip(t + shift, 1, s.T), *inputs)
