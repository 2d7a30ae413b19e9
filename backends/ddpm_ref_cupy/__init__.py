"""The CuPy backend: `ddpm_ref.Backend` on an NVIDIA GPU, by kernels in plain CUDA C.

    device, cuda, cublas, source   where kernels run and matrix products come from; `kernels/*.cu` their text
    conv, dense, norm, attention, pointwise, noise, update, loss   the operations, and what surrounds them in a step
    step, chain, arena             a whole training step, and a whole reverse step, as one CUDA graph each

Arrays are CuPy's. float32 and float64 run the same kernels; `precision` says to what float32 operands of matrix
products and convolutions are rounded. Results repeat bit for bit on one card.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ddpm_ref.backend import Backend
from ddpm_ref.checks import Array, Steps
from ddpm_ref.nn.ops import Backward
from ddpm_ref.nn.optim import AdamSettings
from ddpm_ref.random import Purpose
from ddpm_ref.schedule import Schedule, Table
from ddpm_ref.train import StepReport, Trainer
from ddpm_ref_cupy import attention, chain, conv, dense, noise, norm, pointwise, step, update
from ddpm_ref_cupy.device import PRECISIONS, Device

__all__ = ["CupyBackend"]


class CupyBackend(Backend):
    """Kernels compiled at first use and kept on disk, arrays and randomness on the card.

    threads: of the host, which only launches; taken for the sake of `get_backend`.
    precision: "fp32", "tf32" or "bf16".  device: what to run on instead of this machine's GPU.
    Raises ImportError, saying what is missing, where there is no GPU that can be used.
    """

    name = "cupy"

    def __init__(
        self, threads: int | None = None, precision: str | None = None, *, device: Device | None = None
    ) -> None:
        if device is None:
            from ddpm_ref_cupy.cuda import CudaDevice  # not before a GPU is asked for

            device = CudaDevice(precision or "fp32")
        self.run = device
        self.threads = 1
        self.longest = 0  # T of the schedules seen, and the embeddings of their t: `step.time_embedding`
        self.embeddings: dict[tuple[int, int, np.dtype], Array] = {}
        self.version, self.device, self.precision = device.version, device.name, device.precision
        self.note = (
            f"precision {device.precision}, of {', '.join(PRECISIONS)}; p_sample of μ and of learned variances: NumPy's"
        )

    def conv3x3(
        self, x: Array, W: Array, b: Array, *, stride: int = 1, plus: Array | None = None
    ) -> tuple[Array, Backward]:
        """`ops.conv3x3`."""
        return conv.conv3x3(self.run, x, W, b, stride, plus)

    def dense(self, x: Array, W: Array, b: Array, *, plus: Array | None = None) -> tuple[Array, Backward]:
        """`ops.dense`."""
        return dense.dense(self.run, x, W, b, plus)

    def group_norm(
        self, x: Array, gamma: Array, beta: Array, groups: int, *, silu: bool = False
    ) -> tuple[Array, Backward]:
        """`ops.group_norm`."""
        return norm.group_norm(self.run, x, gamma, beta, groups, silu)

    def attention(self, q: Array, k: Array, v: Array) -> tuple[Array, Backward]:
        """`ops.attention`."""
        return attention.attention(self.run, q, k, v)

    def upsample(self, x: Array) -> tuple[Array, Backward]:
        """`ops.upsample`."""
        return pointwise.upsample(self.run, x)

    def concat(self, a: Array, b: Array) -> tuple[Array, Backward]:
        """`ops.concat`; the adjoint's parts are contiguous."""
        return pointwise.concat(self.run, a, b)

    def add(self, a: Array, b: Array) -> tuple[Array, Backward]:
        """`ops.add`."""
        return pointwise.add(self.run, a, b)

    def dropout(self, x: Array, uniform: Array, rate: float) -> tuple[Array, Backward]:
        """`ops.dropout`, the same bits; uniform may be `noise.Draws`."""
        if isinstance(uniform, noise.Draws):
            seed, counters, slot, samples, layer = uniform
            return noise.dropout_at(self.run, x, rate, seed, counters, slot, samples, layer=layer)
        return pointwise.dropout(self.run, x, uniform, rate)

    def silu(self, x: Array) -> tuple[Array, Backward]:
        """`ops.silu`."""
        return pointwise.silu(self.run, x)

    def normal(
        self, seed: int, purpose: Purpose, step: int, samples: Array, shape: tuple[int, ...], *, layer: int = 0
    ) -> Array:
        """`random.normal`, the same bits."""
        return noise.normal(self.run, seed, purpose, step, samples, shape, layer=layer)

    def uniform(
        self, seed: int, purpose: Purpose, step: int, samples: Array, shape: tuple[int, ...], *, layer: int = 0
    ) -> Array:
        """`random.uniform`, the same bits."""
        return noise.uniform(self.run, seed, purpose, step, samples, shape, layer=layer)

    def q_sample(
        self, schedule: Schedule, x_0: Array, t: Steps, seed: int, step: int, samples: Array
    ) -> tuple[Array, Array]:
        """Eq. 4 with its noise, the same bits."""
        return noise.q_sample(self.run, schedule, x_0, t, seed, step, samples)

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
        """Algorithm 2, line 4, with its noise, the same bits; of μ or with a learned variance: NumPy's body."""
        kinds = dict(predicts=predicts, var=var, clip=clip, temperature=temperature)
        if not noise.takes(x_t, t, output, predicts, var):
            return super().p_sample(schedule, x_t, t, output, seed, samples, **kinds)
        return noise.p_sample(self.run, schedule, x_t, t, output, seed, samples, **kinds)

    def update(
        self, params: Array, grads: Array, m: Array, v: Array, ema: Array, step: int, settings: AdamSettings
    ) -> float:
        """`optim.update` in one pass; waits for the norm."""
        return update.update(self.run, params, grads, m, v, ema, step, settings)

    def time_embedding(self, t: Array, dim: int, dtype: Any) -> Array:
        """`ops.time_embedding`, of t on the host or on the device."""
        return step.time_embedding(self, t, dim, dtype)

    def training_steps(self, trainer: Trainer) -> Callable[[int], list[StepReport]] | None:
        """Whole steps on the device, where the objective is L_simple on ε; None for others."""
        return step.training_steps(self, trainer)

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
        """Whole reverse steps on the device, where the network predicts ε and the variance is fixed; None otherwise."""
        return chain.reverse_steps(self, model, schedule, x_T, samples, seed, every, start, **how)

    def to_device(self, x: Array) -> Array:
        """A host array, or one that is there already."""
        return self.run.to_device(x)

    def to_host(self, x: Array) -> np.ndarray:
        """As a NumPy array; waits for it."""
        return self.run.to_host(x)
