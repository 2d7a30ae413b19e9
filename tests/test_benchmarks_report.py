"""RESULTS.md: what it says follows from the stored files, and the one in the repository is what they give."""

import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from stored_results import made_up, store

from benchmarks import __main__ as command
from benchmarks import ceilings, standings
from benchmarks.as_text import figures, part, time
from benchmarks.cases import CASES
from benchmarks.report import main, report
from benchmarks.standings import machines
from benchmarks.stored import Row, read_folder
from ddpm_ref.nn.plan import UNetConfig

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


def test_rounds_that_were_not_taken_in_turns_give_no_quartiles(tmp_path: Path) -> None:
    stored = made_up(noise=0)
    for row in stored["rows"]:
        row["interleaved"] = row["case"] != "train cifar10"
        row["over"] = {name: [1.25, 9.0, 10.0] for name in row["over"]}
    text = section(report(of(tmp_path, stored)), "Steps")
    (alone,), (turns,) = (lines(text, f"train {name} | numba") for name in ("cifar10, batch 8", "digits, batch 128"))
    assert (alone[-1], turns[-1]) == ("1.50", "9.00 (1.25–10.00)")


def test_the_best_peer_is_the_fastest_of_the_others(tmp_path: Path) -> None:
    (machine,) = of(tmp_path, made_up(speed={"torch contiguous": 1.2}))
    assert {g.peer.contender for g in machine.at("steps") if g.peer} == {"torch contiguous"}
    assert {g.ours.contender for g in machine.at("steps") if g.ours} == {"numba"}


def test_where_we_lose_holds_every_faster_peer_worst_first(tmp_path: Path) -> None:
    # No noise, so that the ratios are those chosen: contiguous takes 0.5, compile 0.8 of numba's time, the rest longer.
    found = of(tmp_path, made_up(noise=0, speed={"torch contiguous": 0.5, "torch compile": 0.8}))
    rows = [row for machine in found for _, row, _ in standings.losses(machine)]
    assert [row.contender for row in rows] == ["torch contiguous"] * 6 + ["torch compile"] * 16
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


def test_a_noisy_row_does_not_hide_a_loss_that_the_rounds_agree_on(tmp_path: Path) -> None:
    def lost(high: float) -> str:
        stored = made_up()
        row = next(r for r in stored["rows"] if r["case"] == "train cifar10" and r["contender"] == "numba")
        row |= {"noisy": True}
        row["over"]["torch compile"] = [0.4, 0.5, high]
        return section(report(of(tmp_path, stored)), "Where we lose")

    (line,) = [line for line in lost(0.9).splitlines() if line.startswith("Too noisy to quote")]
    assert "four or more: train cifar10, batch 8, float32, 2 threads (torch compile, " in line and "0.5" not in line
    assert "Too noisy" not in lost(1.1) and "Too noisy" not in report(
        of(tmp_path, made_up(speed={"torch compile": 0.5}))
    )


def test_without_losses_it_says_so(tmp_path: Path) -> None:
    assert "In no quotable row was a peer faster" in report(of(tmp_path, made_up()))


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
    # No slower one of ours is put in its place.
    (cells,) = lines(section(text, "Steps"), "train cifar10, batch 8 | numba")
    assert (cells[2], cells[-1]) == ("noisy", "noisy")
    assert "steps: behind the best peer in 0 of 5, 1 noisy" in text


