"""Algorithm 2 as the experiments run it: from x_T or from any x_t, of a checkpoint's network or of any model."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ddpm_ref.checks import Array, check_int
from ddpm_ref.experiments.subject import Subject
from ddpm_ref.random import Purpose, normal
from ddpm_ref.reverse import Model, sample_steps
from ddpm_ref.sampling import batches, generate_steps
from ddpm_ref.schedule import Schedule

Progress = Callable[[int], object]
"""progress(n): n more batches have gone through the network."""


@dataclass(frozen=True, eq=False)
class Chain:
    """The reverse process with the noise of one seed; arrays are NumPy's whatever runs it.

    shape, dtype: of one image.
    run(samples, x_start, start): yields (t, x_t, x̂_0) as `generate_steps`, for images of these numbers.
    """

    schedule: Schedule
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    seed: int
    run: Callable[[Array, Array | None, int | None], Iterator[tuple[int, Array, Array]]]
    to_host: Callable[[Array], Array] = np.asarray

    def steps(
        self,
        samples: Array,
        at: Collection[int],
        *,
        x_start: Array | None = None,
        start: int | None = None,
        progress: Progress | None = None,
    ) -> Iterator[tuple[int, Array, Array]]:
        """(t, x_t, x̂_0) at the steps `at` of 0 … start, falling; nothing is run beyond the last of them."""
        last = min(at)
        for t, x_t, x_0 in self.run(samples, x_start, start):
            if progress is not None and t > 0:
                progress(1)
            if t in at:
                yield t, self.to_host(x_t), self.to_host(x_0)
            if t <= last:
                return

    def ends(
        self, samples: Array, x_start: Array, start: int, *, batch: int, progress: Progress | None = None
    ) -> Array:
        """x_0 of the chains that go on from x_start (N, ...) at step `start`, batch at a time; x_start itself at 0."""
        check_int("start", start, 0, self.schedule.T)
        samples = np.asarray(samples)
        if start == 0:
            return np.array(x_start)
        parts = []
        for rows in batches(len(samples), batch):
            steps = self.steps(samples[rows], (0,), x_start=x_start[rows], start=start, progress=progress)
            parts += [x_0 for _, x_0, _ in steps]
        return np.concatenate(parts)


def chain_of(subject: Subject, seed: int) -> Chain:
    """Algorithm 2 of a checkpoint, on its backend: image n is the one `ddpm-ref sample --seed SEED` numbers n."""
    net, params, backend = subject.checkpoint.net, subject.params, subject.backend

    def run(samples: Array, x_start: Array | None, start: int | None) -> Iterator[tuple[int, Array, Array]]:
        how = dict(subject.how, seed=seed, backend=backend, x_start=x_start, start=start)
        return generate_steps(net, params, subject.schedule, samples, subject.shape, **how)

    check_int("seed", seed, 0, 2**64 - 1)
    return Chain(subject.schedule, subject.shape, params.vector.dtype, seed, run, backend.to_host)


def chain_of_model(
    schedule: Schedule, model: Model, shape: tuple[int, ...], seed: int, *, dtype: DTypeLike = np.float64, **how: Any
) -> Chain:
    """The same for any model(x_t, t), an oracle say, with the same noise.  how: the keywords of `p_sample`."""
    check_int("seed", seed, 0, 2**64 - 1)

    def run(samples: Array, x_start: Array | None, start: int | None) -> Iterator[tuple[int, Array, Array]]:
        def z(t: int) -> Array:
            return normal(seed, Purpose.Z, t, samples, shape)

        x_T = normal(seed, Purpose.X_T, 0, samples, shape).astype(dtype) if x_start is None else x_start
        return sample_steps(schedule, model, x_T, z, start=start, **how)

    return Chain(schedule, shape, np.dtype(dtype), seed, run)


def evenly(T: int, parts: int, *, lowest: int = 0) -> tuple[int, ...]:
    """The steps T i / parts, i = parts … 0, rounded to whole steps >= lowest, each once: 1000, 900 … 0 of T = 1000."""
    steps = {max(lowest, round(T * i / parts)) for i in range(parts + 1)}
    return tuple(sorted(steps, reverse=True))


def falling_steps(name: str, steps: Sequence[int], T: int) -> tuple[int, ...]:
    """Chosen steps of 0 … T, falling; ValueError calling them `name` if there are none, others, or one twice."""
    if not steps or len(set(steps)) < len(steps):
        raise ValueError(f"{name}: wanted one step or more, each once, got {list(steps)}")
    for t in steps:
        check_int(name, t, 0, T)
    return tuple(sorted((int(t) for t in steps), reverse=True))


def rms_255(difference: Array, axis: int | tuple[int, ...] | None = None) -> Array:
    """Root mean square of a difference of images in [-1, 1], on the scale of 0 … 255; float64."""
    return 127.5 * np.sqrt(np.mean(np.square(np.asarray(difference, dtype=np.float64)), axis=axis))
