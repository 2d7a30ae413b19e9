"""RESULTS.md: what it says follows from the stored files, and the one in the repository is what they give."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from stored_results import made_up, store

from benchmarks import standings
from benchmarks.as_text import figures, part, time
from benchmarks.report import main, report
from benchmarks.standings import machines
from benchmarks.stored import Row, read_folder

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def of(tmp_path: Path, *stored: dict[str, Any]) -> list[standings.Machine]:
    for k, one in enumerate(stored):
        store(tmp_path, one, f"{k}.json")
    return machines(read_folder(tmp_path)[0])


def section(text: str, title: str) -> str:
    """From a heading to the next."""
    return re.split(r"^##+ ", text.split(f" {title}\n", 1)[1], maxsplit=1, flags=re.M)[0]


def lines(text: str, words: str) -> list[list[str]]:
    """Cells of the table's lines that begin with these words."""
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith(f"| {words}")]


def test_the_repository_holds_what_its_files_give(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--check", "--results", str(BENCHMARKS / "results"), "--out", str(BENCHMARKS / "RESULTS.md")])
    assert code == 0, capsys.readouterr().err


def test_check_sees_a_changed_figure_and_a_missing_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    out, folder = tmp_path / "RESULTS.md", tmp_path / "results"
    shutil.copytree(BENCHMARKS / "results" / "h200", folder / "h200")
    words = ["--results", str(folder), "--out", str(out)]
    assert main([*words, "--check"]) == 1
    assert main(words) == 0
    assert main([*words, "--check"]) == 0
    for path in re.findall(r"\]\((.+?\.png)\)", out.read_text(encoding="utf-8")):
        assert (tmp_path / path).is_file()
    text = out.read_text(encoding="utf-8")
    out.write_text(text.replace("1", "2", 1), encoding="utf-8")
    assert main([*words, "--check"]) == 1
    assert f"{out} is not what the stored files give" in capsys.readouterr().err
    out.write_text(text, encoding="utf-8")
    (folder / "pictures" / "steps-nvidia-h200.svg").unlink()
    assert main([*words, "--check"]) == 1


def test_bad_files_exit_with_2_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--results", str(tmp_path / "none"), "--out", str(tmp_path / "RESULTS.md")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "RESULTS.md").exists()


def test_a_ratio_is_the_peers_time_over_ours_with_its_quartiles(tmp_path: Path) -> None:
    stored = made_up()
    row = next(r for r in stored["rows"] if r["case"] == "train cifar10" and r["contender"] == "numba")
    row["over"]["torch compile"] = [1.25, 1.5, 1.75]
    text = report(of(tmp_path, stored))
    (line,) = [cells for cells in lines(section(text, "Steps"), "train cifar10") if "torch compile" in cells]
    assert line[-1] == "1.50 (1.25–1.75)"
    assert line[2] == time(row["median"])
    assert line[4] == "1.30 (0.15)"


def test_the_best_peer_is_the_fastest_of_the_others(tmp_path: Path) -> None:
    (machine,) = of(tmp_path, made_up(speed={"torch contiguous": 1.2}))
    assert {g.peer.contender for g in machine.at("steps") if g.peer} == {"torch contiguous"}
    assert {g.ours.contender for g in machine.at("steps") if g.ours} == {"numba"}


def test_where_we_lose_holds_every_faster_peer_worst_first(tmp_path: Path) -> None:
    # No noise, so that the ratios are those chosen: contiguous takes 0.5, compile 0.8 of numba's time, the rest longer.
    found = of(tmp_path, made_up(noise=0, speed={"torch contiguous": 0.5, "torch compile": 0.8}))
    rows = [row for machine in found for _, row, _ in standings.losses(machine)]
    assert [row.contender for row in rows] == ["torch contiguous"] * 5 + ["torch compile"] * 17
    text = section(report(found), "Where we lose")
    steps, curves = text.split("Loops and curves:")
    assert len(lines(steps, "")) == 2 + 5 + 5 + 2 and len(lines(curves, "")) == 2 + 10
    (cells, *_) = lines(steps, "sample cifar10, batch 16")
    assert cells[4:] == ["torch contiguous", "350 ms", "100.0% longer", "0.50 (0.50–0.50)"]
    assert "steps: behind the best peer in 5 of 5 (ratio 0.50 to 0.50)" in text


def test_a_loss_within_its_quartiles_says_so(tmp_path: Path) -> None:
    stored = made_up()
    row = next(r for r in stored["rows"] if r["case"] == "train cifar10" and r["contender"] == "numba")
    row["over"]["torch compile"] = [0.95, 0.99, 1.02]
    (cells,) = lines(section(report(of(tmp_path, stored)), "Where we lose"), "train cifar10")
    assert cells[-2] == "1.0% longer, quartiles on both sides of 1"


def test_without_losses_it_says_so(tmp_path: Path) -> None:
    assert "In no row was a peer faster" in report(of(tmp_path, made_up()))


def test_less_memory_of_a_peer_is_a_loss_too(tmp_path: Path) -> None:
    stored = made_up()
    row = next(r for r in stored["rows"] if r["case"] == "train digits" and r["contender"] == "torch compile")
    row["peak_memory_gib"] = 0.125
    (cells,) = lines(section(report(of(tmp_path, stored)), "Where we lose"), "train digits")
    assert cells[2:] == ["numba", "0.21 (0.15)", "torch compile", "0.12 (0.15)"]


def test_a_noisy_row_is_named_and_none_of_its_figures_quoted(tmp_path: Path) -> None:
    stored = made_up()
    row = next(r for r in stored["rows"] if r["case"] == "train cifar10" and r["contender"] == "numba")
    row |= {"noisy": True, "median": 1.2345}
    row["over"] = {name: [0.1, 0.123, 0.15] for name in row["over"]}
    found = of(tmp_path, stored)
    text = report(found)
    assert "1.23 s" not in text and "0.12" not in text
    assert "- train cifar10, batch 8, numba" in section(text, "Noisy, and not quoted")
    # The best of ours that can be quoted stands in its place.
    (group,) = [g for g in found[0].at("steps") if g.any.case == "train cifar10"]
    assert group.ours and group.ours.contender == "numpy"


def test_precisions_are_never_compared_with_each_other() -> None:
    results, _ = read_folder(BENCHMARKS / "results" / "h200")
    for group in machines(results)[0].groups:
        assert len({row.precision for row in group.rows}) == 1


def test_the_newest_file_of_a_machine_speaks(tmp_path: Path) -> None:
    old, new = made_up(), made_up(drift=2.0) | {"started": "2026-01-03T00:00:00", "commit": "fedcba"}
    (machine,) = of(tmp_path, new, old)
    assert [result.commit for result in machine.results] == ["0123456789", "fedcba"]
    medians = {row["median"] for row in new["rows"]}
    assert {row.median for group in machine.groups for row in group.rows} == medians
    assert all(f"`{k}.json`" in report([machine]) for k in range(2))


def test_machines_live_side_by_side(tmp_path: Path) -> None:
    shutil.copytree(BENCHMARKS / "results" / "h200", tmp_path / "h200")
    text = report(of(tmp_path, made_up()))
    assert text.index("## 2x Made Up") < text.index("## NVIDIA H200")
    assert "jax: not installed" in section(text, "Left out")


def test_loops_show_rate_ceiling_and_numpy(tmp_path: Path) -> None:
    text = section(report(of(tmp_path, made_up(noise=0))), "Loops")
    (dense,) = lines(text, "dense")
    assert dense[1:] == ["numba", "5.60 ms", "143 GFLOP/s", "71%", "4.20 (4.20–4.20)", "–"]
    (update,) = lines(text, "update")  # 1.4 GB in 1.4 times the 70 ms that 20 GB/s allow
    assert update[3] == "14.3 GB/s"


def row(x: float, median: float, axis: str = "batch", **facts: Any) -> Row:
    return Row("scaling", "c", "numba", True, median, axis=axis, x=x, **facts)


def test_where_a_backend_stops_scaling() -> None:
    # Images a second: 10, 20, 20, 15, so that 8 is the first past the best with less than 80 %.
    curve = [row(1, 0.1), row(2, 0.1), row(4, 0.2), row(8, 8 / 15)]
    assert standings.efficiency(curve) == pytest.approx([0.5, 1, 1, 0.75])
    assert standings.reach(curve) == (2, 8)
    # By threads, what each does: 1, 0.9, 0.5.
    threads = [row(1, 1, "threads"), row(2, 1 / 1.8, "threads"), row(4, 0.5, "threads")]
    assert standings.efficiency(threads) == pytest.approx([1, 0.9, 0.5])
    assert standings.reach(threads) == (1, 4)
    # By operations where they are known: four times the work in four times the time loses nothing.
    assert standings.reach([row(8, 1, "resolution", flops=1e9), row(16, 4, "resolution", flops=4e9)]) == (8, None)
    assert standings.reach([row(8, 1, "resolution"), row(16, 4, "resolution")]) is None


def test_figures_have_three_digits() -> None:
    found = [time(s) for s in (12.345, 1.0, 0.99951, 0.0123, 1.5e-6, 345.6)]
    assert found == ["12.3 s", "1.00 s", "1,000 ms", "12.3 ms", "1.50 µs", "346 s"]
    assert [figures(v) for v in (0, 0.0123, 9.995, 99.94, 1234)] == ["0", "0.012", "10.0", "99.9", "1,234"]
    assert [part(v) for v in (None, 0.5, 0.0512)] == ["–", "50%", "5.1%"]
