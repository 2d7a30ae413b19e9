"""The threads of NumPy's matrix products, and the workspace."""

import sys
from collections.abc import Iterator

import numpy as np
import pytest
import threadpoolctl

from ddpm_ref import blas
from ddpm_ref.backend import Backend
from ddpm_ref.workspace import Workspace


@pytest.fixture
def restored() -> Iterator[None]:
    """BLAS is left with the threads it had."""
    with threadpoolctl.threadpool_limits(None):
        yield


def now() -> set[int]:
    return {pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"}


def test_the_numpy_backend_sets_and_tells_the_threads_of_blas(restored: None) -> None:
    for threads in (1, 2, 1):
        assert Backend(threads).describe().threads == threads and now() == {threads}
        assert Backend().describe().threads == threads, "which holds for the whole process"


def test_without_threadpoolctl_the_error_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    with pytest.raises(ValueError, match=r"threads: .* needs threadpoolctl .*OPENBLAS_NUM_THREADS=3"):
        Backend(3)
    for name in blas.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert Backend().describe().threads == blas.cores() >= 1
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert Backend().describe().threads == 5
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "4")
    assert Backend().describe().threads == 4
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "many")
    assert Backend().describe().threads == 5


def test_a_blas_that_cannot_be_set_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threadpoolctl, "threadpool_info", lambda: [{"user_api": "openmp", "num_threads": 9}])
    with pytest.raises(ValueError, match=r"threads: threadpoolctl knows no way .*VECLIB_MAXIMUM_THREADS=2"):
        Backend(2)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    assert Backend().describe().threads == 3


def test_every_core_counts_where_the_system_tells_no_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(blas.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(blas.os, "cpu_count", lambda: None)
    assert blas.cores() == 1


def test_a_workspace_hands_out_the_same_memory_and_only_grows() -> None:
    space = Workspace()
    first = space.take("a", 10)
    first[:] = 7
    assert (first.dtype, first.shape, space.nbytes) == (np.float32, (10,), 40)
    again = space.take("a", 6)
    assert again.shape == (6,) and np.shares_memory(first, again) and (again == 7).all() and space.nbytes == 40
    larger = space.take("a", 11)
    assert not np.shares_memory(first, larger) and space.nbytes == 44
    assert np.shares_memory(larger, space.take("a", 11))


def test_names_and_dtypes_are_apart() -> None:
    space = Workspace()
    buffers = [space.take("a", 4), space.take("b", 4), space.take("a", 4, np.float64), space.take("a", 4, np.int32)]
    assert [b.dtype for b in buffers] == [np.float32, np.float32, np.float64, np.int32] and space.nbytes == 80
    for i, one in enumerate(buffers):
        assert not any(np.shares_memory(one, other) for other in buffers[i + 1 :])
    assert np.shares_memory(buffers[2], space.take("a", 4, "float64"))


def test_a_workspace_may_be_of_other_arrays_and_its_sizes_are_checked() -> None:
    space = Workspace(lambda size, dtype: np.full(size, 3, dtype))
    assert space.take("a", 2).tolist() == [3, 3] and space.take("a", 0).shape == (0,)
    with pytest.raises(ValueError, match="size: wanted an integer >= 0, got -1"):
        space.take("a", -1)


def test_each_backend_has_one_workspace_even_if_its_constructor_is_its_own() -> None:
    class Bare(Backend):
        def __init__(self) -> None:
            pass

    one, other = Bare(), Bare()
    assert one.workspace is one.workspace and one.workspace is not other.workspace
