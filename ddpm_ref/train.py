"""Algorithm 1: training, where every draw depends only on the seed, the step and the place in the batch."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ddpm_ref import random
from ddpm_ref.backend import Backend
from ddpm_ref.checks import Array, check_int
from ddpm_ref.forward import check_eps_predictable
from ddpm_ref.memory import keep_freed_memory
from ddpm_ref.nn.optim import AdamSettings
from ddpm_ref.nn.params import Params, Shapes, count
from ddpm_ref.nn.unet import UNet
from ddpm_ref.objective import Losses, Objective, batch_mean
from ddpm_ref.random import Purpose
from ddpm_ref.schedule import Schedule


class Images(Protocol):
    """What training needs of a data set (`files.data.ImageData` is one)."""

    @property
    def levels(self) -> int:
        """Grey levels of the data."""

    def __len__(self) -> int: ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""

    def x_0(self, index: Array, dtype: type[np.floating]) -> Array:
        """The images of these indices, (N, H, W, C) in [-1, 1]."""


@dataclass(frozen=True)
class TrainSettings:
    """What one training run does at each step.

    batch: images a step.  micro_batch: how many of them at a time (less memory, the same gradient up to rounding).
    flips: mirror each image with probability ½.
    """

    batch: int = 128
    micro_batch: int | None = None
    flips: bool = False
    seed: int = 0
    objective: Objective = field(default_factory=Objective)
    adam: AdamSettings = field(default_factory=AdamSettings)

    def __post_init__(self) -> None:
        check_int("batch", self.batch, 1)
        check_int("seed", self.seed, 0, 2**64 - 1)
        if self.micro_batch is not None:
            check_int("micro_batch", self.micro_batch, 1, self.batch)


@dataclass
class TrainState:
    """Everything a step changes: the step number and four flat vectors. Saving these saves the run.

    With learned per-step weights (`Objective.learned_weights`) the vectors end with the table s_0 … s_T.
    """

    step: int
    params: Array
    ema: Array
    adam_m: Array
    adam_v: Array

    def network(self, net: UNet, weights: str = "raw") -> Params:
        """The network's parameters, "raw" or their "ema": views of the state."""
        return Params({"raw": self.params, "ema": self.ema}[weights][: net.size], net.shapes)


def run_shapes(net: UNet, schedule: Schedule, objective: Objective) -> Shapes:
    """Names and shapes in a run's flat vectors: the network's, and s_0 … s_T if the objective learns them."""
    table = {"objective/log_variance": (schedule.T + 1,)} if objective.learned_weights else {}
    return {**net.shapes, **table}


class StepReport(NamedTuple):
    """What one step saw. quarters: (2, 4), loss sums and then image counts for t ≤ T/4, …, t > 3T/4."""

    step: int
    loss: float
    gradient_norm: float
    quarters: NDArray[np.float64]


class Diverged(RuntimeError):
    """The loss or the gradient of a step is NaN or infinite; the state is still that of the step before."""


class Batch(NamedTuple):
    """Lines 2-4 of Algorithm 1 for some images of a step, and the x_t they make: arrays of the backend, t NumPy's."""

    x_0: Array
    t: Array
    eps: Array
    x_t: Array


