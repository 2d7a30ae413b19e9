"""A property of the paper as an object, the result of asking it of an adapter, and the report of all."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ddpm_ref.conformance.adapter import Adapter, AdapterError, NotFinite, NotThere
from ddpm_ref.conformance.judge import Broken, Case, Check, NotOffered


@dataclass(frozen=True)
class Property:
    """One statement of the paper that an implementation can be held to."""

    id: str
    equation: str
    title: str
    needs: tuple[str, ...]
    check: Check

    @property
    def says(self) -> str:
        """The whole statement, with tolerances and false-alarm rates: the docstring of its check."""
        return (self.check.__doc__ or "").strip()

    def ask(self, adapter: Adapter, case: Case) -> "Result":
        """Hold the adapter to it."""
        result = Result(self.id, self.equation, self.title, "holds")
        missing = [need for need in self.needs if not any(name in adapter for name in need.split("|"))]
        if missing:
            needed = ", ".join(need.replace("|", " or ") for need in missing)
            return replace(result, status="not offered", diagnosis=f"needs {needed}")
        case.slug, case.notes = self.id, []
        try:
            with np.errstate(all="ignore"):  # what is wrong is found by comparison
                self.check(case)
        except (NotOffered, NotThere) as reason:
            return replace(result, status="not offered", diagnosis=str(reason))
        except AdapterError as error:
            return replace(result, status="error", diagnosis=str(error))
        except NotFinite as bad:
            return replace(result, status="broken", got=bad.value, wanted="a finite number", diagnosis=str(bad))
        except Broken as b:
            theirs = None if b.t is None else int(adapter.conventions.theirs(np.asarray(b.t)))
            result = replace(result, status="broken", t=b.t, their_t=theirs, where=b.where)
            return replace(result, got=b.got, wanted=b.wanted, diagnosis=b.diagnosis)
        except Exception as error:  # one property's trouble must not take the others' results with it
            return replace(result, status="error", diagnosis=f"the checker failed: {type(error).__name__}: {error}")
        case.notes.extend(adapter.changes())
        return replace(result, diagnosis="; ".join(case.notes))


@dataclass(frozen=True)
class Result:
    """What came of one property: "holds", "broken", "not offered" or "error".

    t: the paper's step at which it first breaks, their_t the same in their numbering; got and wanted there.
    where: of which other t that is so.
    diagnosis: the known mistake that fits, the reason it was not asked, or a note.
    """

    id: str
    equation: str
    title: str
    status: str
    t: int | None = None
    their_t: int | None = None
    where: str = ""
    got: object = None
    wanted: object = None
    diagnosis: str = ""

    def lines(self) -> list[str]:
        """The result as the report prints it: one line, and a second where something is wrong."""
        head = f"{self.status:<12} {self.id:<20} {self.equation:<16} {self.title}"
        if self.status == "broken":
            return [head, " " * 13 + self.detail()]
        if self.status == "error":
            return [head, " " * 13 + self.diagnosis]
        return [head + (f"  ({self.diagnosis})" if self.diagnosis else "")]

    def detail(self) -> str:
        """Where it breaks, what came, what is wanted, and why."""
        where = ""
        if self.t is not None:
            step = f"at t = {self.t}" + (f" (their {self.their_t})" if self.their_t != self.t else "")
            where = f"{step} only" if self.where == "only" else f"first {step}{', ' * bool(self.where)}{self.where}"
        values = f"got {_shown(self.got)}, wanted {_shown(self.wanted)}"
        return ": ".join(filter(None, [where, values])) + (f" — {self.diagnosis}" if self.diagnosis else "")


def _shown(value: object) -> str:
    return f"{value:.7g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Report:
    """The results of one adapter, in the paper's order."""

    adapter: Adapter
    results: tuple[Result, ...]

    def __iter__(self) -> Iterator[Result]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    @property
    def broken(self) -> list[Result]:
        """What does not hold."""
        return [r for r in self if r.status == "broken"]

    @property
    def errors(self) -> list[Result]:
        """What could not be asked because the adapter failed."""
        return [r for r in self if r.status == "error"]

    @property
    def exit_status(self) -> int:
        """0: nothing broken; 1: something is; 2: a function of the adapter raised."""
        return 2 if self.errors else 1 if self.broken else 0

    def summary(self) -> str:
        """The last line: how many hold, are broken, were not offered."""
        count = {
            status: sum(r.status == status for r in self) for status in ("holds", "broken", "not offered", "error")
        }
        text = f"{count['holds']} hold, {count['broken']} broken, {count['not offered']} not offered"
        return text + (f", {count['error']} errors" if count["error"] else "")

    def table(self) -> str:
        """The report as text."""
        lines = [line for r in self for line in r.lines()]
        return "\n".join([*lines, f"{self.adapter.name}: {self.summary()}", *self.hints()])

    def hints(self) -> list[str]:
        """What many lines say alike, and what to declare if it is so."""
        c = self.adapter.conventions
        found = []
        for words, advice in (
            ("as precise as float32", 'precision="float32"'),
            ("off by one step", f"t_first={1 - c.t_first}"),
        ):
            count = sum(words in r.diagnosis for r in self.broken)
            if count > 2:
                found.append(f"{count} lines say {words!r}: is {advice} to be declared?")
        return found

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data: name, conventions, results, summary."""
        facts = dict(
            adapter=self.adapter.name,
            conventions=asdict(self.adapter.conventions),
            results=[asdict(r) for r in self],
            summary=self.summary(),
        )
        plain: dict[str, Any] = json.loads(json.dumps(facts, default=str))
        return plain


def run(properties: Sequence[Property], adapter: Adapter, seed: int) -> Report:
    """Ask every property."""
    case = Case(adapter, seed)
    return Report(adapter, tuple(p.ask(adapter, case) for p in properties))
