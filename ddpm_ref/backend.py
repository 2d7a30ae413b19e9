"""The contract between the program and what runs it: one class, whose NumPy bodies are the meaning of every hot loop.

A backend subclasses `Backend` and overrides whole operations, never half of one: an operation returns its output and
its adjoint together. Everything else in the project is written once, over any array type.
"""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ddpm_ref import forward, random, reverse
from ddpm_ref.blas import blas_threads, limit_blas
from ddpm_ref.checks import Array, Steps, check_int
from ddpm_ref.nn import ops, optim
from ddpm_ref.nn.ops import Backward
from ddpm_ref.random import Purpose
from ddpm_ref.schedule import Schedule, Table
from ddpm_ref.workspace import Workspace

if TYPE_CHECKING:
    from ddpm_ref.train import StepReport, Trainer

OPERATIONS = (
    "conv3x3", "dense", "group_norm", "attention", "upsample", "concat", "add", "dropout", "update", "normal",
    "uniform", "q_sample", "p_sample",
)  # fmt: skip
"""What a backend may override, each as a whole; with `to_device` and `to_host` where its arrays are not NumPy's."""


class Description(NamedTuple):
    """What runs the hot loops. own, inherited: the operations that are the backend's, and those that are NumPy's."""

    name: str
    version: str
    threads: int
    device: str
    own: tuple[str, ...]
    inherited: tuple[str, ...]
    note: str

    def __str__(self) -> str:
        return f"{self.name} ({self.version}; {self.threads} thread{'s'[: self.threads != 1]} on {self.device})"