class Trainer:
    """Algorithm 1, one step at a time.

    2  x_0 ~ q(x_0)              4  ε ~ N(0, I)
    3  t ~ Uniform({1, …, T})    5  a gradient step on ‖ε - ε_θ(√ᾱ_t x_0 + √(1 - ᾱ_t) ε, t)‖²

    `draw` is lines 2-4, `gradient` the gradient of line 5, `step` the descent: a clipped Adam step with EMA. (‖·‖² is
    divided by the number of elements.) Every draw of step k is a function of (seed, k, place in the batch), so a
    trainer given the state after step k goes on bit for bit as if never stopped.

    data: at least one image, of a size the network takes.  dtype: of the parameters, float32 or float64.
    state: to go on from, NumPy arrays, which on the CPU are changed in place; fresh parameters from the seed unless
    given.
    """

    def __init__(
        self,
        net: UNet,
        schedule: Schedule,
        data: Images,
        settings: TrainSettings,
        backend: Backend | None = None,
        *,
        dtype: type[np.floating] = np.float32,
        state: TrainState | None = None,
    ) -> None:
        _check_fit(net, schedule, data, settings)
        keep_freed_memory()
        self.net, self.schedule, self.data, self.settings = net, schedule, data, settings
        self.backend = backend or Backend()
        size = count(run_shapes(net, schedule, settings.objective))
        if state is None:
            vectors = [np.zeros(size, dtype) for _ in range(4)]
            vectors[0][: net.size] = net.init(settings.seed, dtype).vector
            state = TrainState(0, *vectors)
        if state.params.shape != (size,):
            raise ValueError(f"state: wanted {size} parameters for this network, got {state.params.shape}")
        self.state = _moved(state, self.backend.to_device)
        self.dtype = state.params.dtype.type

    def params(self, weights: str = "raw") -> Params:
        """The network's parameters, "raw" or their "ema": views of the state."""
        return self.state.network(self.net, weights)

    def host_state(self) -> TrainState:
        """The state as NumPy arrays, for files: on the CPU the very same arrays."""
        return _moved(self.state, self.backend.to_host)

    def draw(self, step: int, samples: Array) -> Batch:
        """x_0, t, ε of these places in a step's batch (lines 2-4), and x_t (Eq. 4)."""
        s = self.settings
        index = random.integers(s.seed, Purpose.INDEX, step, samples, len(self.data))
        t = 1 + random.integers(s.seed, Purpose.T, step, samples, self.schedule.T)
        x_0 = self.data.x_0(index, self.dtype)
        if s.flips:
            flip = random.integers(s.seed, Purpose.FLIP, step, samples, 2).astype(bool)
            x_0[flip] = x_0[flip, :, ::-1]
        x_0 = self.backend.to_device(x_0)
        x_t, eps = self.backend.q_sample(self.schedule, x_0, t, s.seed, step, samples)
        return Batch(x_0, t, eps, x_t)

    def gradient(self, step: int) -> tuple[StepReport, Array]:
        """The loss of step k = 1, 2, … and its gradient over the flat vector, without changing the state."""
        batch = self.settings.batch
        size = self.settings.micro_batch or batch
        total, loss, quarters = None, 0.0, np.zeros((2, 4))
        for first in range(0, batch, size):
            samples = np.arange(first, min(first + size, batch))
            part_loss, grads, part_quarters = self._micro_batch(step, samples)
            share = len(samples) / batch
            loss += share * part_loss
            quarters += part_quarters
            if share < 1:
                grads *= grads.dtype.type(share)
            total = grads if total is None else np.add(total, grads, out=total)
        assert total is not None
        return StepReport(step, loss, math.nan, quarters), total

    def _micro_batch(self, step: int, samples: Array) -> tuple[float, Array, NDArray[np.float64]]:
        """The mean loss of these images, its gradient, and their losses by quarter of t."""
        s, net, backend = self.settings, self.net, self.backend
        batch = self.draw(step, samples)
        t = batch.t

        def dropout(layer: int, shape: tuple[int, ...]) -> Array:
            return backend.uniform(s.seed, Purpose.DROPOUT, step, samples, shape[1:], layer=layer)

        output, backward = net(self.params(), batch.x_t, t, backend, dropout=dropout)
        losses, d_table = self._losses(batch, output)
        loss, d_output = batch_mean(losses)
        quarter = (4 * t - 1) // self.schedule.T
        sums = np.bincount(quarter, losses.per_image, 4)
        by_quarter = np.array([sums, np.bincount(quarter, minlength=4)], float)
        if not math.isfinite(loss):
            return loss, np.full_like(self.state.params, np.nan), by_quarter
        _, grads = backward(d_output)
        vector = grads.vector
        if d_table is not None:
            table_grads = np.bincount(t, d_table / len(t), self.schedule.T + 1).astype(self.dtype)
            vector = np.concatenate([vector, backend.to_device(table_grads)])
        return loss, vector, by_quarter

    def _losses(self, batch: Batch, output: Array) -> tuple[Losses, Array | None]:
        """The objective's losses, NumPy's, with their gradient on the device, and d loss / d s_t of each image, if any.

        L_simple runs on any array; its weights and the bound know NumPy's alone, so that arrays of a device are moved.
        """
        objective, backend = self.settings.objective, self.backend
        x_0, t, eps, x_t = batch
        on_host = objective.w_elbo > 0 or objective.learned_weights or objective.weight != "simple"
        if on_host:
            x_0, eps, x_t, output = map(backend.to_host, (x_0, eps, x_t, output))
        table = backend.to_host(self.state.params[self.net.size :]) if objective.learned_weights else None
        losses, d_table = objective(
            self.schedule, x_0, x_t, t, eps, output, levels=self.data.levels, log_variance=table
        )
        if on_host:
            return losses._replace(d_output=backend.to_device(losses.d_output)), d_table
        return losses._replace(per_image=backend.to_host(losses.per_image)), d_table

    @cached_property
    def _own(self) -> Callable[[int], list[StepReport]] | None:
        return self.backend.training_steps(self)

    def steps(self, most: int) -> list[StepReport]:
        """One or more of the next steps, `most` at most: as many as the backend runs before it looks at their losses.

        Raises Diverged as `step` does; the state is then that of the last step that was none of it.
        """
        check_int("most", most, 1)
        return [self.step()] if self._own is None else self._own(most)

    def step(self) -> StepReport:
        """One pass through lines 2-5.

        Raises Diverged, with the state unchanged, if the loss or the gradient is not finite.
        """
        if self._own is not None:
            return self._own(1)[0]
        state = self.state
        step = state.step + 1
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # what they would warn of is found below
            report, grads = self.gradient(step)
        norm = math.nan
        if math.isfinite(report.loss):
            # Clipping, Adam and EMA: nn/optim.py.
            norm = self.backend.update(
                state.params, grads, state.adam_m, state.adam_v, state.ema, step, self.settings.adam
            )
        if not math.isfinite(norm):
            raise Diverged(
                f"step {step}: loss {report.loss}, gradient norm {norm}; the state is that of step {state.step}"
            )
        state.step = step
        return report._replace(gradient_norm=norm)


