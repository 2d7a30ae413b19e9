"""How many threads NumPy's matrix products use. Importing this loads nothing more; counting loads threadpoolctl."""

import importlib
import os
from typing import Any

VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "OMP_NUM_THREADS")
"""Which environment variables BLAS libraries read when they are loaded, the one that OpenBLAS prefers first."""


def cores() -> int:
    """The cores that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def _threadpoolctl() -> Any:
    try:
        return importlib.import_module("threadpoolctl")
    except ImportError:
        return None


def blas_threads() -> int:
    """The threads of NumPy's BLAS: as threadpoolctl finds them, or the environment says, or one a core."""
    if pools := _threadpoolctl():
        counts = [pool["num_threads"] for pool in pools.threadpool_info() if pool["user_api"] == "blas"]
        if counts:
            return int(max(counts))
    said = [int(os.environ[name]) for name in VARIABLES if os.environ.get(name, "").isdecimal()]
    return said[0] if said and said[0] else cores()


def limit_blas(threads: int) -> None:
    """Let NumPy's BLAS use so many threads from now on, in the whole process.

    Raises ValueError, naming the environment variable that does the same, without threadpoolctl or with a BLAS that it
    does not know (Apple's Accelerate).
    """
    pools = _threadpoolctl()
    if pools is None:
        raise ValueError(
            f"threads: the NumPy backend needs threadpoolctl for this (pip install threadpoolctl); "
            f"or set OPENBLAS_NUM_THREADS={threads} in the environment instead"
        )
    if not any(pool["user_api"] == "blas" for pool in pools.threadpool_info()):
        raise ValueError(
            f"threads: threadpoolctl knows no way to set the threads of this NumPy's BLAS; set the BLAS's environment "
            f"variable instead (OPENBLAS_NUM_THREADS={threads}, VECLIB_MAXIMUM_THREADS={threads} for Accelerate)"
        )
    pools.threadpool_limits(threads, user_api="blas")
