"""The Numba backend: `ddpm_ref.Backend` with compiled CPU kernels for float32.

    launch              what a kernel is, its threads, its place on disk, the guard against overruns
    simd, simd_int      vectors of float32 and of 32-bit integers       tile, matmul   all matrix products
    transforms, winograd, conv      3x3 convolution        dense, attention, norm, pointwise       the other operations
    noise, update       the counted random numbers, bit for bit; clipping, Adam and EMA in one pass

One rule for all operations: arrays that are all float32, not empty and of shapes that fit together run the kernels,
anything else NumPy's body, which computes it or says what is wrong. Shapes that a kernel does not take (GroupNorm and
upsampling: channels that do not fill vectors) go to NumPy's body too; the rule stands with each operation.
"""

import os

import numpy as np

try:
    import numba
except ModuleNotFoundError as error:
    raise ImportError('the numba backend needs Numba: pip install "ddpm-ref[numba]"') from error

if tuple(map(int, numba.__version__.split(".")[:2])) < (0, 62):
    raise ImportError(f"the numba backend needs Numba 0.62 or newer, here is {numba.__version__}: pip install -U numba")

from ddpm_ref.backend import Backend
from ddpm_ref.checks import Array, Steps
from ddpm_ref.nn.ops import Backward
from ddpm_ref.nn.optim import AdamSettings
from ddpm_ref.random import Purpose
from ddpm_ref.schedule import Schedule, Table
from ddpm_ref.workspace import FLOAT32
from ddpm_ref_numba import attention, conv, dense, launch, noise, norm, pointwise, update
from ddpm_ref_numba.simd import WIDTH

__all__ = ["NumbaBackend"]


def default_threads() -> int:
    """NUMBA_NUM_THREADS or OMP_NUM_THREADS if set, else the cores this process may run on."""
    for variable in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
        given = os.environ.get(variable, "")
        if given.isdecimal() and int(given):
            return int(given)
    return int(numba.config.NUMBA_DEFAULT_NUM_THREADS)


