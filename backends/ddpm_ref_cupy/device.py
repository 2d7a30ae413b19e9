"""Where kernels run: what every file of this package asks of a device, and nothing of CuPy.

`cuda.CudaDevice` is the GPU. The tests have a device that runs the same kernel text on the CPU, so that each operation
here, its launch sizes included, can be held against NumPy on a machine without a GPU.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import numpy as np

from ddpm_ref.checks import Array
from ddpm_ref_cupy.arena import Recording

PRECISIONS = ("fp32", "tf32", "bf16")
"""What the operands of matrix products and convolutions of float32 arrays are rounded to; sums are float32 always."""


class Launch(NamedTuple):
    """One kernel launch. kernel: "file.name" of `kernels/file.cu`.  shared: bytes of dynamic shared memory.

    real: of the kernel's text, float32 or float64; or uint16: `real` is float32, and `stored` bfloat16.
    """

    kernel: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int = 0
    real: Any = np.float32


def real_of(dtype: Any) -> np.dtype:
    """What numbers of an array of this dtype are computed in: float32 where it is uint16, which holds bfloat16."""
    return np.dtype(np.float32 if dtype == np.uint16 else dtype)


class Device:
    """Arrays, launches and matrix products, in order, on one stream.

    kept: where filters and dense weights are kept as kernels take them, by their address, while nothing changes them;
    else None.
    enters_bf16: whether the next convolution is the first of a network whose images are to be stored as bfloat16.
    capability: the card's compute capability.  processors: its multiprocessors.  shared_limit: bytes of shared memory
    that a block may ask for.
    """

    precision = "fp32"
    kept: dict[Any, Array] | None = None
    enters_bf16 = False
    name = "a device"
    version = ""
    capability = (8, 0)
    processors = 132
    shared_limit = 227 << 10

    @contextmanager
    def whole_pass(self, kept: dict[Any, Array] | None = None) -> Iterator[None]:
        """A network's pass within a whole step: at precision bf16 its images are stored so, as uint16, from the first
        convolution on, if that gives eights of channels; all other operations give what they take.  kept: as the
        attribute."""
        before = self.kept, self.enters_bf16
        self.kept, self.enters_bf16 = kept, self.precision == "bf16"
        try:
            yield
        finally:
            self.kept, self.enters_bf16 = before

    def address(self, x: Array) -> int:
        """Where x's first element lies."""
        return int(x.ctypes.data)

    def write(self, x: Array, values: np.ndarray) -> None:
        """Host numbers into x. In what becomes a graph: once, before its first launch."""
        x[...] = values

    def holds(self, x: Array) -> bool:
        """Whether x is an array of this device."""
        return isinstance(x, np.ndarray)

    def memory(self) -> tuple[int, int]:
        """Bytes that are free for arrays, and of the whole device."""
        return 1 << 62, 1 << 62

    def forget(self) -> None:
        """Give back memory that is kept only for reuse."""

    def recording(self) -> AbstractContextManager[Recording]:
        """Within it, notes what is allocated and freed."""
        raise NotImplementedError

    def graph(self, work: Callable[[], None]) -> Callable[[], None]:
        """What does `work` each time it is called, on a GPU from the third time on by one launch of a CUDA graph.

        work: launches on this device, the same each time and on the same arrays; what changes from one time to the next
        it reads from arrays. It returns nothing, and waits for nothing.
        """
        return work

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """A new array with anything in it."""
        raise NotImplementedError

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """A new array of zeros."""
        raise NotImplementedError

    def contiguous(self, x: Array) -> Array:
        """x itself if it lies in C order from a multiple of 16 bytes on, as vector loads want it, else a copy."""
        raise NotImplementedError

    def launch(self, launch: Launch, *args: Any) -> None:
        """Run a kernel. args: this device's C-contiguous arrays, and NumPy scalars of exactly the parameters' types."""
        raise NotImplementedError

    def matmul(
        self, a: Array, b: Array, out: Array, *, trans_a: bool = False, trans_b: bool = False, add: bool = False
    ) -> Array:
        """out = op(a) op(b), or += with add; op transposes the last two axes where asked.

        a, b, out: C-contiguous, (M, K) (K, N) (M, N) after op, or the same with one leading batch axis; float32 (at the
        device's precision), float64, or a and b bfloat16 as uint16 with out float32 or that too.  Returns out.
        """
        raise NotImplementedError

    def to_device(self, x: Array) -> Array:
        """A host array as this device's array."""
        raise NotImplementedError

    def to_host(self, x: Array) -> np.ndarray:
        """This device's array as a NumPy array."""
        raise NotImplementedError