@pytest.mark.parametrize(
    ("medians", "noisy", "rests_on_noise", "faster"),
    [
        ((1, 2, 3, 4), "", False, []),
        ((1, 2, 3, 4), "c", True, []),  # the fast noisy peer, not the slow quiet one
        ((1, 2, 3, 4), "d", False, []),  # a slow noisy peer changes nothing
        ((1, 2, 3, 4), "a", True, []),  # the fast noisy one of ours likewise
        ((1, 2, 3, 4), "b", False, []),
        ((2, 3, 1, 4), "a", True, []),  # nor is a slower one of ours said to be behind
        ((2, 3, 0.5, 1), "c", True, ["d"]),  # behind d in any case, by how much at worst is not known
    ],
)
def test_no_ratio_rests_on_a_row_slower_than_a_noisy_one(
    medians: tuple[float, ...], noisy: str, rests_on_noise: bool, faster: list[str]
) -> None:
    """a and b are ours, c and d peers."""
    rows = zip("abcd", medians, strict=True)
    group = standings.group(Row("steps", "", name, name in "ab", s, noisy=name in noisy) for name, s in rows)
    assert (group.ours and group.ours.contender, group.peer and group.peer.contender) == ("a", "c")
    assert group.noisy is rests_on_noise and [row.contender for row in group.faster] == faster


def test_a_noisy_row_with_the_lower_median_spoils_a_better_paired_ratio() -> None:
    ours = Row("steps", "c", "a", True, 1.0, over={"c": (1.4, 1.5, 1.6), "d": (1.7, 1.8, 1.9)})
    rows = [ours, Row("steps", "c", "c", False, 1.5), Row("steps", "c", "d", False, 1.4, noisy=True)]
    group = standings.group(rows)
    assert group.peer and group.peer.contender == "c" and group.noisy


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


def test_the_more_careful_file_speaks_and_other_commits_are_named(tmp_path: Path) -> None:
    full = made_up() | {"commit": "0123456789", "dirty": True}
    quick = made_up(drift=2.0) | {"started": "2026-01-03T00:00:00", "commit": "fedcba9876", "level": "quick"}
    quick["rows"] = [r | {"batch": 9} if r["level"] == "runs" else r for r in quick["rows"] if r["level"] != "loops"]
    (machine,) = of(tmp_path, full, quick)
    fresh = [group for group in machine.at("runs") if group.any.batch == 9]
    medians = {row["median"] for row in full["rows"]}
    assert len(fresh) == 2 and {row.mark for group in fresh for row in group.rows} == {""}
    others = [row for group in machine.groups if group not in fresh for row in group.rows]
    assert {row.mark for row in others} == {"commit 0123456, dirty"} and {row.median for row in others} == medians
    text = report([machine])
    assert lines(section(text, "Loops"), "dense 8192x384→128, batch 8, commit 0123456, dirty")
    assert lines(section(text, "Scaling"), "train base32 by batch, commit 0123456, dirty | batch | 1 to 16 | numba")
    assert lines(section(text, "Runs"), "image digits, batch 9 |")


@pytest.mark.parametrize(
    ("files", "speaks"),
    [
        ([("full", 1), ("quick", 2)], 0), ([("default", 1), ("quick", 2)], 0), ([("full", 1), ("default", 2)], 0),
        ([("quick", 1), ("default", 2)], 1), ([("full", 2), ("full", 1)], 0), ([(None, 1), ("quick", 2)], 0),
        ([("quick", 3), ("full", 1), ("full", 2)], 2),
    ],
)  # fmt: skip
def test_of_files_with_one_row_the_most_careful_then_the_newest_speaks(
    tmp_path: Path, files: list[tuple[str | None, int]], speaks: int
) -> None:
    stored = []
    for k, (level, day) in enumerate(files):
        one = made_up()
        stored.append(
            one | {"level": level, "started": f"2026-01-0{day}", "rows": [one["rows"][0] | {"median": 1 + k}]}
        )
    (machine,) = of(tmp_path, *stored)
    assert [row.median for group in machine.groups for row in group.rows] == [1 + speaks]


