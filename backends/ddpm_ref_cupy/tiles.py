"""Which convolutions run on tensor cores (`kernels/conv_tensor.cu`), and how they are cut into blocks.

The rule: float32 arrays at precision tf32 or bf16, stride 1, and a tile of pixels that fits the image (`tiling`);
channels are padded with zeros to whole chunks. All else (float64, fp32, stride 2) is a matrix product over gathered
windows.
"""

from typing import NamedTuple

CHUNK = {"bf16": 32, "tf32": 16}
"""Channels of x at a time: 64 bytes of operands."""
EFFICIENCY = {(256, 128): 1.0, (128, 128): 1.0, (128, 64): 0.8, (64, 64): 0.65, (64, 32): 0.45}
"""(Pixels, channels) of a block, and the share of the best rate it reaches where all processors have enough of them."""
GRADIENT_PIXELS = {"bf16": 128, "tf32": 64}
GRADIENT_WIDE = 64
GRADIENT_THREADS = 384


WHOLE_PIXELS = 256
"""Pixels of a tile of wgmma's kernels, in squares of 8 x 8."""
WHOLE_CHUNK = 64


class Tiling(NamedTuple):
    """A tile of pixels: whole images, or rows x columns of one. count: tiles of the batch."""

    images: int
    rows: int
    columns: int
    count: int

    @property
    def places(self) -> int:
        """Pixels of a tile with its rim."""
        return self.images * (self.rows + 2) * (self.columns + 2)


class Blocks(NamedTuple):
    """A forward convolution: kernel, grid, threads, bytes of shared memory, tiles."""

    kernel: str
    grid: tuple[int, int]
    threads: int
    shared: int
    tiling: Tiling


class GradientBlocks(NamedTuple):
    """A filter gradient: kernel, grid (of which the last axis is the parts that are added up), shared memory, tiles."""

    kernel: str
    grid: tuple[int, int, int]
    shared: int
    tiling: Tiling


def tiling(n: int, h: int, w: int, pixels: int) -> Tiling | None:
    """Tiles of exactly this many pixels, that stick out of larger images as little as can be; None if mostly empty."""
    if pixels % (h * w) == 0:
        return Tiling(pixels // (h * w), h, w, -(-n * h * w // pixels))
    if 2 * h * w < pixels:
        return None
    cuts = [(pixels // q, q) for q in (32, 16, 8) if pixels // q >= 2]
    rows, columns = min(cuts, key=lambda cut: -(-h // cut[0]) * -(-w // cut[1]))
    return Tiling(1, rows, columns, n * -(-h // rows) * -(-w // columns))


def padded(channels: int, precision: str) -> int:
    """Channels filled up to whole chunks."""
    return -(-channels // CHUNK[precision]) * CHUNK[precision]


def blocks(n: int, h: int, w: int, c: int, d: int, precision: str, processors: int) -> Blocks | None:
    """The fastest cut of a convolution from c to d channels, by `EFFICIENCY`; None if no tile fits the image."""
    found, least = None, float("inf")
    for (pixels, wide), efficiency in EFFICIENCY.items():
        threads = 256 if pixels == 256 else 128
        cut = tiling(n, h, w, pixels)
        if (
            cut is None or 4 * cut.places > 9 * threads
        ):  # the kernel reads a ninth of a chunk at a time, 16 bytes a thread
            continue
        grid = (-(-d // wide), cut.count)
        cost = -(-grid[0] * grid[1] // processors) * pixels * wide / efficiency
        if cost < least:
            size = 2 if precision == "bf16" else 4
            ring = 4 * CHUNK[precision] * (wide + 8) * size
            shared = 2 * cut.places * 80 + ring + 4 * cut.places
            found = Blocks(f"conv_tensor.{precision}_{pixels}x{wide}", grid, threads, shared, cut)
            least = cost
    return found


def gradient_blocks(n: int, h: int, w: int, c: int, d: int, precision: str, processors: int) -> GradientBlocks | None:
    """Blocks of 64 x 64 channels, over as many parts of the pixels as fill the processors once."""
    pixels = GRADIENT_PIXELS[precision]
    cut = tiling(n, h, w, pixels)
    if cut is None:
        return None
    across, down = -(-c // GRADIENT_WIDE), -(-d // GRADIENT_WIDE)
    parts = max(1, min(cut.count, processors // (across * down)))
    size = 2 if precision == "bf16" else 4
    rows = cut.places + pixels
    shared = 2 * rows * (GRADIENT_WIDE + 8) * size + 8 * rows + 4 * pixels
    return GradientBlocks(f"conv_tensor.{precision}_gradient", (across, down, parts), shared, cut)


# --- wgmma, on cards of compute capability 9.0 -----------------------------------------------------------------------


class Whole(NamedTuple):
    """A convolution by `kernels/conv_wgmma.cu`: kernels, grids and shared memory, forward and of the filter gradient."""

    forward: str
    grid: tuple[int, int]
    shared: int
    gradient_grid: tuple[int, int, int]
    gradient_shared: int
    tiling: Tiling
    pitch: int


def whole(n: int, h: int, w: int, c: int, d: int, processors: int) -> Whole | None:
    """From c to d channels in bf16; None where 256 pixels are not squares of 8 x 8 or too few blocks fill the card."""
    if c % WHOLE_CHUNK or d % 64:
        return None
    if (h, w) == (8, 8):
        cut = Tiling(4, 8, 8, -(-n // 4))
    elif h >= 16 and w >= 16:
        rows, columns = min(((8, 32), (16, 16)), key=lambda cut: -(-h // cut[0]) * -(-w // cut[1]))
        cut = Tiling(1, rows, columns, n * -(-h // rows) * -(-w // columns))
    else:
        return None
    wide = 128 if d % 128 == 0 and -(-d // 128) * cut.count >= processors else 64
    if d // wide * cut.count < processors // 2:
        return None
    pitch = cut.places + (1 - cut.places) % 8
    shared = 2 * 8 * pitch * 16 + 4 * WHOLE_CHUNK * wide * 2 + 4 * cut.places
    across, down = c // 64, d // 64
    parts = max(1, min(cut.count, processors // (across * down)))
    gradient = 2 * 8 * (pitch + WHOLE_PIXELS + 1) * 16 + 8 * (cut.places + WHOLE_PIXELS)
    grid = (d // wide, cut.count)
    return Whole(f"conv_wgmma.whole_256x{wide}", grid, shared, (across, down, parts), gradient, cut, pitch)
