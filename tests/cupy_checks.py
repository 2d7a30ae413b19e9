"""The CuPy backend's operations as a backend on the device that runs its kernels on the CPU."""

import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cuda_host.host_device import ORDERS, HostDevice
from cuda_host.source import kernel_text
from ddpm_ref_cupy import attention, conv, dense, norm, pointwise
from hypothesis import strategies as st

from ddpm_ref.backend import Backend
from ddpm_ref.checks import Array
from ddpm_ref.nn.ops import Backward

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="wants g++, to run the kernels on the CPU")

Host = Callable[..., HostDevice]
"""The fixture `host`."""

orders = st.sampled_from(ORDERS)
dtypes = st.sampled_from([np.float32, np.float64])
layouts = st.sampled_from(["contiguous", "strided"])


class OnHost(Backend):
    """`Backend` with the CuPy backend's operations of a network; run: where they are launched."""

    name = "kernels on the CPU"

    def __init__(self, run: HostDevice) -> None:
        super().__init__()
        self.run = run

    def conv3x3(self, x: Array, W: Array, b: Array, *, stride: int = 1) -> tuple[Array, Backward]:
        return conv.conv3x3(self.run, x, W, b, stride)

    def dense(self, x: Array, W: Array, b: Array) -> tuple[Array, Backward]:
        return dense.dense(self.run, x, W, b)

    def group_norm(
        self, x: Array, gamma: Array, beta: Array, groups: int, *, silu: bool = False
    ) -> tuple[Array, Backward]:
        return norm.group_norm(self.run, x, gamma, beta, groups, silu)

    def attention(self, q: Array, k: Array, v: Array) -> tuple[Array, Backward]:
        return attention.attention(self.run, q, k, v)

    def upsample(self, x: Array) -> tuple[Array, Backward]:
        return pointwise.upsample(self.run, x)

    def concat(self, a: Array, b: Array) -> tuple[Array, Backward]:
        return pointwise.concat(self.run, a, b)

    def add(self, a: Array, b: Array) -> tuple[Array, Backward]:
        return pointwise.add(self.run, a, b)

    def dropout(self, x: Array, uniform: Array, rate: float) -> tuple[Array, Backward]:
        return pointwise.dropout(self.run, x, uniform, rate)

    def to_device(self, x: Array) -> Array:
        return self.run.to_device(x)

    def to_host(self, x: Array) -> np.ndarray:
        return self.run.to_host(x)


def barriers(file: str) -> list[Any]:
    """Each `__syncthreads()` of a kernel file, as a change of its text that deletes it."""
    text, word = kernel_text(file), "__syncthreads();"
    places = [i for i in range(len(text)) if text.startswith(word, i)]
    return [
        pytest.param((text[i - 80 : i + len(word)], text[i - 80 : i]), id=f"line {text.count(chr(10), 0, i) + 1}")
        for i in places
    ]


def misaligned(run: HostDevice, x: Array) -> Array:
    """x as a contiguous view that begins one element behind where fours of them do."""
    wide = run.empty((x.size + 1,), x.dtype)
    view = wide[1:].reshape(x.shape)
    view[...] = x
    return view