class NumbaBackend(Backend):
    """Kernels compiled at first use and kept on disk.

    threads: those of the environment (`default_threads`) unless given. Results repeat bit for bit for a given number.
    Raises ImportError where Numba may not compile or cannot spread work over threads.
    """

    name = "numba"
    version = f"Numba {numba.__version__}"
    note = "float32; other dtypes, and channels that do not fill vectors, run NumPy's bodies"

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None and (type(threads) is not int or threads < 1):
            raise ValueError(f"threads: wanted an integer >= 1, got {threads!r}")
        self.threads = threads or default_threads()
        launch.check_numba(self.threads)
        self._zeros: Array = np.zeros(0, np.float32)

    def conv3x3(
        self, x: Array, W: Array, b: Array, *, stride: int = 1, plus: Array | None = None
    ) -> tuple[Array, Backward]:
        """`ops.conv3x3`: Winograd F(4x4, 3x3), whose limits stand in `conv`."""
        if not conv.takes(x, W, b, stride, plus):
            return super().conv3x3(x, W, b, stride=stride, plus=plus)
        return conv.conv3x3(self, x, W, b, stride, plus)

    def dense(self, x: Array, W: Array, b: Array, *, plus: Array | None = None) -> tuple[Array, Backward]:
        """`ops.dense`."""
        if not dense.takes(x, W, b, plus):
            return super().dense(x, W, b, plus=plus)
        return dense.dense(self, x, W, b, plus)

    def group_norm(
        self, x: Array, gamma: Array, beta: Array, groups: int, *, silu: bool = False
    ) -> tuple[Array, Backward]:
        """`ops.group_norm`; channels that do not fill vectors: NumPy's body."""
        if not norm.takes(x, gamma, beta, groups):
            return super().group_norm(x, gamma, beta, groups, silu=silu)
        return norm.group_norm(self, x, gamma, beta, groups, silu)

    def attention(self, q: Array, k: Array, v: Array) -> tuple[Array, Backward]:
        """`ops.attention`."""
        if not attention.takes(q, k, v):
            return super().attention(q, k, v)
        return attention.attention(self, q, k, v)

    def zeros(self, size: int) -> Array:
        """Zeros that nobody writes."""
        zeros = self._zeros  # looked up once: another thread may put a shorter one in its place
        if size > len(zeros):
            zeros = self._zeros = np.zeros(size, np.float32)
        return zeros

    def scratch(self, name: str, size: int) -> Array:
        """Memory for one operation, as the call before left it."""
        return self.workspace.take(name, size)

    def upsample(self, x: Array) -> tuple[Array, Backward]:
        """`ops.upsample`; channels that do not fill vectors: NumPy's body."""
        if x.dtype != FLOAT32 or x.ndim != 4 or x.shape[3] % WIDTH or not x.size:
            return super().upsample(x)
        return pointwise.upsample(self, x)

    def dropout(self, x: Array, uniform: Array, rate: float) -> tuple[Array, Backward]:
        """`ops.dropout`, the same bits."""
        if not (x.dtype == uniform.dtype == FLOAT32 and x.shape == uniform.shape != () and x.size and rate < 1):
            return super().dropout(x, uniform, rate)
        return pointwise.dropout(self, x, uniform, rate)

    def concat(self, a: Array, b: Array) -> tuple[Array, Backward]:
        """`ops.concat`; the adjoint's parts are contiguous."""
        if not (a.dtype == b.dtype == FLOAT32 and a.ndim == b.ndim == 4 and a.shape[:3] == b.shape[:3] and a.size):
            return super().concat(a, b)
        return pointwise.concat(self, a, b)

    def add(self, a: Array, b: Array) -> tuple[Array, Backward]:
        """`ops.add`; a few numbers: NumPy's body, which has them added before a kernel has begun."""
        if not (a.size >= pointwise.SMALL and a.dtype == b.dtype == FLOAT32 and a.shape == b.shape):
            return super().add(a, b)
        return pointwise.add(self, a, b)

    def normal(
        self, seed: int, purpose: Purpose, step: int, samples: Array, shape: tuple[int, ...], *, layer: int = 0
    ) -> Array:
        """`random.normal`, the same bits."""
        return noise.normal(self, seed, purpose, step, samples, shape, layer=layer)

    def uniform(
        self, seed: int, purpose: Purpose, step: int, samples: Array, shape: tuple[int, ...], *, layer: int = 0
    ) -> Array:
        """`random.uniform`, the same bits."""
        return noise.uniform(self, seed, purpose, step, samples, shape, layer=layer)

    def q_sample(
        self, schedule: Schedule, x_0: Array, t: Steps, seed: int, step: int, samples: Array
    ) -> tuple[Array, Array]:
        """Eq. 4 with its noise, the same bits."""
        if x_0.dtype != FLOAT32 or not x_0.ndim:
            return super().q_sample(schedule, x_0, t, seed, step, samples)
        return noise.q_sample(self, schedule, x_0, t, seed, step, samples)

    def p_sample(
        self,
        schedule: Schedule,
        x_t: Array,
        t: int,
        output: Array,
        seed: int,
        samples: Array,
        *,
        predicts: str = "eps",
        var: str | Table = "beta",
        clip: bool = False,
        temperature: float = 1.0,
    ) -> tuple[Array, Array]:
        """Algorithm 2, line 4, with its noise, the same bits; other than ε and a fixed variance: NumPy's body."""
        kinds = dict(var=var, clip=clip, temperature=temperature)
        if not noise.takes(x_t, t, output, predicts, var):
            return super().p_sample(schedule, x_t, t, output, seed, samples, predicts=predicts, **kinds)
        return noise.p_sample(self, schedule, x_t, t, output, seed, samples, **kinds)

    def update(
        self, params: Array, grads: Array, m: Array, v: Array, ema: Array, step: int, settings: AdamSettings
    ) -> float:
        """`optim.update` in one pass; vectors that are not plain memory (mapped files, say): NumPy's body."""
        if not update.takes(params, grads, m, v, ema):
            return super().update(params, grads, m, v, ema, step, settings)
        return update.update(self, params, grads, m, v, ema, step, settings)
