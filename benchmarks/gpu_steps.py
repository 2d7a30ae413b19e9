"""Our steps on a GPU and their times by events: what `gpu` and `python -m benchmarks --backends cupy` share."""

import statistics
from collections.abc import Callable
from typing import Any

MOST = 500
"""Calls in one visit: a chain of 1000 reverse steps that begins anew with each round does not end within it."""

BEFORE_CAPTURED = 4
"""Launches after which a graph is one: compiled, watched, captured, launched."""


def make_backend(precision: str, graphs: bool = True) -> Any:
    """Ours, in the precision of a job: float32 and float64 are fp32, which rounds nothing."""
    from ddpm_ref_cupy import CupyBackend
    from ddpm_ref_cupy.cuda import CudaDevice

    return CupyBackend(device=CudaDevice("fp32" if precision.startswith("float") else precision, graphs=graphs))


def whole_steps(backend: Any, trainer: Any) -> Any:
    """A trainer's steps: `launch` is one without looking at its loss."""
    from ddpm_ref_cupy.step import TrainingSteps

    return TrainingSteps(backend, trainer)


def timed(run: Any, step: Callable[[], Any], least: int = 20, milliseconds: float = 1500) -> list[float]:
    """Milliseconds of each of many steps, by events."""
    cuda = run.cupy.cuda
    times: list[float] = []
    spent = 0.0
    while len(times) < least or (spent < milliseconds and len(times) < MOST):
        start, end = cuda.Event(), cuda.Event()
        start.record(run.stream)
        step()
        end.record(run.stream)
        end.synchronize()
        times.append(cuda.get_elapsed_time(start, end))
        spent += times[-1]
    return times


def event_clock(run: Any) -> Callable[[Callable[[], Any], float], float]:
    """The median of as many calls as fit the seconds, each between two events that are waited for."""

    def clock(call: Callable[[], Any], seconds: float) -> float:
        call()  # what the card forgot while others had it
        return statistics.median(timed(run, call, 2, 1e3 * seconds)) / 1e3

    return clock


def pool_memory(run: Any) -> dict[str, float | None]:
    """GiB that CuPy's pool has taken, which it keeps."""
    return {"peak_memory_gib": run.cupy.get_default_memory_pool().total_bytes() / 2**30}


def training(backend: Any, case: str, batch: int) -> Callable[[], None]:
    """One training step on random pictures, without looking at its loss."""
    import numpy as np

    from benchmarks.cases import CASES
    from ddpm_ref import Schedule, UNet
    from ddpm_ref.files.data import ImageData
    from ddpm_ref.train import Trainer, TrainSettings

    net = UNet(CASES[case].config)
    size, channels = net.config.image_size, net.config.channels
    pixels = np.random.default_rng(0).integers(0, 256, (50_000, size, size, channels), dtype=np.uint8)
    trainer = Trainer(net, Schedule.linear(), ImageData(pixels, 256, "noise"), TrainSettings(batch=batch), backend)
    return whole_steps(backend, trainer).launch


def sampling(backend: Any, case: str, batch: int) -> Callable[[], None]:
    """One reverse step."""
    from benchmarks.cases import CASES
    from ddpm_ref import Schedule, UNet

    net, schedule = UNet(CASES[case].config), Schedule.linear()
    params = net.init(0)
    params = params.like(backend.to_device(params.vector))
    steps = chain(backend, net.bind(params, backend), schedule, net.config, batch)
    steps.begin(schedule.T)
    return steps.launch


def chain(backend: Any, model: Any, schedule: Any, config: Any, batch: int, seed: int = 0) -> Any:
    """Reverse steps of a batch of this network's images, from x_T on, as one graph."""
    import numpy as np

    from ddpm_ref.random import Purpose

    shape = config.image_size, config.image_size, config.channels
    x_T = backend.normal(seed, Purpose.X_T, 0, np.arange(batch), shape)
    return _reverse_steps(backend, model, schedule, x_T, seed, 1.0)


def quiet_step(backend: Any, model: Any, schedule: Any, x: Any, t: int) -> Any:
    """x_{t-1} from this x_t, NumPy's, with the noise off."""
    steps = _reverse_steps(backend, model, schedule, backend.to_device(x), 0, 0.0)
    steps.begin(t)
    steps.launch()
    return backend.to_host(steps.x_t)


def _reverse_steps(backend: Any, model: Any, schedule: Any, x_t: Any, seed: int, temperature: float) -> Any:
    import numpy as np
    from ddpm_ref_cupy.chain import ReverseSteps

    from ddpm_ref.reverse import reverse_variance

    how = dict(var=reverse_variance(schedule), clip=True, temperature=temperature)
    return ReverseSteps(backend, model, schedule, x_t, np.arange(len(x_t)), seed, **how)


def reverse_calls(job: Any, backend: Any, model: Any) -> dict[str, Any]:
    """What `contestant.Contestant` needs of a sampling job: calls and draw, of which each makes x_T and seed anew."""
    from ddpm_ref.schedule import Schedule

    now: dict[str, Any] = {}

    def draw(round_: int) -> None:
        # The seed is part of the graph: a graph of its own for each round, captured before the clock runs.
        now.clear()
        now["steps"] = chain(backend, model, Schedule.linear(), job.config, job.batch, seed=round_)
        now["steps"].begin(job.T)
        for _ in range(BEFORE_CAPTURED):
            now["steps"].launch()
        now["steps"].begin(job.T)
        backend.run.stream.synchronize()

    def whole() -> None:
        steps = now["steps"]
        steps.begin(job.T)
        for _ in range(job.T):
            steps.launch()
        backend.run.stream.synchronize()

    call = whole if job.what == "chain" or job.whole else lambda: now["steps"].launch()
    return {"calls": {"": call}, "draw": draw}


def best_product(precision: str, size: int) -> float:
    """Seconds of the fastest product of size x size matrices: PyTorch's, in bf16 of bf16 arrays; without it ours."""
    import importlib.util

    if importlib.util.find_spec("torch"):
        from benchmarks.peers.pytorch_gpu import best_product as of_torch

        return of_torch(precision, size)
    backend = make_backend(precision)
    run, random = backend.run, backend.run.cupy.random.default_rng(0)
    a, b = (random.standard_normal((size, size), dtype="float32") for _ in range(2))
    out = run.cupy.empty_like(a)
    return min(timed(run, lambda: run.matmul(a, b, out), 10, 500)) / 1e3
