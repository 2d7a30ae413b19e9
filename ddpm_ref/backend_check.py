"""`check_backend`: whether somebody's backend computes what the NumPy one does, by functions that anyone can call."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ddpm_ref import backend_cases as cases
from ddpm_ref.backend import OPERATIONS, Backend, Description
from ddpm_ref.backend_cases import LAYOUTS, check_case, check_values
from ddpm_ref.backend_manners import check_nan, check_together
from ddpm_ref.backend_steps import (
    SAMPLES,
    check_p_sample,
    check_q_sample,
    check_random,
    check_update,
    check_update_refuses,
)
from ddpm_ref.nn.optim import AdamSettings
from ddpm_ref.random import Purpose
from ddpm_ref.reverse import PARAMETRISATIONS
from ddpm_ref.schedule import Schedule

Check = Callable[[], float]
DTYPES = (np.float32, np.float64)

CASES = [
    # N, H, W, C, D: one pixel, one channel, odd sizes, channels beside multiples of 8 and 16, sizes of a real network.
    *(
        cases.conv3x3(*shape, stride=stride, per_image=shape[0] % 2 == 0)
        for shape in [
            (1, 1, 1, 1, 1), (2, 1, 5, 3, 4), (1, 3, 2, 8, 16), (2, 5, 7, 3, 16), (3, 8, 8, 16, 8), (2, 4, 4, 32, 64),
            (1, 9, 6, 20, 24), (4, 6, 10, 16, 3), (1, 2, 2, 40, 33), (2, 16, 16, 32, 32), (3, 12, 5, 64, 16),
        ]
        for stride in (1, 2)
    ),
    cases.conv3x3(2, 4, 4, 128, 128),
    *(
        cases.conv3x3(*shape, stride=stride, per_image=shape[0] % 2 == 0, plus=True)
        for shape in [(1, 1, 1, 1, 1), (2, 5, 7, 3, 16), (1, 9, 6, 20, 24), (2, 4, 4, 32, 64), (3, 12, 5, 64, 16)]
        for stride in (1, 2)
    ),
    *(
        cases.dense(shape, d)
        for shape, d in [
            ((1, 1), 1), ((3, 5), 7), ((2, 3, 8), 16), ((5, 32), 128), ((2, 3, 5, 16), 24), ((1, 9, 40), 33),
        ]
    ),
    *(
        cases.dense(shape, d, plus=plus)
        for shape, d in [((1, 1), 1), ((3, 5), 7), ((5, 32), 128), ((2, 3, 5, 16), 24), ((1, 9, 40), 33)]
        for plus in ("y", "dx")
    ),
    *(
        cases.group_norm(*shape, silu=silu)
        for shape in [
            (1, 1, 1, 1, 1), (1, 1, 1, 4, 4), (2, 3, 5, 6, 2), (1, 4, 4, 32, 8), (3, 7, 1, 24, 3), (2, 8, 8, 64, 32),
            (2, 5, 5, 20, 5), (1, 2, 2, 96, 32),
        ]
        for silu in (False, True)
    ),
    cases.group_norm(2, 8, 8, 32, 8, silu=True, mean=30.0),
    *(
        cases.group_norm(*shape, silu=silu, plus=True)
        for shape in [(1, 1, 1, 1, 1), (2, 3, 5, 6, 2), (2, 8, 8, 64, 32), (1, 2, 2, 96, 32)]
        for silu in (False, True)
    ),
    *(cases.attention(*shape) for shape in [(1, 1, 1), (2, 7, 6), (1, 16, 8), (2, 64, 32), (1, 25, 20), (3, 9, 64)]),
    cases.attention(2, 20, 16, size=60), *(cases.attention(2, 12, 16, logit=logit) for logit in (-200, 200)),
    *(cases.upsample(*shape) for shape in [(1, 1, 1, 1), (2, 3, 5, 6), (1, 4, 4, 32), (2, 2, 7, 20)]),
    *(cases.concat(*shape) for shape in [(1, 1, 1, 1, 1), (2, 3, 5, 6, 2), (1, 4, 4, 32, 16), (2, 7, 2, 20, 33)]),
    *(cases.add(shape) for shape in [(1, 1, 1, 1), (2, 3, 5, 6), (3, 8, 8, 96), (2, 5)]),
    *(
        cases.dropout(shape, rate)
        for shape, rate in [((1, 1, 1, 1), 0.5), ((2, 3, 5, 6), 0.1), ((2, 8, 8, 32), 0.3), ((2, 3, 4, 8), 0.0)]
    ),
]  # fmt: skip

LARGE_CASES = [
    cases.conv3x3(8, 32, 32, 64, 64, per_image=True),
    cases.conv3x3(24, 32, 31, 16, 48, plus=True),
    cases.conv3x3(40, 16, 16, 128, 32),
    cases.conv3x3(9, 33, 32, 32, 64, stride=2),
    cases.dense((2050, 272), 208, plus="y"),
    cases.dense((2050, 272), 208, plus="dx"),
    cases.group_norm(6, 32, 32, 192, 32, silu=True, plus=True),
    cases.attention(3, 256, 96),
]
"""More than a few tiles, blocks and threads' shares: float32 values and gradients alone."""

