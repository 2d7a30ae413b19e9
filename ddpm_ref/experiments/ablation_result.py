"""What an ablation found: numbers per cell with their spread over seeds, what has gone astray, and the paper's claims.

Made by `result_of` from the numbers of each run alone, so that it can be tested without any.
"""

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from statistics import mean, stdev
from typing import Any

from ddpm_ref.experiments.ablation_cells import Cell
from ddpm_ref.experiments.ablation_findings import Finding, find
from ddpm_ref.experiments.published import TABLE_2

OUT_OF_RANGE_FRECHET = 10.0  # times the held-out images' Fréchet distance on raw pixels is out of range from here on
DIVERGED, OUT_OF_RANGE = "diverged", "out of range"  # the marks of runs and cells, the graver first

MEASURES = {
    "frechet_features": "Fréchet, features",
    "frechet": "Fréchet, pixels",
    "precision": "precision",
    "recall": "recall",
    "top_probability": "top class",
    "smallest_class_share": "least share",
    "nearest_median": "nearest",
    "bits_held_out": "bits/dim",
    "bits_train": "bits/dim train",
    "fid": "FID",
}
"""The numbers of each run, by their short names; "fid" only with Inception's features."""


@dataclass(frozen=True)
class Limits:
    """From where on a number is out of range, fixed by the data before anything is trained.

    frechet: of raw pixels, OUT_OF_RANGE_FRECHET times the held-out images'.
    bits: per dimension, log2 of the grey levels, what it takes without any model.
    """

    frechet: float
    bits: float

    def text(self) -> str:
        """The criteria in words."""
        return (
            f"{DIVERGED}: in a run, training met a loss or gradient that is not finite, or a sample or the bound is "
            f"not finite; {OUT_OF_RANGE}: all is finite, but in a run the samples' Fréchet distance on raw pixels is "
            f"above {self.frechet:.4g} ({OUT_OF_RANGE_FRECHET:g} times the held-out images'), or the bound on held-out "
            f"images above {self.bits:.4g} bits/dim (coding every grey level alike)"
        )


@dataclass(frozen=True)
class RunResult:
    """One run: its numbers by name of MEASURES, None where not finite, and the step at which it diverged, if it did."""

    seed: int
    numbers: dict[str, float | None]
    diverged: int | None = None

    def marks(self, limits: Limits) -> list[tuple[str, str]]:
        """What is wrong with it: DIVERGED or OUT_OF_RANGE and the reason, for each; nothing of a sound run."""
        found = []
        if self.diverged is not None:
            found.append((DIVERGED, f"training diverged after step {self.diverged:,}"))
        frechet, bits = self.numbers.get("frechet"), self.numbers.get("bits_held_out")
        if frechet is None:
            found.append((DIVERGED, "samples are not finite"))
        elif frechet > limits.frechet:
            found.append((OUT_OF_RANGE, f"Fréchet distance {frechet:.3g}"))
        if bits is None:
            found.append((DIVERGED, "the bound is not finite"))
        elif bits > limits.bits:
            found.append((OUT_OF_RANGE, f"{bits:.3g} bits/dim"))
        return found


@dataclass(frozen=True)
class CellResult:
    """The runs of a cell, one for each seed."""

    cell: Cell
    runs: tuple[RunResult, ...]

    def values(self, measure: str) -> list[float | None]:
        """A number of each run, in the order of the seeds."""
        return [run.numbers.get(measure) for run in self.runs]

    def mean(self, measure: str) -> float | None:
        """Over the seeds; None if any run has no such number."""
        values = self.values(measure)
        return None if None in values else mean(values)  # type: ignore[type-var]

    def deviation(self, measure: str) -> float | None:
        """The standard deviation over the seeds, None for one seed or if any run has no such number."""
        values = self.values(measure)
        return None if None in values or len(values) < 2 else stdev(values)  # type: ignore[type-var]

    def mark(self, limits: Limits) -> str | None:
        """The graver mark that any of its runs has, None if none has any."""
        return gravest(mark for run in self.runs for mark, _ in run.marks(limits))

    def reasons(self, limits: Limits) -> list[str]:
        """What is wrong, seed by seed."""
        return [f"seed {run.seed}: {reason}" for run in self.runs for _, reason in run.marks(limits)]


def gravest(marks: Iterable[str]) -> str | None:
    """DIVERGED if it is among them, else OUT_OF_RANGE if that is."""
    found = set(marks)
    return next((mark for mark in (DIVERGED, OUT_OF_RANGE) if mark in found), None)