def _moved(state: TrainState, move: Callable[[Array], Array]) -> TrainState:
    """The state with every vector moved to or from a device."""
    return TrainState(state.step, *map(move, (state.params, state.ema, state.adam_m, state.adam_v)))


def _check_fit(net: UNet, schedule: Schedule, data: Images, settings: TrainSettings) -> None:
    """What would fail or mislead only later: the data's size, and an objective the schedule cannot serve."""
    h, w, c = data.shape
    cfg = net.config
    if c != cfg.channels or h % cfg.factor or w % cfg.factor:
        raise ValueError(
            f"data: wanted {cfg.channels} channels and H, W divisible by {cfg.factor} for this network, got {h}x{w}x{c}"
        )
    learned = settings.objective.var == "learned"
    if learned != cfg.learned_variance:
        raise ValueError(
            f"objective: var={settings.objective.var!r} wants a network with learned_variance={learned}, "
            f"this one has {cfg.learned_variance}"
        )
    if settings.objective.predicts == "eps":
        check_eps_predictable(schedule, np.arange(1, schedule.T + 1))


RECIPES: dict[str, tuple[int, TrainSettings]] = {
    "digits": (4000, TrainSettings(batch=64, adam=AdamSettings(lr=2e-3, warmup=100, ema=0.998))),
    "mnist": (20_000, TrainSettings(batch=64, adam=AdamSettings(lr=1e-3, warmup=500, ema=0.999))),
    "cifar10": (800_000, TrainSettings(batch=128, flips=True)),
    "celebahq256": (500_000, TrainSettings(batch=64, flips=True, adam=AdamSettings(lr=2e-5))),
}
"""Steps and settings that go with each preset network; `cifar10` and `celebahq256` are the paper's (App. B),
with the released code's warm-up and clipping."""


def recipe(preset: str, **changes: object) -> tuple[int, TrainSettings]:
    """A preset's steps and settings, with some fields changed."""
    steps, settings = RECIPES[preset]
    return steps, replace(settings, **changes)  # type: ignore[arg-type]
