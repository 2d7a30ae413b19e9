"""Contenders, each in a process of its own that does nothing else.

A contender is one of our backends by its name or as "module:Class", or a peer by its name in `PEERS`. What its
libraries read from the environment is set before they load: as many threads as the job says, bound to their cores
(without OMP_PROC_BIND two threads that wait for each other are now and then left on one core by the system, for every
side alike), and nothing that holds NumPy's BLAS to kernels of older processors. Freed memory is kept for the next array
on every side (`ddpm_ref.memory`): who gives it back pays for the pages anew, a tenth of a step and more.
"""

import importlib.util
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.cases import Job
from benchmarks.contestant import Contestant, median_clock, peak_memory
from ddpm_ref.memory import keep_freed_memory

CPU_PEERS = ("torch contiguous", "torch channels_last", "torch compile", "jax jit")
GPU_PEERS = ("torch eager", "torch graph", "torch compiled graph", "torch autotune")
PEERS = (*CPU_PEERS, *GPU_PEERS)
COMPILED = ("torch compile", "torch autotune", "jax jit")
"""Those that compile the network, which of larger ones takes minutes."""
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMBA_NUM_THREADS")
HELD_BACK = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")


def is_ours(name: str) -> bool:
    """Whether a contender is a backend rather than a peer."""
    return name not in PEERS


def why_left_out(name: str) -> str | None:
    """Why a contender cannot run here, as far as that can be told without starting it."""
    if not is_ours(name):
        module = name.partition(" ")[0]
        return None if importlib.util.find_spec(module) else "not installed"
    from ddpm_ref.discovery import OURS, why_not

    return why_not(name) if name in OURS else None


@contextmanager
def environment(threads: int) -> Iterator[None]:
    """What a process that is started now will find in its environment."""
    kept = dict(os.environ)
    os.environ.update(dict.fromkeys(THREADS, str(threads)))
    for variable in HELD_BACK:
        os.environ.pop(variable, None)
    os.environ.setdefault("OMP_PROC_BIND", "true")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


class Worker:
    """A contender's process, from this side; leaving the context ends it."""

    def __init__(self, job: Job, name: str, folder: Path) -> None:
        context = get_context("spawn")
        self.name, self.folder = name, folder
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, job, name, folder), daemon=True)
        with environment(job.threads):
            self._process.start()
        theirs.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pipe.close()
        if self._process.is_alive():
            self._process.join(10 if self._stopped else 0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    _stopped = False

    def ready(self, patience: float) -> dict[str, Any] | str:
        """Facts about it once it is made and its first calls are done, or why it is left out."""
        if not self._pipe.poll(patience):
            self._process.kill()
            return f"not ready within {patience:.0f} s"
        return self._receive()

    def visit(self, round_: int, patience: float) -> dict[str, float] | str:
        """Seconds of each part in a round, or what went wrong."""
        return self._answer(round_, patience)

    def stop(self, patience: float = 60.0) -> dict[str, float | None] | str:
        """The memory it has used, or what went wrong."""
        self._stopped = True
        return self._answer(None, patience)

    def results(self, what: str) -> Path:
        """Where its "output" or "gradient" lies."""
        return result_path(self.folder, self.name, what)

    def _answer(self, request: int | None, patience: float) -> Any:
        """What it says to a request; a string if it says nothing any more."""
        try:
            self._pipe.send(request)
            if not self._pipe.poll(patience):
                self._process.kill()
                return f"no answer within {patience:.0f} s"
        except OSError:  # its end of the pipe is gone
            return self._ended()
        return self._receive()

    def _receive(self) -> Any:
        try:
            return self._pipe.recv()
        except (EOFError, OSError):
            return self._ended()

    def _ended(self) -> str:
        self._process.join(5)
        return f"its process ended with status {self._process.exitcode}"


def result_path(folder: Path, name: str, what: str) -> Path:
    """A file for a contender's numbers."""
    return folder / f"{''.join(c if c.isalnum() else '_' for c in name)}-{what}.bin"


# --- in the contender's own process ----------------------------------------------------------------------------------


def serve(pipe: Connection, job: Job, name: str, folder: Path) -> None:
    """Make the contender, write its results for the comparison, then time it at each request until None comes."""
    try:
        begun = time.perf_counter()
        keep_freed_memory()
        side = contestant(job, name)
        start = side.facts.pop("start_memory_gib")
        for what, arrays in side.results.items():
            with result_path(folder, name, what).open("wb") as file:
                for array in arrays:  # one at a time: a copy of all would count as its memory
                    array.tofile(file)
        side.results = {}
        side.draw(0)
        if job.warm_up:
            for call in side.calls.values():
                call()
        made = {"version": side.version, "start_memory_gib": start, "compile_seconds": time.perf_counter() - begun}
        pipe.send(made)
        while (round_ := pipe.recv()) is not None:
            side.draw(1 + round_)
            pipe.send({part: side.clock(call, job.seconds) for part, call in side.calls.items()} | side.facts)
        if side.last_loss is not None and not math.isfinite(loss := side.last_loss()):
            raise FloatingPointError(f"the loss of the last timed step is {loss}")
        pipe.send({"peak_memory_gib": peak_memory()} | side.memory())
    except (EOFError, BrokenPipeError):  # whoever asked is gone
        return
    except Exception as error:  # left out, and said so
        pipe.send(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")


def contestant(job: Job, name: str) -> Contestant:
    """The contender of this name for this job; its facts hold the memory before anything was made."""
    if name == "jax jit":
        from benchmarks.peers import jax_side

        return jax_side.contestant(job)
    if not is_ours(name):
        from benchmarks.peers import pytorch_side

        return pytorch_side.contestant(job, name)
    from benchmarks import loops, ours

    backend, clock = ours.backend_and_clock(name, job, median_clock)
    start = peak_memory()
    side = loops.contestant(job, backend, clock) if job.loop else ours.contestant(job, backend, clock)
    side.facts["start_memory_gib"] = start
    side.memory = ours.memory_of(backend)
    return side