def test_the_report_reads_what_the_runner_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real run of NumPy on a tiny network; and rows that are made up here have the fields of its rows."""
    small = partial(ceilings._of_cpu, size=64, copied=1 << 16)
    monkeypatch.setattr(ceilings, "measure_ceilings", lambda threads, gpu: small(threads))
    tiny = UNetConfig(1, 4, (1, 2), 1, (1,), groups=2, dropout=0.1, image_size=4)
    monkeypatch.setitem(CASES, "base64", CASES["base64"]._replace(config=tiny, train=3, sample=2))
    made = command.JOBS["runs"]
    hasty = lambda asked: [replace(job, seconds=0.0) for job in made(asked)]  # noqa: E731
    monkeypatch.setitem(command.JOBS, "runs", hasty)
    words = ["runs", "--quick", "--rounds", "2", "--presets", "base64", "--backends", "numpy", "--threads", "1"]
    path = tmp_path / "results" / "tiny.json"
    assert command.main([*words, "--peers", "none", "--out", str(path)]) == 0
    document = json.loads(path.read_text(encoding="utf-8"))
    (row,) = document["rows"]
    row["noisy"] = False
    document |= {"commit": "0123abc", "dirty": False}  # wherever the test runs, in a clone or not
    path.write_text(json.dumps(document), encoding="utf-8")
    text = section(report(machines(read_folder(path.parent)[0])), "Runs")
    assert f"| image base64, batch 2 | numpy | {figures(1 / row['median'])} |" in text
    assert f"| image base64, batch 2 | numpy | {time(row['median'])} |" in text
    for made_up_row in made_up()["rows"]:
        assert made_up_row.keys() - {"steps"} <= row.keys()
    image = next(one for one in made_up()["rows"] if one["what"] == "images")
    for word in ("level", "axis", "x", "unit", "dtype", "precision"):
        assert image[word] == row[word]


def test_the_files_head_says_how_long_it_took_and_how_busy_the_machine_was(tmp_path: Path) -> None:
    text = section(report(of(tmp_path, made_up())), "What ran")
    assert lines(text, "took") == [["took", "754 s"]]
    assert lines(text, "load average") == [["load average at the start, at the end", "0.50, 2.05"]]
    text = section(report(of(tmp_path, made_up() | {"load": [None, None], "elapsed_seconds": None})), "What ran")
    assert not lines(text, "took") and not lines(text, "load average")


def test_runs_show_steps_to_the_loss_and_images_a_second(tmp_path: Path) -> None:
    text = section(report(of(tmp_path, made_up(noise=0))), "Runs")
    assert lines(text, "train digits to loss 0.11, batch 64 | numba | 812")
    assert lines(text, "image digits, batch 64 | numba | 20.0")  # 0.05 s an image
    assert lines(text, "image digits, batch 64 | torch compile | 13.3")
    assert "train digits to loss 0.11, batch 64 | numba | 20.0 s | – | – |" in text  # no memory, and none made up


def test_a_curve_is_fitted_to_its_quotable_points_and_says_how_many(tmp_path: Path) -> None:
    stored = made_up(noise=0)
    (wild,) = (r for r in stored["rows"] if (r["axis"], r["x"], r["contender"]) == ("batch", 1, "numba"))
    wild |= {"noisy": True, "median": 99.0}
    text = section(report(of(tmp_path, stored)), "Scaling")
    (numba,) = lines(text, "train base32 by batch | batch | 2 to 16 | numba")
    assert numba[4] == "0.90 ± 0.00 (4)"
    (threads,) = lines(text, "train base32 by threads | threads | 1 to 2 | numba")
    assert threads[4] == "-0.70 (2)"  # two points leave no error to estimate
    assert "train base32 by batch | batch | 1 to 16 | numpy" in text


def test_a_convolution_beyond_its_ceiling_is_printed_as_it_is(tmp_path: Path) -> None:
    stored = made_up(noise=0)
    row = next(r for r in stored["rows"] if r["what"] == "conv3x3" and r["contender"] == "numba")
    row["fraction"] = 1.62
    text = report(of(tmp_path, stored))
    assert lines(section(text, "Loops"), row["case"])[0][4] == "162%"
    assert "Winograd" in text.split("## Where we lose")[0]


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
