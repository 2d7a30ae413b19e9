"""Level loops: every operation of the backend contract and its adjoint, at the shapes that the presets' steps have.

Where a preset has many shapes of one operation, those that take most of its step stay (`MOST`); all with --full.
"""

from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from benchmarks.cases import CASES, Job
from benchmarks.contestant import Contestant
from benchmarks.work import Loop, Work, step_loops
from ddpm_ref.schedule import Schedule

MOST = {"conv3x3": 2}
"""Shapes of an operation that are timed by default, 1 of the others; of cifar10's convolutions twice as many."""
QUICK = ("conv3x3", "group_norm", "attention", "dense", "update")
"""The handful that --quick takes one of."""
PEERS = {
    "conv3x3": ("torch contiguous", "torch channels_last"),
    "group_norm": ("torch contiguous", "torch channels_last"),
    "attention": ("torch contiguous",),
    "dense": ("torch contiguous",),
}
"""Operations that PyTorch has as one function, with the layouts that they have: rows of numbers have one."""
BALANCE = 10
"""Operations that a machine does while it moves a byte, roughly: to tell which loops are costly."""


def preset_loops(preset: str, batches: tuple[int | None, ...], full: bool) -> list[Loop]:
    """The loops of a preset's training and sampling step, the costliest of each operation first.

    batches: for training and for sampling, the case's where None. Sampling's are listed with `full` only, except
    what training does not have.
    """
    case = CASES[preset]
    n, m = batches[0] or case.train, batches[1] or case.sample
    calls: Counter[tuple[Loop, str]] = step_loops(case.config, n, "train")
    sampling = step_loops(case.config, m, "sample")
    size = case.config.image_size
    sampling[Loop("normal", (m, size, size, case.config.channels)), "forward"] = 1  # x_T
    known = {loop.operation for loop, _ in calls}
    calls.update({key: times for key, times in sampling.items() if full or key[0].operation not in known})
    cost: Counter[Loop] = Counter()
    for (loop, direction), times in calls.items():
        if loop.operation == "plus":  # timed with whole steps alone
            continue
        work = loop.forward() if direction == "forward" else loop.adjoint()
        cost[loop] += int(times * (work.flops + BALANCE * work.bytes)) if work else 0
    by_cost = sorted(cost, key=lambda loop: -cost[loop])
    return by_cost if full else _costliest(by_cost, preset)


def _costliest(loops: list[Loop], preset: str) -> list[Loop]:
    """The first few of each operation, and always a convolution of stride 2."""
    kept: list[Loop] = []
    for loop in loops:
        most = MOST.get(loop.operation, 1) * (2 if preset == "cifar10" and loop.operation == "conv3x3" else 1)
        if sum((one.operation, one.stride) == (loop.operation, loop.stride) for one in kept) < (
            most if loop.stride == 1 else 1
        ):
            kept.append(loop)
    return kept


def jobs(options: Any) -> list[Job]:
    """One for each loop, by our backends; what PyTorch has too, on a CPU, beside it."""
    made: dict[Loop, Job] = {}
    for preset in options.presets:
        for batch in options.batch or [None]:
            loops = preset_loops(preset, (batch, batch), options.level == "full")
            if options.level == "quick":
                loops = [next(one for one in loops if one.operation == operation) for operation in QUICK]
            for loop in loops:
                if loop not in made:
                    made[loop] = _job(loop, preset, options)
    quick = options.level == "quick"
    return list(made.values())[: len(QUICK)] if quick else list(made.values())


def _job(loop: Loop, preset: str, options: Any) -> Job:
    itemsize = np.dtype(options.dtype).itemsize
    parts: list[tuple[str, Work]] = [("", loop.forward(itemsize))]
    if adjoint := loop.adjoint(itemsize):
        parts.append((", adjoint", adjoint))
    batch = 1 if loop.operation == "update" else loop.shape[0]
    peers = [peer for peer in PEERS.get(loop.operation, ()) if peer in options.peers]
    return Job(
        "loops", loop.name, loop.operation, preset, CASES[preset].config, batch, tuple(parts),
        contenders=(*options.backends, *peers), threads=options.threads, dtype=options.dtype,
        precision=options.precision, loop=loop, seconds=0.1 if options.level == "full" else 0.05,
        rounds=options.rounds_of("loops"),
    )  # fmt: skip


# --- in a contender's own process ------------------------------------------------------------------------------------


def contestant(job: Job, backend: Any, clock: Callable[..., float]) -> Contestant:
    """The loop on fresh numbers, ready to be called, with its results for the comparison."""
    assert job.loop is not None
    side = _Side(job.loop, backend, np.dtype(job.dtype))
    side.draw(0)
    results = {"output": side.outputs()}
    calls: dict[str, Callable[[], Any]] = {"": side.forward}
    if len(job.parts) > 1:
        results["gradient"] = side.gradients()
        calls[", adjoint"] = side.adjoint
    return Contestant(str(backend.describe()), calls, results, side.draw, clock)


