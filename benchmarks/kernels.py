"""Each operation at the sizes of the networks that `cases` lists: python -m benchmarks.kernels

Direct-equivalent GFLOP/s (what a direct sum would compute, over the time) or GB/s (what must be read and written once),
beside the machine's matrix product and copy, and the ratio to plain NumPy: our backend and NumPy in a process each,
taking turns.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.steps import _cpu


class Kernel(NamedTuple):
    """What to time: unit is GFLOP/s or GB/s, work in units of 1e9."""

    unit: str
    work: float
    run: Callable[[], Any]


CONVOLUTIONS = [
    (128, 8, 16, 16), (128, 4, 32, 32), (16, 32, 64, 64), (16, 16, 128, 128), (8, 32, 128, 128), (8, 32, 256, 128),
    (8, 16, 256, 256), (8, 16, 512, 256), (8, 8, 256, 256), (8, 4, 256, 256), (1, 16, 256, 256),
]  # fmt: skip
"""N, H = W, C, D."""


def kernels(name: str, threads: int) -> dict[str, Kernel]:
    """Every operation of a backend, ready to be called."""
    import numpy as np

    from ddpm_ref import Schedule
    from ddpm_ref.discovery import get_backend
    from ddpm_ref.memory import keep_freed_memory
    from ddpm_ref.nn.optim import AdamSettings
    from ddpm_ref.random import Purpose

    keep_freed_memory()
    on, rng = get_backend(name, threads), np.random.default_rng(0)

    def draw(*shape: int) -> Any:
        return rng.standard_normal(shape, dtype=np.float32)

    found: dict[str, Kernel] = {}

    def both(label: str, unit: str, forward: float, backward: float, call: Callable[[], Any]) -> None:
        y, adjoint = call()
        dy = draw(*y.shape)
        found[label] = Kernel(unit, forward / 1e9, call)
        found[f"{label}, adjoint"] = Kernel(unit, backward / 1e9, lambda: adjoint(dy))

    for n, h, c, d in CONVOLUTIONS:
        args, flops = (draw(n, h, h, c), draw(3, 3, c, d), draw(d)), 18.0 * n * h * h * c * d
        both(f"conv3x3 {n}x{h}x{h}x{c}→{d}", "GFLOP/s", flops, 2 * flops, lambda a=args: on.conv3x3(*a))
    args, flops = (draw(8, 32, 32, 128), draw(3, 3, 128, 128), draw(128)), 18.0 * 8 * 256 * 128 * 128
    both("conv3x3, stride 2 8x32x32x128→128", "GFLOP/s", flops, 2 * flops, lambda: on.conv3x3(*args, stride=2))
    for m, c, d in ((8192, 384, 128), (2048, 256, 256), (8192, 16, 16)):
        a3, flops = (draw(m, c), draw(c, d), draw(d)), 2.0 * m * c * d
        both(f"dense {m}x{c}→{d}", "GFLOP/s", flops, 2 * flops, lambda a=a3: on.dense(*a))
    for n, s, c in ((8, 256, 256), (128, 16, 32)):
        qkv, flops = [draw(n, s, c) for _ in range(3)], 4.0 * n * s * s * c
        both(f"attention {n}x{s}x{c}", "GFLOP/s", flops, 2.5 * flops, lambda a=qkv: on.attention(*a))
    for n, h, c in ((8, 32, 128), (128, 8, 16)):
        x = draw(n, h, h, c)
        norm, size = (x, draw(c), draw(c)), f"{n}x{h}x{h}x{c}"
        groups = 32 if c == 128 else 8
        both(f"group_norm, silu {size}", "GB/s", 8.0 * x.size, 12.0 * x.size,
             lambda a=norm, g=groups: on.group_norm(*a, g, silu=True))  # fmt: skip
    x, u = draw(8, 32, 32, 128), rng.random((8, 32, 32, 128), dtype=np.float32)
    both("upsample 8x32x32x128", "GB/s", 20.0 * x.size, 20.0 * x.size, lambda: on.upsample(x))
    # Forward alone: NumPy's adjoint returns views.
    found["concat 8x32x32x(128+128)"] = Kernel("GB/s", 16.0 * x.size / 1e9, lambda: on.concat(x, x))
    both("dropout 8x32x32x128", "GB/s", 12.0 * x.size, 8.0 * x.size, lambda: on.dropout(x, u, 0.1))
    found["add 8x32x32x128"] = Kernel("GB/s", 12e-9 * x.size, lambda: on.add(x, x))
    schedule, samples, t = Schedule.linear(), np.arange(8), np.arange(1, 9)
    found["normal 8x32x32x128"] = Kernel(
        "GB/s", 4e-9 * x.size, lambda: on.normal(0, Purpose.EPS, 1, samples, x.shape[1:])
    )
    found["q_sample 8x32x32x128"] = Kernel("GB/s", 12e-9 * x.size, lambda: on.q_sample(schedule, x, t, 0, 1, samples))
    found["p_sample 8x32x32x128"] = Kernel(
        "GB/s", 16e-9 * x.size, lambda: on.p_sample(schedule, x, 9, x, 0, samples, clip=True)
    )
    vectors = [np.abs(draw(35_746_307)) for _ in range(5)]
    found["update 35,746,307"] = Kernel("GB/s", 40e-9 * len(vectors[0]), lambda: on.update(*vectors, 9, AdamSettings()))
    return found


def machine(threads: int) -> dict[str, Kernel]:
    """NumPy's matrix product and its copy of 256 MiB, which uses one core."""
    import numpy as np

    a, b = np.ones((2, 2048, 2048), np.float32)
    x, y = np.ones((2, 1 << 26), np.float32)
    return {
        "sgemm 2048": Kernel("GFLOP/s", 2e-9 * 2048**3, lambda: np.matmul(a, b)),
        "copy, one thread": Kernel("GB/s", 8e-9 * len(x), lambda: np.copyto(y, x)),
    }


