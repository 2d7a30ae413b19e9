"""The shape of the paper's U-Net as data: its configuration, the presets, and the plan (App. B).

The plan is the network as one list, read from top to bottom, from its first convolution on; `UNet` adds the embedding
of t (temb) before it and the output layers after. Each piece has its name (the released code's) and its widths.

    conv       the first convolution
    block      GroupNorm, SiLU, conv3x3, + Dense(SiLU(temb)), GroupNorm, SiLU, dropout, conv3x3; + the input,
               through a 1x1 convolution if widths differ
    attention  GroupNorm, q k v (1x1), softmax attention over all positions, 1x1; + the input
    down, up   conv3x3 of stride 2; nearest-neighbour ×2 and conv3x3
    push, pop  keep a copy for the other side of the U; concatenate it behind the channels
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from ddpm_ref.checks import check_int


@dataclass(frozen=True)
class UNetConfig:
    """The shape of a U-Net; the defaults are the paper's for CIFAR-10.

    channels: of the images.  base: width of the first level.  mult: width of each level in units of base, one entry a
    level, each level half the size of the one before.  blocks: residual blocks a level on the way down; one more on
    the way up.  attention_levels: those with attention after each block, from 0 (level 1 of 32x32 images is 16x16);
    the middle always has it.  groups: of every GroupNorm, must divide every width.  dropout: rate, in training only.
    learned_variance: as many output channels again, for log σ_t².
    image_size: what the preset is meant for; the network itself takes any H, W divisible by 2^(levels - 1).
    """

    channels: int = 3
    base: int = 128
    mult: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 2
    attention_levels: tuple[int, ...] = (1,)
    groups: int = 32
    dropout: float = 0.1
    learned_variance: bool = False
    image_size: int = 32

    def __post_init__(self) -> None:
        object.__setattr__(self, "mult", tuple(self.mult))
        object.__setattr__(self, "attention_levels", tuple(self.attention_levels))
        for name in ("channels", "blocks", "groups", "image_size"):
            check_int(name, getattr(self, name), 1)
        check_int("base", self.base, 2)
        if not self.mult:
            raise ValueError("mult: wanted at least one level, got none")
        for m in self.mult:
            check_int("mult", m, 1)
        for level in self.attention_levels:
            check_int("attention_levels", level, 0, len(self.mult) - 1)
        if any(self.base * m % self.groups for m in (1, *self.mult)):
            raise ValueError(
                f"groups: wanted a divisor of every width {[self.base * m for m in (1, *self.mult)]}, got {self.groups}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: wanted a rate in [0, 1), got {self.dropout}")

    @property
    def factor(self) -> int:
        """By how much the lowest level is smaller: H and W must be divisible by it."""
        return int(2 ** (len(self.mult) - 1))

    @property
    def out_channels(self) -> int:
        """Channels of the output: those of the images, twice with learned variances."""
        return self.channels * (2 if self.learned_variance else 1)


PRESETS: dict[str, UNetConfig] = {
    "digits": UNetConfig(1, 16, (1, 2), 1, (1,), groups=8, dropout=0.0, image_size=8),
    "mnist": UNetConfig(1, 32, (1, 2, 2), 2, (2,), groups=8, dropout=0.0, image_size=32),
    "cifar10": UNetConfig(),
    "celebahq256": UNetConfig(mult=(1, 1, 2, 2, 4, 4), attention_levels=(4,), dropout=0.0, image_size=256),
}
"""Networks by name; `cifar10` (35,746,307 parameters) and `celebahq256` (113,673,219) are the paper's."""


def preset(name: str, **changes: object) -> UNetConfig:
    """A preset by name, with some fields changed: `preset("cifar10", learned_variance=True)`."""
    if name not in PRESETS:
        raise ValueError(f"preset: wanted one of {', '.join(PRESETS)}, got {name!r}")
    return replace(PRESETS[name], **changes)  # type: ignore[arg-type]


class Piece(NamedTuple):
    """One line of the plan; a push has no widths, a pop those before and after it concatenates."""

    kind: str
    name: str
    c_in: int = 0
    c_out: int = 0


def make_plan(cfg: UNetConfig) -> Iterator[Piece]:
    """Every piece in order, with its input and output width."""
    widths = [cfg.base * m for m in cfg.mult]
    levels = range(len(widths))
    c = cfg.base
    kept = [c]
    yield Piece("conv", "conv_in", cfg.channels, c)
    yield Piece("push", "conv_in")
    for i in levels:
        for j in range(cfg.blocks):
            yield Piece("block", f"down_{i}/block_{j}", c, widths[i])
            c = widths[i]
            if i in cfg.attention_levels:
                yield Piece("attention", f"down_{i}/attn_{j}", c, c)
            yield Piece("push", f"down_{i}/block_{j}")
            kept.append(c)
        if i != levels[-1]:
            yield Piece("down", f"down_{i}/downsample", c, c)
            yield Piece("push", f"down_{i}/downsample")
            kept.append(c)
    yield Piece("block", "mid/block_1", c, c)
    yield Piece("attention", "mid/attn_1", c, c)
    yield Piece("block", "mid/block_2", c, c)
    for i in reversed(levels):
        for j in range(cfg.blocks + 1):
            yield Piece("pop", f"up_{i}/block_{j}", c, c + kept[-1])
            yield Piece("block", f"up_{i}/block_{j}", c + kept.pop(), widths[i])
            c = widths[i]
            if i in cfg.attention_levels:
                yield Piece("attention", f"up_{i}/attn_{j}", c, c)
        if i:
            yield Piece("up", f"up_{i}/upsample", c, c)


def piece_shapes(piece: Piece, cfg: UNetConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a piece's parameters."""
    kind, name, c, d = piece

    def norm(layer: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from ((f"{layer}/gamma", (width,)), (f"{layer}/beta", (width,)))

    def linear(layer: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from ((f"{layer}/W", shape), (f"{layer}/b", shape[-1:]))

    time = 4 * cfg.base
    if kind == "temb":
        yield from linear(f"{name}/dense0", cfg.base, time)
        yield from linear(f"{name}/dense1", time, time)
    elif kind == "conv":
        yield from linear(name, 3, 3, c, d)
    elif kind == "block":
        yield from norm(f"{name}/norm1", c)
        yield from linear(f"{name}/conv1", 3, 3, c, d)
        yield from linear(f"{name}/temb_proj", time, d)
        yield from norm(f"{name}/norm2", d)
        yield from linear(f"{name}/conv2", 3, 3, d, d)
        if c != d:
            yield from linear(f"{name}/nin_shortcut", c, d)
    elif kind == "attention":
        yield from norm(f"{name}/norm", c)
        for layer in ("q", "k", "v", "proj_out"):
            yield from linear(f"{name}/{layer}", c, c)
    elif kind in ("down", "up"):
        yield from linear(f"{name}/conv", 3, 3, c, d)
    elif kind == "out":
        yield from norm("norm_out", c)
        yield from linear("conv_out", 3, 3, c, d)