@dataclass(frozen=True, eq=False)
class AblationResult:
    """An ablation's cells, in the table's order; `reference` are the held-out images' own numbers.

    subject: the folder, within the ablation's, of the first L_simple ε run, if there is one.
    """

    cells: tuple[CellResult, ...]
    reference: dict[str, Any]
    limits: Limits
    setup: dict[str, Any]
    subject: str | None

    @cached_property
    def measures(self) -> tuple[str, ...]:
        """Names of MEASURES that any run has."""
        runs = [run for cell in self.cells for run in cell.runs]
        return tuple(name for name in MEASURES if any(run.numbers.get(name) is not None for run in runs))

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """The paper's comparisons between these cells; reasons for what does not hold are given for the digits."""
        digits = self.setup.get("data", {}).get("source") == "digits"
        return find({result.cell.name: result.values for result in self.cells}, reasons=digits)

    def as_dict(self) -> dict[str, Any]:
        """As plain numbers, lists and texts, for JSON; None where a number is missing or not finite."""
        return {
            "cells": [self._cell(result) for result in self.cells],
            "held_out": self.reference,
            "measures": {name: MEASURES[name] for name in self.measures},
            "criteria": self.limits.text(),
            "limits": vars(self.limits),
            "findings": [finding.as_dict() for finding in self.findings],
            "setup": self.setup,
            "subject": self.subject,
        }

    def _cell(self, result: CellResult) -> dict[str, Any]:
        published = TABLE_2.get(result.cell.name)
        return {
            "name": result.cell.name,
            "label": result.cell.label,
            "predicts": result.cell.predicts,
            "trained_on": result.cell.trained_on,
            "mark": result.mark(self.limits),
            "reasons": result.reasons(self.limits),
            "mean": {name: result.mean(name) for name in self.measures},
            "deviation": {name: result.deviation(name) for name in self.measures},
            "seeds": [{"seed": run.seed, "diverged": run.diverged, **run.numbers} for run in result.runs],
            "paper": published._asdict() if published else "unstable" if result.cell.name in TABLE_2 else None,
        }

    def table(self) -> str:
        """Cells by measures as plain text, mean ± standard deviation over the seeds, and what they are beside."""
        shown = [name for name in self.measures if name != "nearest_median"]
        rows = [["", *(MEASURES[name] for name in shown), "paper: IS / FID"]]
        for result in self.cells:
            name, marks = result.cell.name, " *" if result.mark(self.limits) else ""
            numbers = [show(result.mean(m), result.deviation(m), len(result.runs)) for m in shown]
            rows.append([result.cell.label + marks, *numbers, _paper(name)])
        numbers = [show(self.reference.get(name), None, 0) for name in shown]
        rows.append(["held-out images", *numbers, ""])
        widths = [max(map(len, column)) for column in zip(*map(_printed, rows), strict=True)]
        lines = ["  ".join(map(_padded, row, widths)).rstrip() for row in rows]
        seeds = len(self.cells[0].runs)
        lines.append(f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed")
        for result in self.cells:
            if mark := result.mark(self.limits):
                lines.append(f"* {result.cell.label}: {mark} ({'; '.join(result.reasons(self.limits))})")
        return "\n".join([*lines, self.limits.text()])

    def csv(self) -> str:
        """A row for each run, under a heading."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["cell", "predicts", "trained_on", "seed", "mark", "reasons", *self.measures])
        for result in self.cells:
            cell = result.cell
            for run in result.runs:
                marks = run.marks(self.limits)
                mark, reasons = gravest(mark for mark, _ in marks) or "", "; ".join(reason for _, reason in marks)
                numbers = ["" if (x := run.numbers.get(name)) is None else repr(x) for name in self.measures]
                writer.writerow([cell.name, cell.predicts, cell.trained_on, run.seed, mark, reasons, *numbers])
        return text.getvalue()


def show(value: float | None, deviation: float | None, seeds: int) -> str:
    """1.23 ± 0.06: three digits of the number, more where the deviation would be 0; "-" of what has no seeds."""
    if value is None or not math.isfinite(value):
        return "not finite" if seeds else "-"
    places = max(0, min(3, 2 - math.floor(math.log10(abs(value))))) if value else 3
    if deviation and deviation > 1e-9 * abs(value):  # less is rounding
        places = min(4, max(places, -math.floor(math.log10(deviation) + 1e-9)))
    spread = "" if deviation is None else f" ± {deviation:.{places}f}"
    return f"{value:.{places}f}{spread}"


def _paper(name: str) -> str:
    """What the paper's cell says."""
    row = TABLE_2.get(name)
    if row is None:
        return "unstable" if name in TABLE_2 else "-"
    return f"{row.inception_score:.2f} ± {row.inception_score_sd:.2f} / {row.fid:.2f}"


def _printed(row: list[str]) -> list[str]:
    """Without the tildes that are drawn over the letter before them and take no place."""
    return [text.replace("\u0303", "") for text in row]


def _padded(text: str, width: int) -> str:
    return text + " " * (width - len(text.replace("\u0303", "")))
