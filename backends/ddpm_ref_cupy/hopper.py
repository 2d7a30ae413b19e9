"""Which convolutions run by Hopper's warpgroup products (`kernels/conv_hopper.cu`), and how they are cut into blocks.

The rule: precision tf32 or bf16, stride 1, a card of compute capability 9.0, 32 channels or more of each, D even, and
patches of 8 x 8 pixels that are at least half full.
"""

import numpy as np

from ddpm_ref_cupy.device import Launch
from ddpm_ref_cupy.tiles import EACH, Blocks, GradientBlocks, Tiling

CAPABILITY = (9, 0)
EFFICIENCY = {(256, 128): 1.0, (128, 128): 0.8, (256, 64): 0.75, (128, 64): 0.55}
"""(Pixels, channels) of a block, and the share of the best rate it reaches."""
THREADS = 256
RING = 6
SHARED = 227 << 10  # bytes of a processor; registers allow as many blocks
LEAST = 32


def tiling(n: int, h: int, w: int, pixels: int) -> Tiling | None:
    """Tiles of this many pixels in patches of 8 x 8; None if patches fill less than half of them."""
    if h <= 8 and w <= 8 and n > 1:
        cut = Tiling(pixels // 64, 8, 8, -(-n // (pixels // 64)))
    else:
        shapes = [(rows, pixels // rows) for rows in (16, 8, 32) if pixels // rows >= 8]
        rows, columns = min(shapes, key=lambda s: -(-h // s[0]) * -(-w // s[1]))
        cut = Tiling(1, rows, columns, n * -(-h // rows) * -(-w // columns))
    return cut if 2 * n * h * w >= cut.count * pixels else None


def blocks(n: int, h: int, w: int, c: int, d: int, precision: str, processors: int) -> Blocks | None:
    """The fastest cut of a convolution from c to d channels, by `EFFICIENCY`; None where the rule says no."""
    if d % 2 or min(c, d) < LEAST:
        return None
    found, least = None, float("inf")
    for (pixels, wide), efficiency in EFFICIENCY.items():
        cut = tiling(n, h, w, pixels)
        if cut is None or cut.places > 2 * pixels:  # as the kernel brings a chunk
            continue
        total = cut.count * -(-d // wide)
        cost = -(-total // processors) * pixels * wide / efficiency
        if cost < least:
            pitch = (cut.places + 6) // 8 * 8 + 1
            shared = RING * 8 * wide * 16 + 2 * 8 * pitch * 16 + 2 * cut.places * 4
            names = (f"conv_hopper.{name}" for name in (f"{precision}_{pixels}x{wide}", f"pack_{precision}_filters"))
            chunk = 8 * EACH[precision]
            filters = -(-d // wide) * wide * -(-c // chunk) * chunk * 9
            grid = (min(total, processors * max(1, SHARED // shared)),)
            found, least = Blocks(next(names), grid, THREADS, shared, cut, wide, next(names), filters, 0), cost
    return found


def normalises(cut: Blocks, kind: np.dtype) -> bool:
    """Whether the cut's kernel may normalise x as it reads it: those of bf16 that give bfloat16."""
    return cut.kernel.startswith("conv_hopper.bf16_") and kind == np.uint16


def normalising(launch: Launch, tiling: Tiling) -> Launch:
    """The launch of the kernel that does, with room for two factors a channel of two chunks for each image."""
    shared = launch.shared + 4 * tiling.images * 8 * EACH["bf16"] * 4
    return launch._replace(kernel=launch.kernel.replace(".bf16_", ".norm_"), shared=shared)


def gradient_blocks(n: int, h: int, w: int, c: int, d: int, precision: str, processors: int) -> GradientBlocks | None:
    """Blocks of 64 x 64 channels, over as many parts of the pixels as fill the processors once; bf16 alone.

    The tensor cores take tf32 only with numbers of neighbouring K, here pixels, side by side.
    """
    cut = tiling(n, h, w, 256)
    if precision != "bf16" or c % 8 or d % 8 or min(c, d) < LEAST or cut is None:
        return None
    across, down = -(-c // 64), -(-d // 64)
    parts = max(1, min(cut.count, processors // (across * down)))
    pitch, rows = (cut.places + 6) // 8 * 8 + 1, cut.places + 256
    return GradientBlocks(
        "conv_hopper.bf16_gradient", (across, down, parts), 2 * 128 * (pitch + 257) + 8 * rows + 32, cut
    )
