"""Whole training steps on the device: lines 2-5 of Algorithm 1, with nothing crossing to the host and no waiting.

The data set lies on the device as grey levels. Step number, draws and learning rate come from a counter there, which
the step itself moves on; losses and norms go to a ring, which is fetched when somebody wants to see them. So one step
is the same launches on the same memory each time, one CUDA graph. The numbers are the same whether a graph is used or
not, and the draws those of `Trainer.draw`.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ddpm_ref.checks import Array
from ddpm_ref.nn import ops
from ddpm_ref.objective import Objective
from ddpm_ref.random import Purpose
from ddpm_ref.train import Diverged, StepReport, Trainer, TrainState
from ddpm_ref_cupy import conv, loss, noise, update
from ddpm_ref_cupy.arena import peak
from ddpm_ref_cupy.device import Launch
from ddpm_ref_cupy.fit import explained
from ddpm_ref_cupy.gather import GatheredParams, Places

if TYPE_CHECKING:
    from ddpm_ref_cupy import CupyBackend

RING = 128  # steps whose losses are kept until they are fetched
STEP = 0  # the counter's slot
_COLUMNS = 11


def time_embedding(backend: "CupyBackend", t: Array, dim: int, dtype: Any) -> Array:
    """`ops.time_embedding`: of t on the host, or by a table of t = 1 … `longest` of t that is on the device, int32."""
    run, key = backend.run, (backend.longest, dim, np.dtype(dtype))
    if not (run.holds(t) and t.dtype == np.int32 and backend.longest):
        return run.to_device(ops.time_embedding(t, dim).astype(dtype))
    if key not in backend.embeddings:
        backend.embeddings[key] = loss.embedding_table(run, *key)
    return loss.time_embedding(run, backend.embeddings[key], t)


def training_steps(backend: "CupyBackend", trainer: Trainer) -> Callable[[int], list[StepReport]] | None:
    """Steps of this trainer on the device, or None where they have to be the trainer's own.

    Its own are: objectives other than the squared error of ε, data that are not grey levels or do not fit the card.
    """
    objective, pixels = trainer.settings.objective, getattr(trainer.data, "pixels", None)
    plain = replace(objective, w_simple=1.0, var="beta") == Objective()
    if not plain or not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8:
        return None
    if pixels.nbytes > backend.run.memory()[0] // 2 or len(pixels) >= 2**31:
        return None
    return TrainingSteps(backend, trainer)


class TrainingSteps:
    """`Backend.training_steps`. `launch` is one step, without looking at it; the call runs some and reports."""

    def __init__(self, backend: "CupyBackend", trainer: Trainer) -> None:
        self.backend, self.run, self.trainer = backend, backend.run, trainer
        s, data, run = trainer.settings, trainer.data, backend.run
        dtype = trainer.state.params.dtype
        backend.longest = max(backend.longest, trainer.schedule.T)
        self._pixels = run.to_device(np.ascontiguousarray(data.pixels))  # type: ignore[attr-defined]
        self._scale = run.to_device((2 * np.arange(data.levels) / (data.levels - 1) - 1).astype(dtype))
        self._tables = tuple(run.to_device(table) for table in noise.noising_tables(trainer.schedule, dtype))
        self._samples = noise.numbers(run, np.arange(s.batch))
        self._counters = run.zeros((1,), np.int32)
        self._ring = run.zeros((RING, _COLUMNS), np.float64)
        self._scalars = run.zeros((update.SCALARS,), np.float64)
        size = s.micro_batch or s.batch
        self._report = loss.new_report(run, min(size, s.batch))
        self._parts = [slice(first, min(first + size, s.batch)) for first in range(0, s.batch, size)]
        self._places = [Places(run, trainer.net.shapes) for _ in self._parts]
        self._replay: Callable[[], None] | None = None
        self._of: TrainState | None = None
        self._step = -1

    def __call__(self, most: int) -> list[StepReport]:
        """Run some steps, `most` at most, and report them."""
        state, count = self.trainer.state, min(most, RING)
        try:
            for _ in range(count):
                self.launch()
            done = int(self.run.to_host(self._counters)[STEP]) - 1 - state.step
        except MemoryError as error:
            raise explained(error, self.run, self._parts[0].stop, self.needed) from None
        ring = self.run.to_host(self._ring)
        reports = [_report(ring[k % RING]) for k in range(state.step + 1, state.step + 1 + done)]
        self._step = state.step = state.step + done
        if done < count:
            lost = _report(ring[(state.step + 1) % RING])
            norm = lost.gradient_norm if math.isfinite(lost.loss) else math.nan
            raise Diverged(
                f"step {lost.step}: loss {lost.loss}, gradient norm {norm}; the state is that of step {state.step}"
            )
        return reports

    def launch(self) -> None:
        """One step, from the state's step number on if that is not where the last call of this object ended."""
        state = self.trainer.state
        if state is not self._of:
            self._of, self._replay, self._step = state, self.run.graph(self._one), -1
        if self._step != state.step:
            self._counters[...] = state.step + 1
            self._step = state.step
        assert self._replay is not None
        self._replay()

    def needed(self, images: int) -> int:
        """Bytes that the gradient of so many images at a time takes."""
        with self.run.recording() as recording:
            self._gradient(slice(0, images))
        return peak(recording.blocks)

    def _one(self) -> None:
        """The launches of one step."""
        trainer, run, total = self.trainer, self.run, None
        batch = trainer.settings.batch
        for part in self._parts:
            grads = self._gradient(part)
            share = (part.stop - part.start) / batch
            if share < 1:
                grads *= grads.dtype.type(share)
            total = grads if total is None else np.add(total, grads, out=total)
        s, state = trainer.settings, trainer.state
        vectors = state.params, total, state.adam_m, state.adam_v, state.ema
        run.launch(Launch("step.step_guard", (1,), (1,), 0, total.dtype), self._report.mean, total)
        update.update_at(run, *vectors, self._counters, STEP, self._scalars, s.adam)
        run.launch(
            Launch("step.step_finish", (1,), (1,), 0, total.dtype),
            self._report.mean, self._scalars, self._report.quarters, self._counters, np.int32(STEP), self._ring,
            np.int32(RING),
        )  # fmt: skip

    def _gradient(self, part: slice) -> Array:
        """Lines 2-5 up to the gradient, of these places in the batch; their losses go into the report."""
        trainer, run, s = self.trainer, self.run, self.trainer.settings
        samples, n = self._samples[part], part.stop - part.start
        stream = self._counters, STEP, samples
        x_0, t = self._images(part), run.empty((n,), np.int32)
        noise.integers_at(run, t, s.seed, Purpose.T, *stream, trainer.schedule.T, 1)
        x_t, eps = run.empty(x_0.shape, x_0.dtype), run.empty(x_0.shape, x_0.dtype)
        noise.q_sample_at(run, x_t, eps, x_0, self._tables, t, s.seed, *stream)

        def dropout(layer: int, _shape: tuple[int, ...]) -> Array:
            return noise.Draws(s.seed, *stream, layer)

        places = self._places[part.start // self._parts[0].stop]
        params = GatheredParams(trainer.state.params, trainer.net.shapes).of(places)
        with run.whole_pass():
            output, backward = trainer.net(params, x_t, t, self.backend, dropout=dropout)
        d_output = loss.simple_loss(
            run, conv.widened(run, output), eps, t, trainer.schedule.T, self._report,
            weight=s.objective.w_simple, part=n / s.batch, add=part.start > 0,
        )  # fmt: skip
        return backward(d_output)[1].gather()

    def _images(self, part: slice) -> Array:
        """x_0 of these places in the batch."""
        run, s = self.run, self.trainer.settings
        samples, n = self._samples[part], part.stop - part.start
        index, flip = run.empty((n,), np.int32), run.empty((n,), np.int32)
        stream = self._counters, STEP, samples
        noise.integers_at(run, index, s.seed, Purpose.INDEX, *stream, len(self._pixels))
        if s.flips:
            noise.integers_at(run, flip, s.seed, Purpose.FLIP, *stream, 2)
        shape = n, *self._pixels.shape[1:]
        x_0 = run.empty(shape, self._scale.dtype)
        launch = Launch("step.step_images", (min(-(-x_0.size // 256), 1 << 16),), (256,), 0, x_0.dtype)
        sizes = np.int64(x_0.size), *map(np.int32, shape[1:])
        run.launch(launch, self._pixels, index, flip, np.int32(s.flips), self._scale, x_0, *sizes)
        return x_0


def _report(row: Array) -> StepReport:
    """A row of the ring."""
    return StepReport(int(row[0]), float(row[1]), float(row[2]), row[3:].reshape(2, 4).copy())
