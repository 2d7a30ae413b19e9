"""Our backends' side of a whole step: `Trainer.step`, a reverse step, and chains of reverse steps."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.cases import Job
from benchmarks.contestant import Clock, Contestant, mean_clock, one_clock
from benchmarks.problem import SAMPLING, STEP, Problem, make_problem, random_images, train_settings
from ddpm_ref.discovery import get_backend
from ddpm_ref.nn.params import Params
from ddpm_ref.nn.unet import UNet
from ddpm_ref.objective import simple_loss
from ddpm_ref.random import Purpose
from ddpm_ref.schedule import Schedule
from ddpm_ref.train import Trainer, TrainState


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


def memory_of(backend: Any) -> Callable[[], dict[str, float | None]]:
    """Of a GPU, what its pool holds; of a CPU nothing but the process."""
    if not on_gpu(backend):
        return dict
    from benchmarks.gpu_steps import pool_memory

    return lambda: pool_memory(backend.run)


def contestant(job: Job, backend: Any, clock: Clock) -> Contestant:
    """This job on a backend."""
    if job.what == "reach":
        from benchmarks.runs import reach

        return reach(job, backend, one_clock)
    problem = make_problem(job)
    if job.what in SAMPLING:
        return _sampler(job, backend, clock, problem)
    return _training(job, backend, clock, problem)


def gradients(problem: Problem, backend: Any) -> dict[str, Any]:
    """The output on the problem's batch, and the gradient of L_simple."""
    net, params, x, t, eps = problem
    move = backend.to_device
    output, backward = net(params.like(move(params.vector)), move(x), t, backend)
    _, grads = backward(simple_loss(output, move(eps))[1])
    host = Params(backend.to_host(grads.vector), grads.shapes)
    return {"output": [backend.to_host(output)], "gradient": problem.ordered(host.views)}


def _training(job: Job, backend: Any, clock: Clock, problem: Problem) -> Contestant:
    """Lines 2-5 of Algorithm 1 on random pictures, each step with draws of its own; the first, to be compared with
    others', without dropout."""
    results = gradients(problem, backend)
    m, v, ema = (np.zeros_like(problem.params.vector) for _ in range(3))
    state = TrainState(0, problem.params.vector.copy(), ema, m, v)
    plain = UNet(replace(problem.net.config, dropout=0.0))
    images, settings, dtype = random_images(job), train_settings(job), problem.x.dtype.type
    how: dict[str, Any] = {"dtype": dtype}
    first = Trainer(plain, Schedule.linear(), images, settings, backend, state=state, **how)
    first.step()
    state = first.host_state()
    results["update"] = list(problem.moved(state.network(plain)))
    results["ema"] = list(problem.moved(state.network(plain, "ema")))
    trainer = Trainer(problem.net, Schedule.linear(), images, settings, backend, state=state, **how)
    version, seen = str(backend.describe()), {"loss": 0.0}
    if on_gpu(backend):
        from benchmarks.gpu_steps import whole_steps

        steps = whole_steps(backend, trainer)
        last = lambda: steps(1)[-1].loss  # noqa: E731
        return Contestant(version, {"": steps.launch}, results, _nothing, clock, last_loss=last)

    def step() -> None:
        seen["loss"] = trainer.step().loss

    return Contestant(version, {"": step}, results, _nothing, clock, last_loss=lambda: seen["loss"])


def _sampler(job: Job, backend: Any, clock: Clock, problem: Problem) -> Contestant:
    """One reverse step at t = 500 from a new x_t each round; or steps that each go on from the one before, from a new
    x_T each round."""
    net, params, x, _, _ = problem
    params = params.like(backend.to_device(params.vector))
    schedule, model, samples = Schedule.linear(), net.bind(params, backend), np.arange(job.batch)
    results = {"output": [backend.to_host(model(backend.to_device(x), STEP))]}
    facts: dict[str, Any] = {"version": str(backend.describe()), "results": results}
    if on_gpu(backend):
        from benchmarks.gpu_steps import quiet_step, reverse_calls

        results["step"] = [quiet_step(backend, model, schedule, x, STEP) - x]
        return Contestant(clock=one_clock if job.whole else clock, **facts, **reverse_calls(job, backend, model))
    noise = _starts(backend, problem)
    now = {"x": x, "t": STEP}

    def draw(_round: int) -> None:
        now["x"], now["t"] = next(noise), job.T

    def reverse(t: int, temperature: float = 1.0) -> Any:
        output = model(now["x"], t)
        return backend.p_sample(schedule, now["x"], t, output, 0, samples, clip=True, temperature=temperature)[0]

    def onward() -> None:
        now["x"] = reverse(now["t"])
        now["t"] -= 1
        if not now["t"]:
            draw(0)

    results["step"] = [reverse(STEP, temperature=0.0) - x]
    whole = job.whole or job.what == "chain"
    call = (lambda: reverse(STEP)) if job.what == "sample" else (lambda: _times(job.T, onward)) if whole else onward
    clocks = {"sample": clock, "chain": clock, "images": one_clock if job.whole else mean_clock}
    return Contestant(calls={"": call}, draw=draw, clock=clocks[job.what], **facts)


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
