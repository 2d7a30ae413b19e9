"""What the machine can do, measured on the spot: its matrix product in each precision, and its copy with all threads.

Both are the best of several: a ceiling is what is possible. The matrix product is NumPy's BLAS's, of 2048x2048 random
numbers (on a GPU cuBLAS's, of 8192x8192); the copy goes from one array of 256 MiB (1 GiB on a GPU) to another, far
more than any cache holds, and counts what is read and what is written.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from benchmarks.contenders import environment

CPU_PRECISIONS = ("float32", "float64")
GPU_PRECISIONS = ("float32", "tf32", "bf16")
Ceiling = dict[str, Any]


def measure_ceilings(threads: int, gpu: bool = False) -> list[Ceiling]:
    """In a process of its own, with so many threads."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, threads, gpu), daemon=True)
    with environment(threads):
        process.start()
    theirs.close()
    try:
        got = ours.recv()
    except EOFError:
        got = "its process ended"
    process.join()
    if isinstance(got, str):
        raise RuntimeError(f"the ceilings of this machine could not be measured: {got}")
    return list(got)


def rate(ceilings: list[Ceiling], what: str, precision: str, threads: int) -> float | None:
    """Operations or bytes a second; a copy has one rate for all precisions."""
    for one in ceilings:
        if one["what"] == what and one["threads"] == threads and (what == "copy" or one["precision"] == precision):
            return float(one["rate"]) * 1e9
    return None


def _serve(pipe: Connection, threads: int, gpu: bool) -> None:
    try:
        pipe.send(_of_gpu() if gpu else _of_cpu(threads))
    except Exception as error:  # said by whoever asked
        pipe.send(f"{type(error).__name__}: {error}")


def _best(call: Any, seconds: float = 0.5) -> float:
    """The fastest of as many calls as fit."""
    call()
    best, spent, calls = float("inf"), 0.0, 0
    while spent < seconds or calls < 5:
        begun = time.perf_counter()
        call()
        took = time.perf_counter() - begun
        best, spent, calls = min(best, took), spent + took, calls + 1
    return best


def _of_cpu(threads: int, size: int = 2048, copied: int = 1 << 28) -> list[Ceiling]:
    rng = np.random.default_rng(0)
    found = []
    for precision in CPU_PRECISIONS:
        a, b = (rng.standard_normal((size, size)).astype(precision) for _ in range(2))
        out = np.empty_like(a)
        took = _best(lambda a=a, b=b, out=out: np.matmul(a, b, out=out))
        found.append(_ceiling("gemm", precision, threads, 2e-9 * size**3 / took))
    x = rng.random(copied // 4, dtype=np.float32)  # never zeros: the system shares one page of them
    y = np.ones_like(x)
    parts = [slice(len(x) * k // threads, len(x) * (k + 1) // threads) for k in range(threads)]
    with ThreadPoolExecutor(threads) as pool:  # NumPy lets others run while it copies
        took = _best(lambda: list(pool.map(lambda part: np.copyto(y[part], x[part]), parts)))
    found.append(_ceiling("copy", "float32", threads, 2e-9 * x.nbytes / took))
    return found


def _of_gpu(size: int = 8192, copied: int = 1 << 30) -> list[Ceiling]:
    """By events. bf16 and TF32 products are PyTorch's where it is installed; without it, our own on cuBLAS."""
    import benchmarks.gpu_steps as gpu

    backend = gpu.make_backend("float32")
    run, cupy = backend.run, backend.run.cupy
    found = []
    for precision in GPU_PRECISIONS:
        took = gpu.best_product(precision, size)
        found.append(_ceiling("gemm", precision, 1, 2e-9 * size**3 / took))
    x = cupy.random.default_rng(0).random(copied // 4, dtype=np.float32)
    y = cupy.empty_like(x)
    took = min(gpu.timed(run, lambda: cupy.copyto(y, x), 10, 200)) / 1e3
    found.append(_ceiling("copy", "float32", 1, 2e-9 * x.nbytes / took))
    return found


def _ceiling(what: str, precision: str, threads: int, rate: float) -> Ceiling:
    unit = "GFLOP/s" if what == "gemm" else "GB/s"
    return {"what": what, "precision": precision, "threads": threads, "rate": rate, "unit": unit}
