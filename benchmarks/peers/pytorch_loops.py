"""PyTorch's side of a loop, on a CPU: its own functions, eager, and their adjoints by autograd, on the same numbers.

Forward is timed as training needs it, keeping what its adjoint will read; the adjoint is with respect to all inputs, as
ours. Inputs and dy lie as the contender's layout says before the clock runs.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import Job
from benchmarks.contestant import Clock, Contestant
from benchmarks.loops import ARGUMENTS
from benchmarks.peers.pytorch_side import Shape
from benchmarks.work import Loop
from ddpm_ref.backend import Backend

KINDS = {
    "conv3x3": ("images", "filters", "plain", "images"),
    "group_norm": ("images", "plain", "plain", "images"),
    "dense": ("plain", "matrix", "plain", "plain"),
    "attention": ("plain",) * 4,
}
"""How the inputs and the output of an operation lie."""
_AXES = {"images": (0, 3, 1, 2), "filters": (3, 2, 0, 1), "matrix": (1, 0)}


def contestant(job: Job, shape: Shape, name: str, clock: Clock) -> Contestant:
    """A loop as something to time."""
    assert job.loop is not None
    side = _Side(job.loop, shape)
    side.draw(0)
    kinds = KINDS[job.loop.operation]
    results = {
        "output": [in_ours(side.forward(), kinds[-1])],
        "gradient": [in_ours(one, kind) for one, kind in zip(side.adjoint(), kinds, strict=False)],
    }
    calls: dict[str, Callable[[], Any]] = {"": side.forward, ", adjoint": side.adjoint}
    return Contestant(f"PyTorch {torch.__version__}", calls, results, side.draw, clock)


class _Side:
    """Arguments, and the two calls."""

    def __init__(self, loop: Loop, shape: Shape) -> None:
        self.loop, self.shape, self._call = loop, shape, _CALLS[loop.operation]

    def draw(self, round_: int) -> None:
        """The arguments and the dy that ours draws."""
        rng, kinds = np.random.default_rng([7, round_]), KINDS[self.loop.operation]
        dtype = np.float64 if self.shape.dtype == torch.float64 else np.float32

        def normal(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape, dtype=dtype)

        drawn = ARGUMENTS[self.loop.operation](self.loop, normal, rng, Backend(), dtype)
        self.arguments = [self._laid(a, kind).requires_grad_() for a, kind in zip(drawn, kinds, strict=False)]
        self.y = self.forward()
        self.dy = self._laid(normal(*in_ours(self.y, kinds[-1]).shape), kinds[-1])

    def forward(self) -> Tensor:
        """One call of the operation."""
        return self._call(self.loop, *self.arguments)

    def adjoint(self) -> tuple[Tensor, ...]:
        """One call of its adjoint."""
        return torch.autograd.grad(self.y, self.arguments, self.dy, retain_graph=True)

    def _laid(self, a: np.ndarray, kind: str) -> Tensor:
        x = torch.from_numpy(a)
        x = x.permute(_AXES[kind]) if kind in _AXES else x
        return x.contiguous(memory_format=self.shape.layout) if x.ndim == 4 else x.contiguous()


def in_ours(x: Tensor, kind: str) -> np.ndarray:
    """In our order of axes."""
    x = x.detach()
    return (x.permute(*np.argsort(_AXES[kind]).tolist()) if kind in _AXES else x).contiguous().numpy()


def _conv3x3(loop: Loop, x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    if loop.stride == 1:
        return F.conv2d(x, W, b, padding=1)
    # Padded as TensorFlow's "SAME": of an even size below and on the right alone.
    odd_h, odd_w = (size % 2 for size in x.shape[2:])
    return F.conv2d(F.pad(x, (odd_w, 1, odd_h, 1)), W, b, stride=2)


def _group_norm(loop: Loop, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    y = F.group_norm(x, loop.width, gamma, beta, eps=1e-6)
    return F.silu(y) if loop.option == "silu" else y


def _attention(loop: Loop, *qkv: Tensor) -> Tensor:
    q, k, v = (one[:, None] for one in qkv)
    return F.scaled_dot_product_attention(q, k, v)[:, 0]


_CALLS: dict[str, Callable[..., Tensor]] = {
    "conv3x3": _conv3x3,
    "group_norm": _group_norm,
    "dense": lambda loop, x, W, b: F.linear(x, W, b),
    "attention": _attention,
}
