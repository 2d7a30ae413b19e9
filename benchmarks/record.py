"""The file of results while it grows: whole after every job, and continued where a run before it was stopped."""

import json
from pathlib import Path
from typing import Any

from benchmarks.cases import Job
from benchmarks.rounds import Outcome
from benchmarks.scaling import fits
from ddpm_ref.files.atomic import write_text

FORMAT = 1
SAME = ("format", "command", "commit", "dirty", "threads", "level")
"""What must be equal for a file to be continued."""


class Record:
    """The document and where it is written."""

    def __init__(self, path: Path, head: dict[str, Any]) -> None:
        self.path = path
        self.document: dict[str, Any] = {
            "format": FORMAT, **head, "ceilings": [], "rows": [], "fits": [], "left_out": {},
        }  # fmt: skip
        if path.exists():
            self.document = self._continued(self.document)

    def _continued(self, fresh: dict[str, Any]) -> dict[str, Any]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            changed = [word for word in SAME if found.get(word) != fresh[word]]
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
        keys = job.keys()
        there = {
            (row["case"], row["contender"])
            for row in self.document["rows"]
            if all(row[name] == value for name, value in keys.items())
        }
        return all(
            f"{job.label}: {name}" in self.document["left_out"]
            or all((f"{job.case}{part}", name) in there for part, _ in job.parts)
            for name in job.contenders
        )

    def add(self, outcome: Outcome) -> None:
        """A job's rows, and the fits with them; written at once."""
        self.document["rows"] += outcome.rows
        self.document["left_out"] |= outcome.left_out
        self.document["fits"] = fits(self.document["rows"])
        self.write()

    def write(self) -> None:
        """Replace the file as a whole."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps(self.document, indent=1, allow_nan=False) + "\n")
