"""The Numba backend: `ddpm_ref.Backend` with compiled CPU kernels for float32.

    launch     what a kernel is, its threads, its place on disk, the guard against overruns
    simd       vectors of float32       tile     the inner loop of all matrix products

One rule for all operations: float32 arrays run the kernels, any other dtype NumPy's body. The shapes that a kernel does
not take (such as channels that do not fill vectors) go to NumPy's body too; the rule stands with each operation.
"""

from typing import Any

import numpy as np

from ddpm_ref.backend import Backend
from ddpm_ref.checks import Array
from ddpm_ref.nn.ops import Backward
from ddpm_ref_numba import attention, conv, dense, norm

__all__ = ["NumbaBackend"]


class NumbaBackend(Backend):
    """Kernels compiled at first use and kept on disk."""

    name = "numba"

    def __init__(self, threads: int | None = None) -> None:
        import os

        self.threads = threads or int(os.environ.get("OMP_NUM_THREADS", 0)) or len(os.sched_getaffinity(0))
        self._scratch: dict[str, Array] = {}

    def conv3x3(self, x: Array, W: Array, b: Array, *, stride: int = 1) -> tuple[Array, Backward]:
        """`ops.conv3x3`: Winograd F(4x4, 3x3)."""
        if x.dtype != np.float32:
            return super().conv3x3(x, W, b, stride=stride)
        return conv.conv3x3(self, x, W, b, stride)

    def dense(self, x: Array, W: Array, b: Array) -> tuple[Array, Backward]:
        """`ops.dense`; channels that do not fill vectors: NumPy's body."""
        if x.dtype != np.float32 or not dense.takes(x, W):
            return super().dense(x, W, b)
        return dense.dense(self, x, W, b)

    def group_norm(
        self, x: Array, gamma: Array, beta: Array, groups: int, *, silu: bool = False
    ) -> tuple[Array, Backward]:
        """`ops.group_norm`; channels that do not fill vectors: NumPy's body."""
        if x.dtype != np.float32 or not norm.takes(x, groups):
            return super().group_norm(x, gamma, beta, groups, silu=silu)
        return norm.group_norm(self, x, gamma, beta, groups, silu)

    def attention(self, q: Array, k: Array, v: Array) -> tuple[Array, Backward]:
        """`ops.attention`; channels or positions that do not fill vectors: NumPy's body."""
        if q.dtype != np.float32 or not attention.takes(q):
            return super().attention(q, k, v)
        return attention.attention(self, q, k, v)

    def zeros(self, size: int) -> Array:
        """A flat buffer of zeros that nobody writes."""
        return self.scratch("zeros", size)

    def scratch(self, name: str, size: int, dtype: Any = np.float32) -> Array:
        """A flat buffer of at least this size that the next call with this name takes again."""
        buffer = self._scratch.get(name)
        if buffer is None or len(buffer) < size:
            buffer = self._scratch[name] = np.zeros(size, dtype)
        return buffer
