"""Scratch memory that is used again: named buffers for what an operation needs only while it runs."""

import threading
from typing import Any

import numpy as np

from ddpm_ref.checks import Array, check_int

FLOAT32 = np.dtype(np.float32)


class _Buffers(threading.local):
    """Name and dtype -> buffer, of the thread that asks: each has buffers of its own, which go when it ends."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, Any], Array] = {}


class Workspace:
    """Named 1-D buffers that only grow: `take` hands out the same memory call after call, its contents undefined.

    For scratch inside one operation, never for a result: the next call with the same name writes over it. Results are
    ordinary new arrays, and cheap ones, since `memory.keep_freed_memory` has malloc keep what was freed.
    Threads share no buffer, so that one workspace serves them all; `empty` makes a buffer (a device backend passes its
    own).
    """

    def __init__(self, empty: Any = np.empty) -> None:
        self._empty = empty
        self._buffers = _Buffers()

    def take(self, name: str, size: int, dtype: Any = FLOAT32) -> Array:
        """`size` numbers of this dtype, as last left by whoever took this name and dtype before."""
        dtype = dtype if isinstance(dtype, np.dtype) else np.dtype(dtype)
        key, held = (name, dtype), self._buffers.held
        buffer = held.get(key)
        if buffer is None or not 0 <= size <= len(buffer):
            check_int("size", size, 0)
            held.pop(key, None)  # freed before the larger one is made
            buffer = held[key] = self._empty(size, dtype)
        return buffer[:size]

    @property
    def nbytes(self) -> int:
        """Bytes held for this thread."""
        return sum(int(buffer.nbytes) for buffer in self._buffers.held.values())
