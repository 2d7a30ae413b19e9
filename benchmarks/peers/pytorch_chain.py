"""PyTorch's reverse steps: what depends on t alone is made beforehand, and all of the step is compiled or captured."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Job
from benchmarks.contestant import Clock, Contestant, mean_clock, one_clock
from benchmarks.peers.pytorch import TorchUNet
from benchmarks.peers.pytorch_side import CAPTURED, MODES, Shape, as_run, compiled, embedder, in_ours, network
from benchmarks.problem import STEP, make_problem, reverse_table
from ddpm_ref.schedule import Schedule


class Chain:
    """Reverse steps with x̂_0 clipped (line 4 of Algorithm 2, σ_t² = β_t).

    mode: how the whole step is compiled, "" for not at all. Then its coefficients are Python numbers, which a compiled
    or captured step would be made anew for: those take theirs as a tensor, one function for every t.
    """

    @torch.inference_mode()
    def __init__(
        self, model: TorchUNet, shape: Shape, embed: Any, schedule: Schedule, T: int = 1000, mode: str = ""
    ) -> None:
        self.model, self.shape, self.embed, self.T = model, shape, embed, T
        table = reverse_table(schedule)
        self.rows = torch.tensor(table, dtype=shape.dtype, device=shape.device)
        self.numbers = [tuple(map(float, row)) for row in table]
        each = torch.arange(schedule.T + 1, device=shape.device) - 1
        self.steps = each[:, None].repeat(1, shape.n)
        self.plain = mode not in ("compile", "autotune")
        self._step = self._by_numbers if self.plain else compiled(self._by_row, mode)
        self.x, self.t, self.at = shape.images(), T, torch.full((1,), T, device=shape.device)

    @torch.inference_mode()
    def restart(self, _round: int = 0) -> None:
        """From new noise."""
        self.x.copy_(self.shape.images())
        self.t = self.T
        self.at.fill_(self.T)

    @torch.inference_mode()
    def from_t(self, x: Tensor, t: int, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """x_{t-1} and the network's output."""
        if self.plain:
            row: Any = self.numbers[t]
            row = row if temperature == 1 else (*row[:4], temperature * row[4])
        else:
            row = self.rows[t] if temperature == 1 else self.rows[t] * self.rows.new_tensor([1, 1, 1, 1, temperature])
        return self._step(x, self.steps[t], row)

    def onward(self) -> None:
        """A step from the last one's x."""
        self.x = self.from_t(self.x, self.t)[0]
        self.t -= 1
        if self.t == 0:
            self.restart()

    def whole(self) -> None:
        """T steps."""
        for _ in range(self.T):
            self.onward()

    @torch.inference_mode()
    def advance(self) -> None:
        """`onward` with t on the device, for a graph: it is one for every t, and the graph itself counts down."""
        row, t = self.rows.index_select(0, self.at)[0], self.steps.index_select(0, self.at)[0]
        step = self._by_row if self.plain else self._step
        self.x.copy_(step(self.x, t, row)[0])
        self.at.sub_(1).clamp_(min=1)

    def _network(self, x: Tensor, steps: Tensor) -> Tensor:
        with self.shape.cast():
            return self.model(x, self.embed(steps))

    def _by_numbers(self, x: Tensor, steps: Tensor, row: tuple[float, ...]) -> tuple[Tensor, Tensor]:
        a, b, c_0, c_t, sigma = row
        eps = self._network(x, steps).to(x.dtype)
        x_0 = (a * x).sub_(eps, alpha=b).clamp_(-1, 1)
        return x_0.mul_(c_0).add_(x, alpha=c_t).add_(torch.randn_like(x), alpha=sigma), eps

    def _by_row(self, x: Tensor, steps: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        a, b, c_0, c_t, sigma = row.unbind()
        eps = self._network(x, steps).to(x.dtype)
        x_0 = (a * x - b * eps).clamp(-1, 1)
        return c_0 * x_0 + c_t * x + sigma * torch.randn_like(x), eps


def sampler(job: Job, shape: Shape, name: str, clock: Clock) -> Contestant:
    """A reverse step at t = 500, steps that go on from each other, or whole chains."""
    if name == "torch compile":  # weights become constants of the compiled step
        import torch._inductor.config as inductor

        inductor.freezing = True
    problem = make_problem(job)
    model = network(problem, shape).eval().requires_grad_(False)
    embed = embedder(job.config.base, shape.device, shape.dtype)
    chain = Chain(model, shape, embed, Schedule.linear(), job.T, MODES.get(name, ""))
    with torch.inference_mode():  # as all that the step is given: a compiled one would be made anew for another kind
        x = shape.ours(problem.x)
    assert chain.x.is_contiguous(memory_format=shape.layout) and x.is_contiguous(memory_format=shape.layout)
    after, output = chain.from_t(x, STEP, temperature=0.0)
    results = {"output": [in_ours(output)], "step": [in_ours(after) - problem.x]}
    whole = job.whole or job.what == "chain"
    if job.what == "images":
        clock = one_clock if job.whole else mean_clock if shape.device == "cpu" else clock
    call = _captured(chain, job, name, whole) if name in CAPTURED else _call(chain, job, whole)
    return Contestant(f"PyTorch {torch.__version__}", {"": call}, results, chain.restart, clock)


def _call(chain: Chain, job: Job, whole: bool) -> Callable[[], Any]:
    if job.what == "sample":
        return lambda: chain.from_t(chain.x, STEP)
    return _waited(chain, chain.whole) if whole else chain.onward


def _captured(chain: Chain, job: Job, name: str, whole: bool) -> Callable[[], Any]:
    step = as_run(chain.advance, name)
    chain.restart()

    def all_of_them() -> None:
        for _ in range(job.T):
            step()

    return _waited(chain, all_of_them) if whole else step


def _waited(chain: Chain, call: Callable[[], None]) -> Callable[[], None]:
    """The same, with a wait for the device at the end, for a clock that knows nothing of it."""
    if chain.shape.device == "cpu":
        return call

    def waited() -> None:
        call()
        torch.cuda.synchronize()

    return waited