NAN_CASES = [
    cases.conv3x3(5, 7, 6, 16, 24, per_image=True), cases.conv3x3(5, 6, 4, 6, 7, stride=2),
    cases.dense((5, 3, 16), 24), cases.dense((5, 2, 7), 6),
    cases.conv3x3(5, 7, 6, 16, 32, plus=True), cases.conv3x3(5, 6, 4, 6, 7, stride=2, plus=True),
    cases.dense((5, 3, 16), 32, plus="y"), cases.dense((5, 3, 16), 32, plus="dx"),
    cases.group_norm(5, 4, 3, 32, 8, silu=True, plus=True),
    cases.group_norm(5, 4, 3, 32, 8, silu=True), cases.group_norm(5, 3, 3, 6, 2, silu=False),
    cases.attention(5, 9, 16), cases.attention(5, 7, 6),
    cases.upsample(5, 3, 2, 16), cases.concat(5, 2, 3, 8, 16), cases.add((5, 3, 4, 16)),
    cases.dropout((5, 3, 4, 8), 0.5),
]  # fmt: skip
"""Five images, and nothing else that begins with five."""

KEYS = [
    (2**63 + 5, Purpose.EPS, 3), (5, Purpose.DROPOUT, 2**16 + 3), (2**32 + 5, Purpose.Z, 2**32 - 1),
    (2**64 - 1, Purpose.X_T, 0),
]  # fmt: skip
"""Seeds, purposes and steps of which every bit counts."""

STREAMS: list[tuple[Sequence[int], tuple[int, ...]]] = [
    ([0], (1,)), (SAMPLES, (3, 5)), (SAMPLES, (4, 4, 3)), (range(9), (32, 32, 3)),
]  # fmt: skip

UPDATES = [
    (1, 1, AdamSettings(warmup=0)),
    (7, 2, AdamSettings(lr=2e-3, warmup=5, ema=0.9)),
    (1000, 3, AdamSettings(lr=1e-3, warmup=1, clip_norm=None)),
    (65_537, 900, AdamSettings(clip_norm=1e9)),
    (200_003, 12, AdamSettings(lr=0.1, warmup=0, clip_norm=0.5)),
    (75, 4, AdamSettings(epsilon=0.3, beta_1=0.5, beta_2=0.9)),
]


class Report(NamedTuple):
    """What `check_backend` held the backend to: by operation, how many checks, and the largest error found as a share
    of what is allowed."""

    backend: Description
    checks: dict[str, int]
    largest: dict[str, float]

    def __str__(self) -> str:
        lines = [
            f"{name:11s} {count:4d} checks hold, largest error {self.largest[name]:6.1%} of what is allowed"
            for name, count in self.checks.items()
        ]
        return "\n".join([*lines, f"{self.backend.name} does what NumPy does"])


def check_backend(backend: Backend) -> Report:
    """Hold a backend to the contract, over a fixed list of shapes, float32 and float64, contiguous and strided arrays.

    For each operation: values, gradients, the adjoint identity on the backend itself, dtypes, inputs left as they were,
    results that share no memory with them or with those of other calls, adjoints that any calls may come before, the
    same bits again, NaN where NumPy has it, signatures equal to `Backend`'s; for the counted random numbers the same
    bits as NumPy's. Large shapes: values and gradients alone. Allowed errors: `backend_bounds`. Takes seconds.
    Raises AssertionError that lists every operation, shape and dtype for which something is wrong, and by how much.
    """
    counts: dict[str, int] = {}
    largest: dict[str, float] = {}
    wrong: list[str] = []
    for name, check in _checks(backend):
        counts[name] = counts.get(name, 0) + 1
        try:
            largest[name] = max(largest.get(name, 0.0), check())
        except AssertionError as error:
            wrong.append(str(error))
        except Exception as error:  # whatever somebody's operation raises
            where = " ".join(str(getattr(a, "name", a)) for a in getattr(check, "args", ())[1:] if a is not CASES)
            wrong.append(f"{name}: raised {type(error).__name__}: {error} ({where})")
    if wrong:
        total = sum(counts.values())
        raise AssertionError("\n".join([f"{backend.name}: {len(wrong)} of {total} checks do not hold", *wrong]))
    return Report(backend.describe(), counts, largest)