class _Side:
    """A loop's arguments on a backend, and the calls."""

    def __init__(self, loop: Loop, backend: Any, dtype: np.dtype) -> None:
        self.loop, self.on, self.dtype = loop, backend, dtype
        self.round = 0

    def draw(self, round_: int) -> None:
        """New arguments, and a new dy: never zeros, never the same twice."""
        rng = np.random.default_rng([7, round_])
        self.round = round_
        kind = np.float32 if self.dtype == np.float32 else np.float64

        def normal(*shape: int) -> Any:
            return self.on.to_device(rng.standard_normal(shape, dtype=kind))

        self.arguments = ARGUMENTS.get(self.loop.operation, shape_only)(self.loop, normal, rng, self.on, kind)
        y, self.backward = None, None
        if self.loop.adjoint():
            y, self.backward = self.forward()
            self.dy = normal(*y.shape)

    def forward(self) -> Any:
        """One call of the operation."""
        return _CALLS[self.loop.operation](self.on, self.loop, self.arguments, self.round)

    def adjoint(self) -> Any:
        """One call of its adjoint."""
        return self.backward(self.dy)  # type: ignore[misc]

    def outputs(self) -> list[np.ndarray]:
        """What the operation returns, or changes."""
        found = self.forward()
        if self.loop.operation == "update":
            return [self.on.to_host(a) for i, a in enumerate(self.arguments) if i != 1]
        parts = found if isinstance(found, tuple) else (found,)
        return [self.on.to_host(a) for a in parts if not callable(a)]

    def gradients(self) -> list[np.ndarray]:
        """What its adjoint returns."""
        found = self.adjoint()
        return [self.on.to_host(a) for a in (found if isinstance(found, tuple) else (found,))]


def shape_only(loop: Loop, normal: Any, *_: Any) -> list[Any]:
    return [normal(*loop.shape)]


def _filters(loop: Loop, normal: Any, *_: Any) -> list[Any]:
    kernel = (3, 3) if loop.operation == "conv3x3" else ()
    return [normal(*loop.shape), normal(*kernel, loop.shape[-1], loop.width), normal(loop.width)]


def _uniforms(loop: Loop, normal: Any, rng: np.random.Generator, on: Any, kind: Any) -> list[Any]:
    return [normal(*loop.shape), on.to_device(rng.random(loop.shape, dtype=np.float32))]


def _vectors(loop: Loop, normal: Any, *_: Any) -> list[Any]:
    """θ, g, m, v ≥ 0 and EMA."""
    vectors = [normal(*loop.shape) for _ in range(5)]
    vectors[3] *= vectors[3]
    return vectors


ARGUMENTS: dict[str, Callable[..., list[Any]]] = {
    "conv3x3": _filters,
    "dense": _filters,
    "group_norm": lambda loop, normal, *_: [normal(*loop.shape), *(normal(loop.shape[-1]) for _ in range(2))],
    "attention": lambda loop, normal, *_: [normal(*loop.shape) for _ in range(3)],
    "concat": lambda loop, normal, *_: [normal(*loop.shape), normal(*loop.shape[:-1], loop.width)],
    "add": lambda loop, normal, *_: [normal(*loop.shape) for _ in range(2)],
    "dropout": _uniforms,
    "update": _vectors,
    "normal": lambda *_: [],
    "uniform": lambda *_: [],
    "p_sample": lambda loop, normal, *_: [normal(*loop.shape) for _ in range(2)],
}


def _stream(purpose: str) -> Callable[..., Any]:
    def call(on: Any, loop: Loop, _arguments: list[Any], round_: int) -> Any:
        from ddpm_ref.random import Purpose

        samples = np.arange(loop.shape[0])
        draw = on.normal if purpose == "EPS" else on.uniform
        return draw(round_, Purpose[purpose], 1, samples, loop.shape[1:])

    return call


def _update(on: Any, loop: Loop, vectors: list[Any], round_: int) -> float:
    from ddpm_ref.nn.optim import AdamSettings

    return float(on.update(*vectors, 9, AdamSettings()))


_linear = cache(Schedule.linear)


def _q_sample(on: Any, loop: Loop, arguments: list[Any], round_: int) -> Any:
    n = loop.shape[0]
    t = 1 + np.random.default_rng(round_).integers(0, 1000, n)
    return on.q_sample(_linear(), arguments[0], t, round_, 1, np.arange(n))


def _p_sample(on: Any, loop: Loop, arguments: list[Any], round_: int) -> Any:
    x_t, output = arguments
    return on.p_sample(_linear(), x_t, 500, output, round_, np.arange(len(x_t)), clip=True)


_CALLS: dict[str, Callable[..., Any]] = {
    "conv3x3": lambda on, loop, a, _: on.conv3x3(*a, stride=loop.stride),
    "dense": lambda on, loop, a, _: on.dense(*a),
    "group_norm": lambda on, loop, a, _: on.group_norm(*a, loop.width, silu=loop.option == "silu"),
    "attention": lambda on, loop, a, _: on.attention(*a),
    "upsample": lambda on, loop, a, _: on.upsample(*a),
    "concat": lambda on, loop, a, _: on.concat(*a),
    "add": lambda on, loop, a, _: on.add(*a),
    "dropout": lambda on, loop, a, _: on.dropout(*a, 0.1),
    "update": _update,
    "normal": _stream("EPS"),
    "uniform": _stream("DROPOUT"),
    "q_sample": _q_sample,
    "p_sample": _p_sample,
}
