"""The pictures of benchmarks: the bars, points and curves drawn are the stored figures, the files are repeatable."""

from pathlib import Path

import numpy as np
import pytest
from stored_results import made_up, store

from benchmarks import pictures
from benchmarks.pictures import COLOURS, draw, palette, picture_names
from benchmarks.standings import Machine, machines
from benchmarks.stored import read_folder

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")


def machine(tmp_path: Path, **how: object) -> Machine:
    store(tmp_path, made_up(**how))  # type: ignore[arg-type]
    return machines(read_folder(tmp_path)[0])[0]


def test_all_are_written_and_the_same_again(tmp_path: Path) -> None:
    one = machine(tmp_path)
    first, second = (draw(one, tmp_path / name) for name in ("a", "b"))
    kinds = [f"{kind}-2x-made-up.{suffix}" for kind in ("steps", "roofline", "scaling") for suffix in ("png", "svg")]
    assert [path.name for path in first] == kinds
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    for path in first:
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert np.ptp(np.array(picture.convert("L"))) > 200
        else:
            text = path.read_text(encoding="utf-8")
            assert text.startswith("<?xml") and "<dc:date>" not in text


def test_a_bar_is_as_long_as_its_time_over_the_best_peers(tmp_path: Path) -> None:
    one = machine(tmp_path, noise=0, speed={"numpy": 12.0})
    figure = pictures._draw_steps(one, palette(one))
    # Panels: train (two groups), sample (three), five bars each; over torch compile, which takes 1.5 times numba's.
    for axes, groups in zip(figure.axes, (2, 3), strict=True):
        widths = [bar.get_width() for bar in axes.patches]
        assert widths == pytest.approx([1 / 1.5, pictures.FARTHEST, 2.6 / 1.5, 2.2 / 1.5, 1] * groups)
        said = [text.get_text() for text in axes.texts]
        assert said[:6] == [said[0], "0.67", "→ 8", "1.73", "1.47", "1.00"]


def test_whiskers_are_the_quartiles(tmp_path: Path) -> None:
    stored = made_up(noise=0)
    row = next(r for r in stored["rows"] if r["case"] == "train cifar10" and r["contender"] == "torch contiguous")
    row["over"]["torch compile"] = [0.5, 0.6, 0.7]
    for other in (r for r in stored["rows"] if r["case"] == row["case"] and r["contender"] == "torch compile"):
        del other["over"]["torch contiguous"]
    store(tmp_path, stored)
    (one,) = machines(read_folder(tmp_path)[0])
    axes = pictures._draw_steps(one, palette(one)).axes[0]
    spans = [tuple(line.get_xdata()) for line in axes.lines]
    assert any(span == pytest.approx((1 / 0.7, 1 / 0.5)) for span in spans)


def test_points_lie_at_operations_a_byte_and_rate(tmp_path: Path) -> None:
    one = machine(tmp_path, noise=0)
    axes = pictures._draw_roofline(one, palette(one)).axes[0]
    points = [tuple(map(float, p.get_offsets()[0])) for p in axes.collections]
    dense = 8e8 / 2e7, 8e8 / (1.4 * 8e8 / 2e11) / 1e9
    assert any(point == pytest.approx(dense) for point in points)
    roof = max(axes.lines, key=lambda line: min(line.get_ydata()))
    assert set(roof.get_ydata()) == {200.0} and roof.get_xdata()[0] == pytest.approx(200 / 20)


def test_curves_are_the_stored_times_with_their_exponents(tmp_path: Path) -> None:
    one = machine(tmp_path, noise=0)
    panels = {axes.get_xlabel(): axes for axes in pictures._draw_scaling(one, palette(one)).axes}
    assert set(panels) == {"batch", "T", "threads"}
    line = panels["batch"].lines[0]
    assert line.get_ydata() == pytest.approx([0.01 * x**0.9 for x in (1, 2, 4, 8, 16)])
    assert line.get_label() == "numba: batch$^{\\,0.90}$"
    assert panels["batch"].get_title() == "train base32 by batch"


@pytest.mark.parametrize(
    ("other", "titles"),
    [
        ({"precision": "float64", "dtype": "float64"}, ("float32", "float64")),
        ({"threads": 1}, ("2 threads", "1 thread")),
    ],
)
def test_noisy_points_are_not_drawn_and_other_precisions_and_threads_are_other_curves(
    tmp_path: Path, other: dict[str, object], titles: tuple[str, str]
) -> None:
    stored = made_up(noise=0)
    (wild,) = (r for r in stored["rows"] if (r["axis"], r["x"], r["contender"]) == ("batch", 4, "numba"))
    wild |= {"noisy": True, "median": 99.0}
    quiet = [row for row in stored["rows"] if row["axis"] == "batch" and not row["noisy"]]
    stored["rows"] += [row | other | {"median": 2 * row["median"]} for row in quiet]
    store(tmp_path, stored)
    (one,) = machines(read_folder(tmp_path)[0])
    panels = {axes.get_title(): axes for axes in pictures._draw_scaling(one, palette(one)).axes}
    for title, factor in zip(titles, (0.01, 0.02), strict=True):
        line = panels[f"train base32 by batch, {title}"].lines[0]
        assert list(line.get_xdata()) == [1, 2, 8, 16]
        assert line.get_ydata() == pytest.approx([factor * x**0.9 for x in (1, 2, 8, 16)])
        assert line.get_label() == "numba: batch$^{\\,0.90}$"  # of the points that are drawn


def test_no_bars_over_a_peer_that_cannot_be_quoted(tmp_path: Path) -> None:
    stored = made_up(noise=0)
    for row in stored["rows"]:
        row["noisy"] = (row["case"], row["contender"]) == ("train cifar10", "torch compile")
    store(tmp_path, stored)
    (one,) = machines(read_folder(tmp_path)[0])
    train, _ = pictures._bars(one)
    assert [group.any.case for group in train] == ["train digits"]


def test_a_noisy_row_has_no_bar(tmp_path: Path) -> None:
    stored = made_up(noise=0)
    for row in stored["rows"]:
        row["noisy"] = (row["case"], row["contender"]) == ("train cifar10", "numba")
    store(tmp_path, stored)
    (one,) = machines(read_folder(tmp_path)[0])
    axes = pictures._draw_steps(one, palette(one)).axes[0]
    assert len(axes.patches) == 9 and "numba: noisy" in [text.get_text() for text in axes.texts]


def test_a_contender_has_one_colour_of_its_own(tmp_path: Path) -> None:
    assert len(set(COLOURS.values())) == len(COLOURS)
    stored = made_up()
    for row in stored["rows"]:
        row["contender"] = {"torch compile": "zig", "torch contiguous": "ada"}.get(row["contender"], row["contender"])
        row["over"] = {}
    store(tmp_path, stored)
    (one,) = machines(read_folder(tmp_path)[0])
    colours = palette(one)
    assert list(colours) == ["numba", "numpy", "torch channels_last", "ada", "zig"]
    assert len(set(colours.values())) == 5 and colours["numba"] == COLOURS["numba"]


def test_a_machine_without_rows_for_a_picture_has_none(tmp_path: Path) -> None:
    stored = made_up()
    stored["rows"] = [row for row in stored["rows"] if row["level"] == "runs"]
    store(tmp_path, stored)
    (one,) = machines(read_folder(tmp_path)[0])
    assert picture_names(one) == [] and draw(one, tmp_path / "pictures") == []
    assert not (tmp_path / "pictures").exists()
