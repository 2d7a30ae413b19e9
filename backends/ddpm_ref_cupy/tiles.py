"""Which convolutions run on tensor cores (`kernels/conv_tensor.cu`), and how they are cut into blocks.

The rule: precision tf32 or bf16, stride 1, a tile of pixels that fits the image (`tiling`); channels are padded with
zeros to whole chunks. All else (float64, fp32, stride 2) is a matrix product over gathered windows.
"""

from typing import NamedTuple

CHUNK = {"bf16": 32, "tf32": 16}
"""Channels of x at a time: 64 bytes of operands."""
EACH = {"bf16": 8, "tf32": 4}
"""Numbers in 16 bytes."""
EFFICIENCY = {(256, 128): 1.0, (128, 128): 1.0, (128, 64): 0.8, (64, 64): 0.65, (64, 32): 0.45}
"""(Pixels, channels) of a block, and the share of the best rate it reaches where all processors have enough of them."""
MOST_SHARED = 227 << 10  # bytes a block, of Hopper; other cards have 163 KB, or 99
GRADIENT_PIXELS = {"bf16": 128, "tf32": 64}
GRADIENT_WIDE = 64
GRADIENT_THREADS = 384


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
    """A convolution: kernel, grid, threads, bytes of shared memory, tiles; channels of a block, the kernel that packs
    the filters, and how many numbers these then are.  parts: numbers that a tile's blocks leave; 0: it takes none."""

    kernel: str
    grid: tuple[int, ...]
    threads: int
    shared: int
    tiling: Tiling
    wide: int
    pack: str
    filters: int
    parts: int


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


def blocks(
    n: int, h: int, w: int, c: int, d: int, precision: str, processors: int, limit: int = MOST_SHARED
) -> Blocks | None:
    """The fastest cut of a convolution from c to d channels, by `EFFICIENCY`; None if no tile fits the image, or the
    limit: bytes of shared memory."""
    found, least = None, float("inf")
    for (pixels, wide), efficiency in EFFICIENCY.items():
        threads = 256 if pixels == 256 else 128
        cut = tiling(n, h, w, pixels)
        if cut is None or 4 * cut.places > 12 * threads:  # as the kernel brings a chunk
            continue
        grid = (-(-d // wide), cut.count)
        cost = -(-grid[0] * grid[1] // processors) * pixels * wide / efficiency
        size = 2 if precision == "bf16" else 4
        ring = 4 * CHUNK[precision] * (wide + 8) * size
        shared = 2 * cut.places * 80 + ring + 4 * cut.places
        if cost < least and shared <= limit:
            names = (f"conv_tensor.{name}" for name in (f"{precision}_{pixels}x{wide}", f"pack_{precision}_filters"))
            filters = 9 * padded(c, precision) * -(-d // EACH[precision]) * EACH[precision]
            # Where tiles fill less than half of the processors, blocks share one, each with some of the chunks.
            total = grid[0] * grid[1]
            share = max(1, min(padded(c, precision) // CHUNK[precision], processors // total))
            parts = total * share * pixels * wide if share > 1 else 1
            found = Blocks(next(names), (*grid, share), threads, shared, cut, wide, next(names), filters, parts)
            least = cost
    return found


def gradient_blocks(
    n: int, h: int, w: int, c: int, d: int, precision: str, processors: int, limit: int = MOST_SHARED
) -> GradientBlocks | None:
    """Blocks of 64 x 64 channels, over as many parts of the pixels as fill the processors once; None as of `blocks`."""
    pixels = GRADIENT_PIXELS[precision]
    cut = tiling(n, h, w, pixels)
    if cut is None:
        return None
    across, down = -(-c // GRADIENT_WIDE), -(-d // GRADIENT_WIDE)
    parts = max(1, min(cut.count, processors // (across * down)))
    size = 2 if precision == "bf16" else 4
    rows = cut.places + pixels
    shared = 2 * rows * (GRADIENT_WIDE + 8) * size + 8 * rows + 4 * pixels
    if shared > limit or rows * GRADIENT_WIDE * size // 16 > 16 * GRADIENT_THREADS:  # as the kernel brings a tile
        return None
    return GradientBlocks(f"conv_tensor.{precision}_gradient", (across, down, parts), shared, cut)
