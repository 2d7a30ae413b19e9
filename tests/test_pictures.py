"""Pictures: what is written is what was given, pixel for pixel, and is written whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ddpm_ref import pictures
from ddpm_ref.files.data import to_bytes
from ddpm_ref.pictures import image_grid, save_gif, save_grid, save_loss_curve, save_png, save_strip

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")

STEPS = list(range(1000, -1, -100))


def images(*shape: int) -> np.ndarray:
    """Images of every grey level, no two alike."""
    return np.random.default_rng(0).uniform(-1, 1, shape)


def zoomed(image: np.ndarray, zoom: int) -> np.ndarray:
    """Each pixel as a square, by the outer product with a block of ones; always three channels."""
    square = np.kron(to_bytes(image), np.ones((zoom, zoom, 1), np.uint8))
    return np.broadcast_to(square, (*square.shape[:2], 3))


def opened(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture.convert("RGB"))


def gif_frames(path: Path) -> tuple[list[np.ndarray], list[int], dict[str, object]]:
    frames, durations = [], []
    with Image.open(path) as gif:
        for k in range(gif.n_frames):
            gif.seek(k)
            frames.append(np.array(gif.convert("RGB")))
            durations.append(gif.info["duration"])
        return frames, durations, dict(gif.info)


def training_run(k: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    steps = np.arange(1, k + 1) * 10
    loss = (0.1 + np.exp(-steps / 400)) * np.random.default_rng(0).uniform(0.8, 1.2, k)
    return steps, loss, loss[:, None] * [2.0, 1.0, 0.5, 0.2]


# ---- pixels


def test_levels_of_eight_bit_data_come_back_exactly():
    levels = np.arange(256)
    assert (to_bytes(levels / 127.5 - 1) == levels).all()
    assert (to_bytes((levels / 127.5 - 1).astype(np.float32)) == levels).all()


def test_values_are_rounded_not_cut_and_clipped_not_wrapped():
    assert to_bytes(np.array([-1, 1]) * 127.4 / 127.5).tolist() == [0, 255]
    assert to_bytes(np.array([-7.0, -1.001, 1.001, 300.0])).tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("n", "columns", "pad", "zoom"), [(6, 3, 1, 4), (7, 3, 2, 1), (5, None, 0, 3), (2, 4, 1, 2)])
def test_each_cell_of_a_grid_is_its_image_zoomed_and_the_rest_is_gap(n, columns, pad, zoom, channels):
    x = images(n, 4, 5, channels)
    grid = image_grid(x, columns, pad, zoom).copy()
    across = columns or int(np.ceil(np.sqrt(n)))
    rows = int(np.ceil(n / across))
    assert grid.dtype == np.uint8
    assert grid.shape == (zoom * (rows * (4 + pad) + pad), zoom * (across * (5 + pad) + pad), 3)
    for k in range(n):
        top, left = zoom * (pad + k // across * (4 + pad)), zoom * (pad + k % across * (5 + pad))
        cell = grid[top : top + 4 * zoom, left : left + 5 * zoom]
        assert (cell == zoomed(x[k], zoom)).all()
        cell[:] = pictures.GAP
    assert (grid == pictures.GAP).all()


@pytest.mark.parametrize("side", [8, 16, 28, 32, 64])
def test_grids_of_small_images_are_zoomed_to_about_700_pixels(side):
    assert 580 <= image_grid(images(10, side, side, 1), columns=10).shape[1] <= 820


def test_large_images_are_never_shrunk():
    assert image_grid(images(10, 2, 256, 1), columns=10).shape[1] == 10 * 257 + 1


def test_a_grid_leaves_its_images_alone():
    x = images(4, 3, 3, 1)
    before = x.copy()
    image_grid(x)
    assert (x == before).all()


# ---- files


def test_a_png_opens_with_the_pixels_it_was_given(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    path = save_png(tmp_path / "a.png", array)
    assert path == tmp_path / "a.png"
    assert (opened(path) == array).all()


def test_a_saved_grid_is_the_grid_and_no_wider_than_its_images(tmp_path):
    x = images(23, 8, 8, 1)
    assert (opened(save_grid(str(tmp_path / "grid.png"), x)) == image_grid(x, 10)).all()
    assert (opened(save_grid(tmp_path / "few.png", x[:3])) == image_grid(x[:3], 3)).all()


@pytest.mark.parametrize("shape", [(2, 11, 8, 8, 1), (1, 11, 32, 32, 3), (3, 30, 8, 8, 1), (1, 11, 150, 150, 1)])
def test_a_strip_holds_the_images_exactly_and_a_label_over_every_column(tmp_path, shape):
    rows, columns, _, w, channels = shape
    x, labels = images(*shape), np.linspace(1000, 0, shape[1]).astype(int).tolist()
    names = ["$x_t$", r"$\hat{x}_0$", "c"][:rows]
    page = opened(save_strip(tmp_path / "strip.png", x, labels, names))

    flat = x.reshape(-1, *shape[2:4], channels)
    fits = [zoom for zoom in range(1, 20) if page.shape[1] - zoom * (columns * (w + 1) + 1) > 0]
    grids = [image_grid(flat, columns, zoom=zoom) for zoom in fits]
    found = [g for g in grids if (page[-g.shape[0] :, -g.shape[1] :] == g).all()]
    assert len(found) == 1

    height, width, _ = found[0].shape
    top, left = page.shape[0] - height, page.shape[1] - width
    written = page.min(axis=2) < 128
    assert not written[0].any() and not written[top - 1, left:].any(), "writing touches the picture's edge"
    assert not written[:, 0].any() and not written[:top, -1].any(), "writing touches the picture's edge"
    centres = left + width / (columns * (w + 1) + 1) * (1 + w / 2 + np.arange(columns) * (w + 1))
    half = (centres[1] - centres[0]) / 2
    for centre in centres:
        cell = written[:top, int(centre - half) : int(centre + half)]
        ink = np.flatnonzero(cell.any(axis=0))
        assert ink.size and abs(ink.mean() - half) < 3, "no label, or not over the middle of its column"
        assert not cell[:, [0, -1]].any(), "a label runs into the next"
    row_height = height // rows
    for i in range(rows):
        assert written[top + i * row_height : top + (i + 1) * row_height, :left].any()


def test_a_strip_needs_no_names_of_rows(tmp_path):
    page = opened(save_strip(tmp_path / "strip.png", images(1, 11, 8, 8, 1), STEPS))
    assert 600 <= page.shape[1] <= 800


def test_a_gif_plays_every_frame_exactly_for_ever_and_holds_the_last(tmp_path):
    x = images(5, 6, 8, 8, 1)
    frames, durations, info = gif_frames(save_gif(tmp_path / "a.gif", x))
    expected = [image_grid(frame, 3, zoom=frames[0].shape[1] // 28) for frame in x]
    assert len(frames) == 5
    assert all((got == want).all() for got, want in zip(frames, expected, strict=True))
    assert durations == [pictures.FRAME_MS] * 4 + [pictures.LAST_FRAME_MS]
    assert info["loop"] == 0


def test_a_gif_of_colours_keeps_them_apart(tmp_path):
    x = np.full((2, 1, 4, 4, 3), -1.0)
    x[0, ..., 0], x[1, ..., 2] = 1, 1
    frames, _, _ = gif_frames(save_gif(tmp_path / "a.gif", x, columns=1))
    middles = [frame[frame.shape[0] // 2, frame.shape[1] // 2].tolist() for frame in frames]
    assert middles == [[255, 0, 0], [0, 0, 255]]


@pytest.mark.parametrize("k", [1, 2, 200])
def test_a_loss_curve_opens_at_any_length_of_run(tmp_path, k):
    assert opened(save_loss_curve(tmp_path / "loss.png", *training_run(k))).shape == (480, 1200, 3)


def test_the_loss_curve_draws_every_loss_raw_and_smoothed(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn, plot = [], Axes.plot

    def recorded(axes, *xy, **style):
        drawn.append(xy)
        return plot(axes, *xy, **style)

    monkeypatch.setattr(Axes, "plot", recorded)
    steps, loss, quarters = training_run()
    first = save_loss_curve(tmp_path / "a.png", steps, loss, quarters).read_bytes()
    for (x, raw), (_, smooth), y in zip(drawn[::2], drawn[1::2], [loss, *quarters.T], strict=True):
        assert (x == steps).all() and (raw == y).all()
        assert (smooth == pictures._running_mean(y)).all()
    assert first == save_loss_curve(tmp_path / "b.png", steps, loss, quarters).read_bytes()


def test_a_running_mean_keeps_constants_and_lines_and_averages_the_rest():
    assert pictures._running_mean(np.full(100, 3.0)) == pytest.approx(np.full(100, 3.0))
    line = np.arange(100.0)
    assert pictures._running_mean(line)[2:-2] == pytest.approx(line[2:-2])
    peak = pictures._running_mean(np.eye(100)[50])
    assert peak[48:53] == pytest.approx(np.full(5, 0.2)) and peak.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    "save",
    [
        lambda path: save_grid(path, images(3, 4, 4, 1)),
        lambda path: save_strip(path, images(1, 2, 4, 4, 1), [1, 0]),
        lambda path: save_gif(path, images(2, 1, 4, 4, 1)),
        lambda path: save_loss_curve(path, *training_run(5)),
    ],
    ids=["grid", "strip", "gif", "loss"],
)
def test_files_are_replaced_whole_and_nothing_is_left_over(tmp_path, monkeypatch, save):
    path = tmp_path / "picture"
    path.write_bytes(b"old")

    def no_space(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", no_space)
        with pytest.raises(OSError, match="no space"):
            save(path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    assert save(path) == path
    assert path.read_bytes() != b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_pyplot_stays_unimported(tmp_path):
    code = (
        "import sys, numpy as np; from ddpm_ref import pictures as p\n"
        "assert not {'PIL', 'matplotlib'} & set(sys.modules)\n"
        "p.save_loss_curve(sys.argv[1], np.arange(3), np.ones(3), np.ones((3, 4)))\n"
        "p.save_strip(sys.argv[1], np.zeros((1, 2, 4, 4, 1)), [1, 0])\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.png")], check=True)


# ---- errors


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((2, 4, 4, 1), np.uint8), "wanted a floating array"),
        (np.zeros((4, 4, 1)), r"wanted \(N, H, W, C\)"),
        (np.zeros((2, 4, 4, 2)), "C = 1 or 3"),
        (np.zeros((0, 4, 4, 1)), "not empty"),
        (np.full((2, 4, 4, 1), np.nan), "NaN"),
        (np.full((2, 4, 4, 1), np.inf), "infinite"),
        ([[0.0]], "wanted a floating array"),
    ],
)
def test_what_is_not_images_is_refused_by_name(tmp_path, bad, message):
    with pytest.raises(ValueError, match=f"images: .*{message}"):
        image_grid(bad)
    with pytest.raises(ValueError, match=f"images: .*{message}"):
        save_grid(tmp_path / "a.png", bad)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["columns", "pad", "zoom"])
@pytest.mark.parametrize("value", [-1, 1.5])
def test_sizes_must_be_whole_numbers(name, value):
    with pytest.raises(ValueError, match=f"{name}: wanted an integer"):
        image_grid(images(2, 4, 4, 1), **{name: value})


def test_no_columns_are_refused_everywhere(tmp_path):
    x = images(2, 3, 4, 4, 1)
    with pytest.raises(ValueError, match="columns: wanted an integer"):
        save_grid(tmp_path / "a.png", x[0], columns=0)
    with pytest.raises(ValueError, match="columns: wanted an integer"):
        save_gif(tmp_path / "a.gif", x, columns=0)


def test_strips_want_a_label_for_each_column_and_a_name_for_each_row(tmp_path):
    rows = images(2, 3, 4, 4, 1)
    with pytest.raises(ValueError, match="labels: wanted one for each of 3 columns, got 2"):
        save_strip(tmp_path / "a.png", rows, [1, 0])
    with pytest.raises(ValueError, match="row_labels: wanted none or one for each of 2 rows, got 1"):
        save_strip(tmp_path / "a.png", rows, [2, 1, 0], ["a"])
    with pytest.raises(ValueError, match="rows: wanted"):
        save_strip(tmp_path / "a.png", rows[0], [2, 1, 0])


def test_animations_and_pngs_want_their_shapes(tmp_path):
    with pytest.raises(ValueError, match="frames: wanted"):
        save_gif(tmp_path / "a.gif", images(2, 4, 4, 1))
    for bad in (np.zeros((2, 2, 3)), np.zeros((2, 2), np.uint8), np.zeros((0, 2, 3), np.uint8), "text"):
        with pytest.raises(ValueError, match="array: wanted uint8"):
            save_png(tmp_path / "a.png", bad)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("loss", lambda x: x[:-1]),
        ("loss", lambda x: np.where(np.arange(5) == 2, np.nan, x)),
        ("quarters", lambda x: x[:, :3]),
        ("quarters", lambda x: x * np.inf),
        ("steps", lambda x: x[::-1]),
        ("steps", lambda x: x[:0]),
        ("steps", lambda x: x[0]),
    ],
)
def test_curves_want_increasing_steps_and_finite_losses(tmp_path, name, change):
    run = dict(zip(("steps", "loss", "quarters"), training_run(5), strict=True))
    run[name] = change(run[name])
    with pytest.raises(ValueError, match=f"{name}: "):
        save_loss_curve(tmp_path / "a.png", **run)


@pytest.mark.parametrize("sign", [0, -1])
def test_losses_that_are_not_positive_are_drawn_on_a_linear_axis(tmp_path, sign):
    """A learned log-variance per step lets the loss go below zero."""
    steps, loss, quarters = training_run(5)
    with Image.open(save_loss_curve(tmp_path / "a.png", steps, sign * loss, quarters)) as picture:
        picture.load()


@pytest.mark.parametrize("missing", ["PIL.Image", "matplotlib.figure"])
def test_a_missing_library_names_the_extra(tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r'pip install "ddpm_ref\[demo\]"'):
        save_strip(tmp_path / "a.png", images(1, 2, 4, 4, 1), [1, 0])
