"""The file of results while it grows: what it is continued by, what replaces what, how its code is known."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import options, provenance, rounds, steps
from benchmarks.record import Record

HEAD = {
    "machine": {"name": "a machine"}, "versions": {}, "commit": "c", "dirty": False, "command": "x", "started": "now",
    "threads": 1, "level": "default",
}  # fmt: skip


def asked(*words: str) -> options.Options:
    return options.parse(words, None)


def test_a_file_is_continued_by_the_same_command_and_commit_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    job = steps.jobs(asked("steps", "--presets", "base64", "--backends", "numpy", "--peers", "none"))[0]
    first = Record(path, HEAD)
    assert not first.done(job)
    first.add(job, rounds.Outcome([], {f"{job.label}: numpy": "a reason"}))
    assert Record(path, HEAD).done(job)
    changed = {"commit": "d", "command": "y", "dirty": True, "threads": 2, "versions": {"numpy": "0"}, "code": "e"}
    for word, value in changed.items():
        with pytest.raises(ValueError, match=f"another {word}"):
            Record(path, HEAD | {word: value})
    path.write_text("[]")
    with pytest.raises(ValueError, match="no result file"):
        Record(path, HEAD)


def test_a_job_that_is_run_again_replaces_its_rows_and_its_reasons(tmp_path: Path) -> None:
    jobs = steps.jobs(asked("steps", "--presets", "base64", "--backends", "numpy", "numba", "--peers", "none"))
    record = Record(tmp_path / "a.json", HEAD)

    def row(job: Any, name: str, median: float) -> dict[str, Any]:
        return {"case": job.case} | job.keys() | {"contender": name, "median": median}

    record.add(jobs[0], rounds.Outcome([row(jobs[0], "numpy", 1.0)], {f"{jobs[0].label}: numba": "a reason"}))
    record.add(jobs[1], rounds.Outcome([row(jobs[1], "numpy", 2.0)], {}))
    record.add(jobs[0], rounds.Outcome([row(jobs[0], "numpy", 3.0), row(jobs[0], "numba", 4.0)], {}))
    assert [one["median"] for one in record.document["rows"]] == [2.0, 3.0, 4.0]
    assert record.document["left_out"] == {}


def test_code_is_known_by_its_hash_and_without_git_nothing_is_said_of_changes(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "ddpm_ref").mkdir()
    file = tmp_path / "ddpm_ref" / "a.py"
    hashes = []
    for text in ("x = 1\n", "x = 2\n", "x = 1\n"):
        file.write_text(text)
        hashes.append(provenance.code_hash(tmp_path))
    assert hashes[0] == hashes[2] != hashes[1]
    for said, dirty in ((None, None), ("", False), (" M a.py", True)):
        monkeypatch.setattr(provenance, "_ran", lambda *words, said=said: said)
        found = provenance.changes()
        assert found["dirty"] is dirty and (found["code"] is None) is (dirty is False)