def _checks(backend: Backend) -> Iterator[tuple[str, Check]]:
    """Every check by its operation; each returns its largest error as a share of what is allowed."""
    for name in (*OPERATIONS, "to_device", "to_host"):
        yield name, partial(check_signature, backend, name)
    for case in CASES:
        for dtype in DTYPES:
            for layout in LAYOUTS:
                yield case.name, partial(check_case, backend, case, dtype, layout)
    for name in ("normal", "uniform"):
        for samples, shape in STREAMS:
            for layer in (0, 2**24 - 1):
                yield name, partial(check_random, backend, name, samples, shape, layer=layer)
        for seed, purpose, step in KEYS:
            yield name, partial(check_random, backend, name, SAMPLES, (5,), seed=seed, purpose=purpose, step=step)
    for case in LARGE_CASES:
        yield case.name, partial(check_values, backend, case)
    for dtype in DTYPES:
        yield "together", partial(check_together, backend, CASES, dtype)
        for case in NAN_CASES:
            yield case.name, partial(check_nan, backend, case, dtype)
        yield "to_host", partial(check_moves, backend, dtype)
        for size, step, settings in UPDATES:
            yield "update", partial(check_update, backend, size, step, settings, dtype)
        for bad in (np.nan, np.inf):
            yield "update", partial(check_update_refuses, backend, bad, dtype)
        for shape in [(1, 1, 1, 1), (5, 3, 5, 3), (4, 8, 8, 16)]:
            for one_t in (False, True):
                yield "q_sample", partial(check_q_sample, backend, shape, dtype, one_t=one_t)
            yield from _reverse_steps(backend, shape, dtype)
        yield from _on_another_schedule(backend, dtype)


def _reverse_steps(backend: Backend, shape: tuple[int, ...], dtype: type) -> Iterator[tuple[str, Check]]:
    """Every kind of reverse step at the ends and in between."""
    for predicts in PARAMETRISATIONS:
        for t in (1, 2, 500, 1000):
            for clip in (False, True):
                yield "p_sample", partial(check_p_sample, backend, shape, t, dtype, predicts=predicts, clip=clip)
    for var in ("beta_tilde", "learned", np.linspace(0, 0.02, 1001)):
        for t in (1, 2, 1000):
            yield "p_sample", partial(check_p_sample, backend, shape, t, dtype, var=var, clip=True, temperature=0.7)


def _on_another_schedule(backend: Backend, dtype: type) -> Iterator[tuple[str, Check]]:
    """Coefficients and variances are those of the schedule that is given."""
    shape, schedule = (5, 4, 3, 2), Schedule.cosine(400)
    for one_t in (False, True):
        yield "q_sample", partial(check_q_sample, backend, shape, dtype, one_t=one_t, schedule=schedule)
    for how in ({"var": "beta_tilde"}, {"var": np.linspace(0, 0.3, 401)}, {"predicts": "v", "clip": True}):
        for t in (1, 2, 400):
            yield "p_sample", partial(check_p_sample, backend, shape, t, dtype, schedule=schedule, **how)


def check_signature(backend: Backend, name: str) -> float:
    """The method takes what `Backend`'s takes: names, kinds and defaults."""

    def plain(method: Callable[..., object]) -> list[tuple[str, object, object]]:
        return [(p.name, p.kind, p.default) for p in inspect.signature(method).parameters.values()]

    ours, theirs = plain(getattr(Backend(), name)), plain(getattr(backend, name))
    assert theirs == ours, (
        f"{name}: wanted the parameters {inspect.signature(getattr(Backend(), name))}, "
        f"got {inspect.signature(getattr(backend, name))}"
    )
    return 0.0


def check_moves(backend: Backend, dtype: type) -> float:
    """Arrays come back from the device as NumPy arrays with the same values, dtype and shape."""
    grid: Any = np.arange(24, dtype=dtype).reshape(2, 3, 4)
    for x in (grid[:0, 0], grid[1, 2, 3:].reshape(()), grid, grid[:, ::2]):
        back = backend.to_host(backend.to_device(x))
        same = type(back) is np.ndarray and (back.dtype, back.shape) == (x.dtype, x.shape) and np.array_equal(back, x)
        assert same, f"to_host: to_device and back made {x!r} of type {type(x).__name__} {back!r}"
    return 0.0
