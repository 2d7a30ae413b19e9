"""What a contender's process holds once it is made, the clocks that time it, and how much memory it has used."""

import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Call = Callable[[], Any]
Clock = Callable[[Call, float], float]
"""clock(call, seconds) -> seconds of one call, from as many calls as fit the seconds, one at least."""


@dataclass
class Contestant:
    """One contender, ready for its rounds.

    calls: what is timed, by the name of the job's part.  results: "output" and "gradient", arrays in the order in
    which every side gives them.  draw: new random inputs for a round.  facts: more for the row, such as steps.
    memory: more of it than that of the process, in GiB.  last_loss: of the step timed last, where there is one.
    """

    version: str
    calls: dict[str, Call]
    results: Mapping[str, Iterable[np.ndarray]]
    draw: Callable[[int], None]
    clock: Clock
    memory: Callable[[], dict[str, float | None]] = dict
    last_loss: Callable[[], float] | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def median_clock(call: Call, seconds: float) -> float:
    """The median call."""
    times: list[float] = []
    spent = 0.0  # kept, not summed anew: of a loop of microseconds there are many thousands
    while spent < seconds or not times:
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
        spent += times[-1]
    return statistics.median(times)


def mean_clock(call: Call, seconds: float) -> float:
    """Of consecutive calls, each of which goes on from the one before."""
    calls, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds or not calls:
        call()
        calls += 1
    return (time.perf_counter() - begun) / calls


def one_clock(call: Call, seconds: float) -> float:
    """A single call, such as a whole run."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def peak_memory() -> float | None:
    """The most memory this process has held, GiB; None where the system does not tell.

    On Linux the mark of this program's memory (VmHWM): getrusage's begins with that of the process that started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next((one for one in status.read_text().splitlines() if one.startswith("VmHWM")), None)
        if line:
            return int(line.split()[1]) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return _peak_by_psutil()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def _peak_by_psutil() -> float | None:
    try:
        import psutil

        return float(psutil.Process().memory_info().peak_wset / 2**30)
    except (ImportError, AttributeError):
        return None
