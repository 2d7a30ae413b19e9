"""Our backends' side of a whole step: `Trainer.step`, a reverse step, and chains of reverse steps."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.cases import Job
from benchmarks.contestant import Clock, Contestant, mean_clock, one_clock
from benchmarks.problem import SAMPLING, STEP, Problem, make_problem, random_images
from ddpm_ref.discovery import get_backend
from ddpm_ref.nn.params import Params
from ddpm_ref.objective import simple_loss
from ddpm_ref.random import Purpose
from ddpm_ref.schedule import Schedule
from ddpm_ref.train import Trainer, TrainSettings, TrainState


def backend_and_clock(name: str, job: Job, clock: Clock) -> tuple[Any, Clock]:
    """The backend of this name, and what times it: events where it runs on a GPU."""
    if name.partition(" ")[0] != "cupy":
        return get_backend(name, job.threads), clock
    from benchmarks.gpu_steps import event_clock, make_backend

    backend = make_backend(job.precision, graphs=name != "cupy eager")
    return backend, event_clock(backend.run)


def on_gpu(backend: Any) -> bool:
    """Whether this is our backend on a GPU."""
    return backend.name == "cupy"


def memory_of(backend: Any) -> Callable[[], dict[str, float]]:
    """Of a GPU, what its pool and the whole device hold; of a CPU nothing but the process."""
    if not on_gpu(backend):
        return dict
    from benchmarks.gpu_steps import device_memory

    return lambda: device_memory(backend.run)


def contestant(job: Job, backend: Any, clock: Clock) -> Contestant:
    """This job on a backend."""
    if job.what == "reach":
        from benchmarks.runs import reach

        return reach(job, backend, one_clock)
    problem = make_problem(job)
    if job.what in SAMPLING:
        return _sampler(job, backend, clock, problem)
    return Contestant(
        str(backend.describe()), {"": _training(job, backend, problem)}, gradients(problem, backend), _nothing, clock
    )


def gradients(problem: Problem, backend: Any) -> dict[str, Any]:
    """The output on the problem's batch, and the gradient of L_simple."""
    net, params, x, t, eps = problem
    move = backend.to_device
    output, backward = net(params.like(move(params.vector)), move(x), t, backend)
    _, grads = backward(simple_loss(output, move(eps))[1])
    host = Params(backend.to_host(grads.vector), grads.shapes)
    return {"output": [backend.to_host(output)], "gradient": problem.ordered(host.views)}


def _training(job: Job, backend: Any, problem: Problem) -> Callable[[], Any]:
    """Lines 2-5 of Algorithm 1 on random pictures, each step with draws of its own."""
    m, v, ema = (np.zeros_like(problem.params.vector) for _ in range(3))
    state = TrainState(0, problem.params.vector.copy(), ema, m, v)
    settings = TrainSettings(batch=job.batch)
    dtype = problem.x.dtype.type
    images = random_images(job)
    trainer = Trainer(problem.net, Schedule.linear(), images, settings, backend, dtype=dtype, state=state)
    if on_gpu(backend):
        from benchmarks.gpu_steps import whole_steps

        return whole_steps(backend, trainer)
    return trainer.step


def _sampler(job: Job, backend: Any, clock: Clock, problem: Problem) -> Contestant:
    """One reverse step at t = 500 from a new x_t each round; or steps that each go on from the one before."""
    net, params, x, _, _ = problem
    params = params.like(backend.to_device(params.vector))
    schedule, model, samples = Schedule.linear(), net.bind(params, backend), np.arange(job.batch)
    results = {"output": [backend.to_host(model(backend.to_device(x), STEP))]}
    facts: dict[str, Any] = {"version": str(backend.describe()), "results": results}
    if on_gpu(backend):
        from benchmarks.gpu_steps import reverse_calls

        return Contestant(clock=clock, **facts, **reverse_calls(job, backend, model, schedule))
    noise = _starts(backend, problem)
    now = {"x": next(noise), "t": job.T}

    def draw(_round: int) -> None:
        now["x"] = next(noise)

    def one() -> Any:
        return backend.p_sample(schedule, now["x"], STEP, model(now["x"], STEP), 0, samples, clip=True)

    def onward() -> None:
        t = now["t"]
        now["x"], _ = backend.p_sample(schedule, now["x"], t, model(now["x"], t), 0, samples, clip=True)
        now["t"] = t - 1
        if t == 1:
            now["x"], now["t"] = next(noise), job.T

    if job.what == "sample":
        return Contestant(calls={"": one}, draw=draw, clock=clock, **facts)
    if job.what == "chain":
        return Contestant(calls={"": lambda: _times(job.T, onward)}, draw=_nothing, clock=clock, **facts)
    return Contestant(calls={"": onward}, draw=_nothing, clock=mean_clock, **facts)


def _starts(backend: Any, problem: Problem) -> Iterator[Any]:
    """x_T after x_T."""
    samples, shape = np.arange(len(problem.x)), problem.x.shape[1:]
    for seed in itertools.count():
        yield backend.normal(seed, Purpose.X_T, 0, samples, shape).astype(problem.x.dtype, copy=False)


def _times(count: int, call: Callable[[], Any]) -> None:
    for _ in range(count):
        call()


def _nothing(_round: int) -> None:
    """Every step draws anew by itself."""