class Backend:
    """The NumPy backend, and the base of all others. Shapes and equations stand with the functions it calls.

    threads: how many to use; those of the environment, or one a core, unless given. NumPy's own, which are its BLAS's,
    are set for the whole process.

    A subclass gives a name, a version, perhaps a note for the listing, and the operations it has a faster way for. It
    keeps to this: inputs are read-only, results are new arrays of the inputs' dtype (what the adjoints of `concat` and
    `add` return may be dy or views of it) and the same bits for the same call with the same number of threads. An
    adjoint may be called any number of times, whatever was called in between, as long as the forward's inputs are what
    they were. Where there is a `plus`, of a result's shape and dtype, the result is that of the operation followed by
    `add`; the adjoints of `dense` and `group_norm` take one for dx: `backward(dy, plus=None)`. A NaN in an image shows
    in the results of that image, in all that depends on it, and in no other image's. `ddpm_ref.check_backend` holds it
    to that.
    """

    name = "numpy"
    version = f"NumPy {np.__version__}"
    device = "CPU"
    note = ""
    threads: int | None = None
    precision: str | None = None  # of its matrix products, where it has more than one

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None:
            check_int("threads", threads, 1)
            limit_blas(threads)
            self.threads = threads

    def describe(self) -> Description:
        """Name, version, threads, device, and which operations are this class's own."""
        own = tuple(name for name in OPERATIONS if getattr(type(self), name) is not getattr(Backend, name))
        inherited = tuple(name for name in OPERATIONS if name not in own)
        threads = self.threads or blas_threads()
        return Description(self.name, self.version, threads, self.device, own, inherited, self.note)

    @cached_property
    def workspace(self) -> Workspace:
        """Scratch memory for this backend's operations."""
        return Workspace()

    def conv3x3(
        self, x: Array, W: Array, b: Array, *, stride: int = 1, plus: Array | None = None
    ) -> tuple[Array, Backward]:
        """`ops.conv3x3`: (N, H, W, C) -> (N, ⌈H/stride⌉, ⌈W/stride⌉, D), + plus."""
        return ops.conv3x3(x, W, b, stride=stride, plus=plus)

    def dense(self, x: Array, W: Array, b: Array, *, plus: Array | None = None) -> tuple[Array, Backward]:
        """`ops.dense`: (..., C) -> (..., D), + plus, the 1x1 convolution; its adjoint adds a plus to dx."""
        return ops.dense(x, W, b, plus=plus)

    def group_norm(
        self, x: Array, gamma: Array, beta: Array, groups: int, *, silu: bool = False
    ) -> tuple[Array, Backward]:
        """`ops.group_norm`, fused with SiLU if asked; its adjoint adds a plus to dx."""
        return ops.group_norm(x, gamma, beta, groups, silu=silu)

    def attention(self, q: Array, k: Array, v: Array) -> tuple[Array, Backward]:
        """`ops.attention`: (N, S, C) each."""
        return ops.attention(q, k, v)

    def upsample(self, x: Array) -> tuple[Array, Backward]:
        """`ops.upsample`: (N, H, W, C) -> (N, 2H, 2W, C)."""
        return ops.upsample(x)

    def concat(self, a: Array, b: Array) -> tuple[Array, Backward]:
        """`ops.concat`: (N, H, W, C), (N, H, W, D) -> (N, H, W, C + D); the adjoint may return views."""
        return ops.concat(a, b)

    def add(self, a: Array, b: Array) -> tuple[Array, Backward]:
        """`ops.add`, also of two gradients; its adjoint is dy itself."""
        return ops.add(a, b)

    def dropout(self, x: Array, uniform: Array, rate: float) -> tuple[Array, Backward]:
        """`ops.dropout`."""
        return ops.dropout(x, uniform, rate)

    def update(
        self,
        params: Array,
        grads: Array,
        m: Array,
        v: Array,
        ema: Array,
        step: int,
        settings: optim.AdamSettings,
    ) -> float:
        """`optim.update`: clipping, Adam and EMA in one pass over the flat vectors."""
        return optim.update(params, grads, m, v, ema, step, settings)

    def normal(
        self,
        seed: int,
        purpose: Purpose,
        step: int,
        samples: Array,
        shape: tuple[int, ...],
        *,
        layer: int = 0,
    ) -> Array:
        """`random.normal`: the same bits on every backend."""
        return random.normal(seed, purpose, step, samples, shape, layer=layer)

    def uniform(
        self,
        seed: int,
        purpose: Purpose,
        step: int,
        samples: Array,
        shape: tuple[int, ...],
        *,
        layer: int = 0,
    ) -> Array:
        """`random.uniform`: the same bits on every backend."""
        return random.uniform(seed, purpose, step, samples, shape, layer=layer)

    def q_sample(
        self, schedule: Schedule, x_0: Array, t: Steps, seed: int, step: int, samples: Array
    ) -> tuple[Array, Array]:
        """Lines 4 and 5 of Algorithm 1: the noise ε of these places of a step's batch, and `forward.q_sample` with it.

        x_0: (N, ...) float   t: (N,) int or one   samples: (N,) places in the batch   -> x_t, ε, both as x_0
        """
        eps = self.normal(seed, Purpose.EPS, step, samples, x_0.shape[1:]).astype(x_0.dtype, copy=False)
        return forward.q_sample(schedule, x_0, t, eps), eps

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
        """Lines 3 and 4 of Algorithm 2: the noise z of these images at t > 1, and `reverse.p_sample` with it.

        x_t: (N, ...) float   output: the network's   samples: (N,) the images' numbers   -> x_{t-1}, x̂_0, both as x_t
        """
        z = self.normal(seed, Purpose.Z, t, samples, x_t.shape[1:]) if t > 1 else None
        return reverse.p_sample(
            schedule, x_t, t, output, z, predicts=predicts, var=var, clip=clip, temperature=temperature
        )

    def silu(self, x: Array) -> tuple[Array, Backward]:
        """`ops.silu`, of the time embedding alone: elsewhere it is fused with GroupNorm."""
        return ops.silu(x)

    def time_embedding(self, t: Array, dim: int, dtype: Any) -> Array:
        """`ops.time_embedding` of t (N,) as this backend's array."""
        return self.to_device(ops.time_embedding(t, dim).astype(dtype))

    def training_steps(self, trainer: "Trainer") -> "Callable[[int], list[StepReport]] | None":
        """What runs steps of Algorithm 1 for this trainer instead of `Trainer.step`, if the backend has its own.

        Called with the most steps to run, it runs some of them, at least one, and returns their reports: several, where
        to look at each loss would make a device wait. Raises Diverged as `Trainer.step` does.
        """
        return None

    def reverse_steps(
        self,
        model: Any,
        schedule: Schedule,
        x_T: Array,
        samples: Array,
        seed: int,
        every: int,
        *,
        start: int,
        **how: Any,
    ) -> Iterator[tuple[int, Array, Array]] | None:
        """What runs Algorithm 2 instead of `reverse.reverse_chain`, yielding the same, if the backend has its own.

        model: `UNet.bind` of parameters of this backend.  start: the t of x_T, T unless a chain goes on from there.
        how: the keywords of `p_sample`, var as a table or "learned".
        """
        return None

    def to_device(self, x: Array) -> Array:
        """A host array as this backend's array."""
        return np.asarray(x)

    def to_host(self, x: Array) -> np.ndarray:
        """This backend's array as a NumPy array."""
        return np.asarray(x)
