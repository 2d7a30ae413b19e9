"""Arrays between guard zones, NaN when new."""

import math
from typing import Any

import numpy as np

from ddpm_ref.checks import Array

ZONE = 1024  # bytes on either side
PATTERN = 0xFFF5B5B5  # NaN as float32, as float64 and in one of two bfloat16: what reads it shows, too


class _Bytes(np.ndarray):
    """Memory of its own: what every view of a guarded array has as its base. The zones lie before and behind it."""

    first: int
    size_inside: int

    def intact(self) -> bool:
        """Whether nothing wrote into the zones, nor into the padding to a multiple of 4 bytes."""
        end = self.first + self.size_inside
        behind = self.first + -(-self.size_inside // 4) * 4
        zones = self[self.first - ZONE : self.first], self[behind : behind + ZONE]
        return bool((self[end:behind] == 0xFF).all()) and all((z.view(np.uint32) == PATTERN).all() for z in zones)


def guarded(shape: tuple[int, ...], dtype: Any) -> Array:
    """An array of NaN bits at a multiple of 256 bytes, where CUDA's begin too."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    words = -(-size // 4)
    owner = _Bytes(4 * words + 2 * ZONE + 256, np.uint8)
    owner.first = ZONE + (-owner.ctypes.data - ZONE) % 256
    owner.size_inside = size
    owner[owner.first - ZONE :][: 4 * words + 2 * ZONE].view(np.uint32)[:] = PATTERN
    owner[owner.first :][: 4 * words] = 0xFF
    return np.ndarray(shape, dtype, buffer=owner, offset=owner.first)


def check_guard(name: str, x: Array) -> None:
    """RuntimeError if something wrote beside x, where x or what it is a view of came from `guarded`."""
    base: Any = x
    while isinstance(base, np.ndarray) and not isinstance(base, _Bytes):
        base = base.base
    if isinstance(base, _Bytes) and not base.intact():
        raise RuntimeError(f"{name}: written outside of its {base.size_inside} bytes")
