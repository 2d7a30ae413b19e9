"""What tests of the CuPy backend on the CPU share: orders of threads, changes of kernels, views that begin anywhere."""

import re
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cuda_host.host_device import ORDERS, HostDevice
from cuda_host.source import kernel_text
from hypothesis import strategies as st

from ddpm_ref.checks import Array

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="wants g++, to run the kernels on the CPU")

Host = Callable[..., HostDevice]
"""The fixture `host`."""

orders = st.sampled_from(ORDERS)
dtypes = st.sampled_from([np.float32, np.float64])
layouts = st.sampled_from(["contiguous", "strided"])


def barriers(file: str) -> list[Any]:
    """Each `__syncthreads()` of a kernel file, as a change of its text that deletes it."""
    text, word = kernel_text(file), "__syncthreads();"
    places = [i for i in range(len(text)) if text.startswith(word, i)]
    return [
        pytest.param((text[i - 80 : i + len(word)], text[i - 80 : i]), id=f"line {text.count(chr(10), 0, i) + 1}")
        for i in places
    ]


def counted_barriers(file: str) -> list[Any]:
    """`barriers` of a file whose blocks count each other, but for those in front of the count: only other blocks need
    them."""
    text = kernel_text(file)

    def behind(old: str) -> str:
        return text[text.index(old) + len(old) :][:90]

    return [change for change in barriers(file) if "__threadfence" not in behind(change.values[0][0])]


def leaner(file: str, *runs: HostDevice) -> list[tuple[str, str]]:
    """Changes of a kernel file that leave out what these have not launched: what is left compiles faster."""
    used = {launch.kernel.partition(".")[2] for run in runs for launch in run.launches}
    made = re.finditer(r"^[A-Z_]+\((\w+), .*\)\n", kernel_text(file), re.MULTILINE)
    return [(line[0], "") for line in made if line[1] not in used]


def misaligned(run: HostDevice, x: Array) -> Array:
    """x as a contiguous view that begins one element behind where fours of them do."""
    wide = run.empty((x.size + 1,), x.dtype)
    view = wide[1:].reshape(x.shape)
    view[...] = x
    return view
