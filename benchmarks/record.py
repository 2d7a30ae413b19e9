"""The file of results while it grows: whole after every job, and continued where a run before it was stopped."""

import json
import time
from pathlib import Path
from typing import Any

from benchmarks.cases import Job
from benchmarks.provenance import load_average
from benchmarks.rounds import Outcome
from benchmarks.scaling import fits
from ddpm_ref.files.atomic import write_text

FORMAT = 1
SAME = ("format", "command", "commit", "dirty", "code", "versions", "threads", "level")
"""What must be equal for a file to be continued."""


class Record:
    """The document and where it is written."""

    def __init__(self, path: Path, head: dict[str, Any]) -> None:
        self.path = path
        self.document: dict[str, Any] = {
            "format": FORMAT, **head, "load": [load_average()] * 2, "elapsed_seconds": 0.0, "ceilings": [], "rows": [],
            "fits": [], "left_out": {},
        }  # fmt: skip
        if path.exists():
            self.document = self._continued(self.document)
        self._begun = time.monotonic() - self.document.get("elapsed_seconds", 0.0)

    def _continued(self, fresh: dict[str, Any]) -> dict[str, Any]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            changed = [word for word in SAME if found.get(word) != fresh.get(word)]
            same = found["machine"]["name"] == fresh["machine"]["name"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"out: {self.path} is there and no result file ({type(error).__name__})") from error
        changed += [] if same else ["machine"]
        if changed:
            raise ValueError(
                f"out: wanted a new file or one that this command began, got {self.path} with another "
                + ", ".join(changed)
            )
        return dict(found)

    def done(self, job: Job) -> bool:
        """Whether every contender of a job has its rows here or is said to be left out."""
        there = {(row["case"], row["contender"]) for row in self.document["rows"] if _of(job, row)}
        return all(
            f"{job.label}: {name}" in self.document["left_out"]
            or all((f"{job.case}{part}", name) in there for part, _ in job.parts)
            for name in job.contenders
        )

    def add(self, job: Job, outcome: Outcome) -> None:
        """A job's rows in place of those it had, and the fits with them; written at once."""
        document, labels = self.document, [f"{job.label}: {name}" for name in job.contenders]
        document["rows"] = [row for row in document["rows"] if not _of(job, row)] + outcome.rows
        left = {label: why for label, why in document["left_out"].items() if label not in labels}
        document["left_out"] = left | outcome.left_out
        self.document["fits"] = fits(self.document["rows"])
        self.write()

    def write(self) -> None:
        """Replace the file as a whole."""
        self.document["load"] = [self.document.get("load", [None])[0], load_average()]
        self.document["elapsed_seconds"] = round(time.monotonic() - self._begun, 1)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps(self.document, indent=1, allow_nan=False) + "\n")


def _of(job: Job, row: dict[str, Any]) -> bool:
    """Whether a row is one of this job's."""
    cases = [f"{job.case}{part}" for part, _ in job.parts]
    return row["case"] in cases and all(row[name] == value for name, value in job.keys().items())
