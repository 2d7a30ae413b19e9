"""Images as pictures: grids, strips over the steps t, animations, loss curves.

Images are arrays (N, H, W, C) with values in [-1, 1], C = 1 or 3; values beyond are clipped, and rounded, not
cut, to 0..255. Files are written under a temporary name and renamed, so that nobody opens half a picture.
Pillow and matplotlib come with the extra "demo" and are imported where they are used. Of matplotlib only its
objects are used, never pyplot: no display, no global state.
"""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_ref.checks import Array, check_finite, check_float, check_int
from ddpm_ref.extras import import_extra
from ddpm_ref.files.atomic import write_bytes
from ddpm_ref.files.data import to_bytes

PathLike = str | os.PathLike[str]

GRID_WIDTH = 700  # pixels that a picture of small images is zoomed to, about
GIF_WIDTH = 420  # less, because every frame costs it again
GAP, INK = 200, 40  # grey levels of the space between images, neither black nor white, and of text
FRAME_MS, LAST_FRAME_MS = 80, 2000


def image_grid(images: Array, columns: int | None = None, pad: int = 1, zoom: int | None = None) -> Array:
    """Images side by side, row after row, as one picture.

    images: (N, H, W, C).   Returns uint8 (H', W', 3) with W' = zoom (columns (W + pad) + pad), H' alike.
    columns: √N, rounded up, if None.   pad: pixels between and around images, zoomed as these are.
    zoom: each pixel becomes zoom x zoom of the same colour; if None, what brings the width near 700.
    """
    _check_images("images", images, 4)
    n, h, w, _ = images.shape
    columns = int(np.ceil(n**0.5)) if columns is None else columns
    check_int("columns", columns, 1)
    check_int("pad", pad, 0)
    zoom = _zoom(columns * (w + pad) + pad, GRID_WIDTH) if zoom is None else zoom
    check_int("zoom", zoom, 1)

    rows = -(-n // columns)
    grid = np.full((rows * (h + pad) + pad, columns * (w + pad) + pad, 3), GAP, dtype=np.uint8)
    for k, image in enumerate(to_bytes(images)):
        y, x = pad + k // columns * (h + pad), pad + k % columns * (w + pad)
        grid[y : y + h, x : x + w] = image
    return grid.repeat(zoom, axis=0).repeat(zoom, axis=1)


def save_png(path: PathLike, array: Array) -> Path:
    """A picture, uint8 (H, W, 3), to a PNG file; returns its path."""
    if getattr(array, "dtype", None) != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise ValueError(f"array: wanted uint8 (H, W, 3), not empty, got {_what(array)}")
    Image = import_extra("PIL.Image", "a picture")
    data = io.BytesIO()
    Image.fromarray(array).save(data, format="PNG")
    return write_bytes(path, data.getvalue())


def save_grid(path: PathLike, images: Array, columns: int = 10) -> Path:
    """A grid of images (N, H, W, C), at most `columns` wide, to a PNG file; returns its path."""
    _check_images("images", images, 4)
    check_int("columns", columns, 1)
    return save_png(path, image_grid(images, min(columns, len(images))))


def save_strip(
    path: PathLike, rows: Array, labels: Sequence[object], row_labels: Sequence[str] = (), *, heading: str = "$t$ ="
) -> Path:
    """Images as they change over K steps t, which are written above the columns, to a PNG file.

    rows: (R, K, H, W, C), a row for each of R images, or for x_t and x̂_0 of one.
    labels: the K steps, as in 1000, 900 … 0, or what else the columns are, which `heading` says before them.
    row_labels: R names to write before the rows, or none.
    Between dollar signs all of these are mathematics, as in r"$\\hat{x}_0$".
    """
    _check_images("rows", rows, 5)
    r, k, h, w, _ = rows.shape
    if len(labels) != k:
        raise ValueError(f"labels: wanted one for each of {k} columns, got {len(labels)}")
    if len(row_labels) not in (0, r):
        raise ValueError(f"row_labels: wanted none or one for each of {r} rows, got {len(row_labels)}")
    texts = [str(label) for label in labels]
    # No label runs into the next: at 10 points a digit takes 9 pixels.
    widest = max(map(len, texts)) * 9 + 8
    zoom = max(_zoom(k * (w + 1) + 1, GRID_WIDTH), -(-widest // (w + 1)))
    grid = image_grid(rows.reshape(r * k, h, w, -1), k, pad=1, zoom=zoom)
    across = [(zoom * (1 + w / 2 + j * (w + 1)), text) for j, text in enumerate(texts)]
    down = [(zoom * (1 + h / 2 + i * (h + 1)), text) for i, text in enumerate(row_labels)]
    return save_png(path, _with_labels(grid, across, down, heading))


def save_gif(path: PathLike, frames: Array, columns: int | None = None) -> Path:
    """An animation without end of a grid of N images over K frames, the last held longer, to a GIF file.

    frames: (K, N, H, W, C).   columns: of the grid, √N if None.
    Grey images keep every level; of colours a GIF has 256 in each frame.
    """
    _check_images("frames", frames, 5)
    _, n, _, w, c = frames.shape
    columns = int(np.ceil(n**0.5)) if columns is None else columns
    check_int("columns", columns, 1)
    Image = import_extra("PIL.Image", "a picture")
    zoom = _zoom(columns * (w + 1) + 1, GIF_WIDTH)
    grids = [Image.fromarray(image_grid(frame, columns, zoom=zoom)) for frame in frames]
    first, *others = [grid.convert("L") for grid in grids] if c == 1 else grids
    durations = [FRAME_MS] * len(others) + [LAST_FRAME_MS]
    data = io.BytesIO()
    first.save(data, format="GIF", save_all=True, append_images=others, duration=durations, loop=0)
    return write_bytes(path, data.getvalue())


def save_loss_curve(path: PathLike, steps: Array, loss: Array, quarters: Array) -> Path:
    """The loss over training, raw and smoothed, beside the loss by quarter of t, to a PNG file.

    steps: (K,), increasing.   loss: (K,).   quarters: (K, 4), the loss at t in each quarter of 1..T, least
    noise first. The axis is logarithmic if all are positive. The bold lines are running means over K/20.
    """
    _check_losses(steps, loss, quarters)
    Figure = import_extra("matplotlib.figure", "a picture with text").Figure
    FigureCanvasAgg = import_extra("matplotlib.backends.backend_agg", "a picture with text").FigureCanvasAgg
    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    canvas: Any = FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharex=True)
    left.plot(steps, loss, color="#9ab3cc", linewidth=0.8, label="raw")
    left.plot(steps, _running_mean(loss), color="#1f4e79", linewidth=2, label="running mean")
    # From light to dark as t grows, since the quarters are ordered.
    names = (r"$t \leq T/4$", r"$T/4 < t \leq T/2$", r"$T/2 < t \leq 3T/4$", "$t > 3T/4$")
    colors = ("#f0a35e", "#d9622b", "#a2352c", "#4f1d2f")
    for quarter, name, color in zip(np.transpose(quarters), names, colors, strict=True):
        right.plot(steps, quarter, color=color, linewidth=0.6, alpha=0.2)
        right.plot(steps, _running_mean(quarter), color=color, linewidth=2, label=name)
    scale = "log" if min(np.min(loss), np.min(quarters)) > 0 else "linear"
    for axes, title in ((left, "Training loss"), (right, "Loss by quarter of $t$")):
        axes.set(title=title, xlabel="training step", ylabel="loss", yscale=scale)
        axes.locator_params(axis="x", nbins=6)
        axes.grid(which="both", color="#e6e6e6", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    right.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    data = io.BytesIO()
    canvas.print_png(data)
    return write_bytes(path, data.getvalue())


def _with_labels(grid: Array, across: list[tuple[float, str]], down: list[tuple[float, str]], heading: str) -> Array:
    """The grid with texts above it at the x and left of it at the y given, pixels of the grid."""
    Figure = import_extra("matplotlib.figure", "a picture with text").Figure
    FigureCanvasAgg = import_extra("matplotlib.backends.backend_agg", "a picture with text").FigureCanvasAgg
    h, w, _ = grid.shape
    figure = Figure(dpi=100)
    canvas: Any = FigureCanvasAgg(figure)
    size = max(10.0, w / len(across) / 12)  # points, so that it stays readable beside large images
    texts = [figure.text(0, 0, heading)] + [figure.text(0, 0, text) for _, text in [*across, *down]]
    for text in texts:
        text.set(fontsize=size, color=str(INK / 255), va="center", ha="center")
    extents = [text.get_window_extent(canvas.get_renderer()) for text in texts]
    top = int(max(e.height for e in extents) + size)
    left = int(max(e.width for e in extents[:1] + extents[1 + len(across) :]) + 2 * size)

    figure.set_size_inches((left + w) / 100, (top + h) / 100)
    places = [(left / 2, top / 2)]
    places += [(left + x, top / 2) for x, _ in across] + [(left / 2, top + y) for y, _ in down]
    for text, (x, y) in zip(texts, places, strict=True):
        text.set_position((x / (left + w), 1 - y / (top + h)))
    canvas.draw()
    page: Array = np.array(canvas.buffer_rgba())[..., :3]
    page[top:, left:] = grid
    return page


def _running_mean(x: Array) -> Array:
    """Mean over the K/20 values around each, over fewer at the ends."""
    window = np.ones(len(x) // 20 | 1)  # an odd number, so that it is centred
    total, count = (np.convolve(v, window, mode="same") for v in (x, np.ones(len(x))))
    return total / count


def _zoom(width: int, target: int) -> int:
    """The whole factor that brings a width nearest to the target, 1 at the least."""
    return max(1, round(target / width))


def _check_images(name: str, images: Array, ndim: int) -> None:
    """Finite floating images with the axes wanted, of one channel or three."""
    check_float(**{name: images})
    axes = {4: "(N, H, W, C)", 5: "(., ., H, W, C)"}[ndim]
    if images.ndim != ndim or images.shape[-1] not in (1, 3) or not images.size:
        raise ValueError(f"{name}: wanted {axes}, C = 1 or 3, not empty, got {images.shape}")
    check_finite(**{name: images})


def _check_losses(steps: Array, loss: Array, quarters: Array) -> None:
    """steps (K,) increasing, loss (K,) and quarters (K, 4), all finite."""
    k = np.size(steps)
    for name, x, shape in (("steps", steps, (k,)), ("loss", loss, (k,)), ("quarters", quarters, (k, 4))):
        if not k or np.shape(x) != shape:
            raise ValueError(f"{name}: wanted {shape} with K >= 1, got {np.shape(x)}")
        check_finite(**{name: np.asarray(x)})
    if (np.diff(steps) <= 0).any():
        raise ValueError("steps: wanted increasing steps, got some that are not")


def _what(array: object) -> str:
    """What came in place of an array, for an error."""
    return f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
