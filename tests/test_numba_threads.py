"""Python's threads on one Numba backend: each gets what it would get alone, whatever threading layer Numba has."""

import os
import subprocess
import sys
import threading

import pytest

pytest.importorskip("numba", reason="the Numba backend is not installed here: pip install 'ddpm-ref[numba]'")

from ddpm_ref_numba import NumbaBackend
from numba_checks import normals

from ddpm_ref.backend import Backend
from ddpm_ref.checks import Array
from ddpm_ref.workspace import Workspace


def every_operation_with_scratch(run: Backend, seed: int) -> list[Array]:
    """Outputs and gradients of what takes scratch from the workspace; sizes differ from seed to seed."""
    n = 8 + 8 * seed
    x, dy, W, V, b, q = normals(seed, (n, 8, 8, 16), (n, 8, 8, 32), (3, 3, 16, 32), (16, 32), (32,), (n, 16, 32))
    calls = [
        (run.conv3x3(x, W, b), dy),
        (run.dense(x, V, b), dy),
        (run.group_norm(dy, b, b, 4, silu=True), dy),
        (run.attention(q, q, q), q),
    ]
    return [a for (y, backward), d in calls for a in (y, *backward(d))]


def wrong_in_threads(run: Backend, rounds: int) -> int:
    """How many results of two threads at once differ from those of each alone."""
    alone = [[a.tobytes() for a in every_operation_with_scratch(run, seed)] for seed in (1, 2)]
    wrong: list[int] = []

    def work(seed: int) -> None:
        for _ in range(rounds):
            found = [a.tobytes() for a in every_operation_with_scratch(run, seed)]
            wrong.append(sum(a != b for a, b in zip(found, alone[seed - 1], strict=True)))

    both = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(wrong) == 2 * rounds, "a thread was ended by an exception"
    return sum(wrong)


@pytest.mark.parametrize("threads", [1, 2])
def test_two_threads_on_one_backend_get_the_bits_that_each_gets_alone(threads: int) -> None:
    assert wrong_in_threads(NumbaBackend(threads), 20) == 0


def test_two_threads_may_spread_kernels_at_once_even_on_the_layer_that_takes_one_at_a_time() -> None:
    program = (
        "from test_numba_threads import NumbaBackend, wrong_in_threads\n"
        "import numba; print(wrong_in_threads(NumbaBackend(2), 20), numba.threading_layer())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=os.path.dirname(__file__),
        env=os.environ | {"NUMBA_THREADING_LAYER": "workqueue"},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "0 workqueue\n"), done.stderr


def test_each_thread_has_buffers_of_its_own_in_a_workspace() -> None:
    workspace, other = Workspace(), []
    mine = workspace.take("x", 5)
    thread = threading.Thread(target=lambda: other.extend([workspace.nbytes, workspace.take("x", 5)]))
    thread.start()
    thread.join()
    assert other[0] == 0 and other[1] is not mine.base and workspace.take("x", 5).base is mine.base
    assert (mine.ctypes.data != other[1].ctypes.data) and workspace.nbytes == 20