def _serve(pipe: Connection, name: str, threads: int) -> None:
    """In a contender's own process: time what is asked for, the median of as many calls as fit a fifth of a second."""
    found = machine(threads) if name == "machine" else kernels(name, threads)
    pipe.send({label: (kernel.unit, kernel.work) for label, kernel in found.items()})
    while label := pipe.recv():
        seconds: list[float] = []
        while sum(seconds) < 0.2 or len(seconds) < 3:
            begun = time.perf_counter()
            found[label].run()
            seconds.append(time.perf_counter() - begun)
        pipe.send(statistics.median(seconds))


def main() -> None:
    """Time every kernel in turns, print a table, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="numba")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[variable] = str(args.threads)
    for variable in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        os.environ.pop(variable, None)
    os.environ.setdefault("OMP_PROC_BIND", "true")
    context, pipes, works = get_context("spawn"), {}, {}
    for name in ("machine", args.backend, "numpy"):
        pipes[name], theirs = context.Pipe()
        context.Process(target=_serve, args=(theirs, name, args.threads), daemon=True).start()
        works[name] = pipes[name].recv()

    def rate(name: str, label: str) -> float:
        pipes[name].send(label)
        return float(works[name][label][1] / pipes[name].recv())

    rows = []
    for label, (unit, _) in (works["machine"] | works[args.backend]).items():
        if label in works["machine"]:
            values = [rate("machine", label) for _ in range(args.rounds)]
            rows.append({"what": label, "unit": unit, "rate": statistics.median(values)})
            print(f"{label:42s} {rows[-1]['rate']:8.1f} {unit}", flush=True)
            continue
        pairs = [(rate(args.backend, label), rate("numpy", label)) for _ in range(args.rounds)]
        ours, ratio = statistics.median(a for a, _ in pairs), statistics.median(a / b for a, b in pairs)
        rows.append({"what": label, "unit": unit, "rate": ours, "over_numpy": ratio})
        print(f"{label:42s} {ours:8.1f} {unit:8s} {ratio:6.1f} times NumPy", flush=True)
    for pipe in pipes.values():
        pipe.send(None)
    if args.json:
        facts = {"backend": args.backend, "threads": args.threads, "cpu": _cpu(), "rows": rows}
        args.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
