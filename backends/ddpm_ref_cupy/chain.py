"""Whole reverse steps on the device: Algorithm 2 as one CUDA graph, launched T times."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ddpm_ref.checks import Array, check_finite
from ddpm_ref.schedule import Schedule
from ddpm_ref_cupy import conv, noise
from ddpm_ref_cupy.arena import peak
from ddpm_ref_cupy.device import Launch
from ddpm_ref_cupy.fit import explained

if TYPE_CHECKING:
    from ddpm_ref_cupy import CupyBackend

STEP = 0  # the counter's slot, t


class ReverseSteps:
    """x_t, x̂_0 and t on the device; `launch` goes from t to t-1.

    model: one call of one network, with x_t and t (N,) int32 on the device; what it closes over stays as it is.
    start: the largest t, T unless given.  how: as `p_sample`.
    """

    def __init__(
        self, backend: "CupyBackend", model: Any, schedule: Schedule, x_T: Array, samples: Array, seed: int,
        start: int | None = None, **how: Any,
    ) -> None:  # fmt: skip
        run = self.run = backend.run
        backend.longest = max(backend.longest, schedule.T)
        self._model, self._seed, self.schedule = model, seed, schedule
        self.x_t, self.x_0_hat = run.contiguous(x_T).copy(), run.empty(x_T.shape, x_T.dtype)
        table, self._form = noise.reverse_table(
            schedule, x_T.dtype, start=start or schedule.T, **{"predicts": "eps", **how}
        )
        self._table, self._samples = run.to_device(table), noise.numbers(run, samples)
        self._counters, self._t = run.zeros((1,), np.int32), run.zeros((len(x_T),), np.int32)
        self._kept: dict[Any, Array] = {}
        self._replay = run.graph(self._one)

    def begin(self, t: int) -> None:
        """Go on from this t."""
        self._counters[...] = t
        self._t[...] = t

    def launch(self) -> None:
        """One reverse step."""
        self._replay()

    def needed(self, images: int) -> int:
        """Bytes that the network's output for so many images takes."""
        with self.run.recording() as recording, self.run.whole_pass({}):
            self._model(self.x_t[:images], self._t[:images])
        return peak(recording.blocks)

    def _one(self) -> None:
        with self.run.whole_pass(self._kept):
            output = conv.widened(self.run, self._model(self.x_t, self._t))
        noise.p_sample_at(
            self.run, self.x_t, self.x_0_hat, self.x_t, output, self._table, self._form, self._seed, self._counters,
            STEP, self._samples,
        )  # fmt: skip
        down = Launch("step.step_down", (1,), (256,))
        self.run.launch(down, self._counters, np.int32(STEP), self._t, np.int32(len(self._t)))


def reverse_steps(
    backend: "CupyBackend",
    model: Any,
    schedule: Schedule,
    x_T: Array,
    samples: Array,
    seed: int,
    every: int,
    start: int,
    **how: Any,
) -> Iterator[tuple[int, Array, Array]] | None:
    """`Backend.reverse_steps`; None where noise.cu has no such reverse step."""
    if not noise.takes(x_T, 1, x_T, how["predicts"], how["var"]):
        return None
    return _chain(ReverseSteps(backend, model, schedule, x_T, samples, seed, start, **how), every, start)


def _chain(steps: ReverseSteps, every: int, start: int) -> Iterator[tuple[int, Array, Array]]:
    """As `reverse.reverse_chain`; what is yielded is nobody else's."""
    steps.begin(start)
    for t in range(start, 0, -1):
        wanted = t % every == 0 or t == start
        before = steps.x_t.copy() if wanted else None
        try:
            steps.launch()
        except MemoryError as error:
            raise explained(error, steps.run, len(steps.x_t), steps.needed) from None
        if wanted:
            yield t, before, steps.x_0_hat.copy()
    check_finite(sample=steps.x_t)
    yield 0, steps.x_t, steps.x_t
