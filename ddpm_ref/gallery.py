"""What a run shows: its samples, how they came about, and how noise takes an image apart (Figures 2, 6)."""

from pathlib import Path

import numpy as np

from ddpm_ref import pictures
from ddpm_ref.checks import Array
from ddpm_ref.files.atomic import replacing
from ddpm_ref.files.data import to_bytes
from ddpm_ref.forward import q_sample
from ddpm_ref.random import Purpose, normal
from ddpm_ref.schedule import Schedule
from ddpm_ref.train import Images

GIF_FRAMES, GIF_IMAGES, STRIP_STEPS, STRIP_IMAGES = 40, 100, 10, 4


class Watch:
    """Collects what the strip and the animation show of the first batch."""

    def __init__(self, T: int) -> None:
        self.strip_steps = sorted({round(T * i / STRIP_STEPS) for i in range(STRIP_STEPS + 1)}, reverse=True)
        self.gif_steps = {round(T * i / GIF_FRAMES) for i in range(GIF_FRAMES + 1)}
        self.strip: list[tuple[Array, Array]] = []
        self.frames: list[Array] = []

    def wants(self, t: int) -> bool:
        """Whether it shows anything of step t."""
        return t in self.strip_steps or t in self.gif_steps

    def __call__(self, t: int, x_t: Array, x_0: Array) -> None:
        if t in self.strip_steps:
            self.strip.append((_shown(x_t[:STRIP_IMAGES]).copy(), _shown(x_0[:STRIP_IMAGES]).copy()))
        if t in self.gif_steps:
            self.frames.append(_shown(x_t[:GIF_IMAGES]).copy())

    def save(self, folder: Path) -> list[Path]:
        """denoising.png: for a few images a row of x_t and one of x̂_0; denoising.gif: x_t of all."""
        rows = np.stack([np.stack(pair) for pair in self.strip])  # (K, 2, R, H, W, C)
        rows = rows.transpose(2, 1, 0, 3, 4, 5).reshape(-1, len(self.strip), *rows.shape[3:])
        labels = [r"$x_t$", r"$\hat{x}_0$"] * (len(rows) // 2)
        return [
            pictures.save_strip(folder / "denoising.png", rows, self.strip_steps, labels),
            pictures.save_gif(folder / "denoising.gif", np.stack(self.frames)),
        ]


def noising_strip(schedule: Schedule, images: Images, folder: Path) -> Path:
    """noising.png: the forward process on a few training images, one noise ε each (Eq. 4)."""
    steps = Watch(schedule.T).strip_steps[::-1]
    x_0 = _shown(images.x_0(np.arange(min(STRIP_IMAGES, len(images))), np.float32))
    eps = normal(0, Purpose.EVALUATE, 0, np.arange(len(x_0)), x_0.shape[1:])
    columns = [q_sample(schedule, x_0, t, eps) if t else x_0 for t in steps]
    return pictures.save_strip(folder / "noising.png", np.stack(columns, axis=1), steps)


def save_samples(folder: Path, images: Array) -> list[Path]:
    """samples.npz, uint8 0..255 (N, H, W, C) under "images", and samples.png, a grid of the first 100."""
    with replacing(folder / "samples.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, images=to_bytes(images))
    return [folder / "samples.npz", pictures.save_grid(folder / "samples.png", _shown(images[:100]))]


def _shown(images: Array) -> Array:
    """The images as a picture can show them: of channel counts other than 1 and 3, the first channel."""
    return images if images.shape[-1] in (1, 3) else images[..., :1]
