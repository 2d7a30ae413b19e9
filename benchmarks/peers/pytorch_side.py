"""PyTorch's side of a job: the network of `pytorch.py` trained and sampled by the same algorithms, with its own tools.

On a CPU: "torch contiguous", "torch channels_last", "torch compile" (of a channels_last network). On a GPU, always
channels_last with cudnn.benchmark: "torch eager"; "torch graph", the whole step captured as one CUDA graph; "torch
compiled graph" and "torch autotune" (max-autotune), the network compiled and captured. Fused Adam, foreach clipping and
EMA; images drawn from uint8 data, t and noise drawn by PyTorch's generator.
"""

import contextlib
import statistics
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import Job
from benchmarks.contestant import Clock, Contestant, median_clock, peak_memory
from benchmarks.peers.pytorch import TorchUNet, by_our_names, gradients
from benchmarks.problem import SAMPLING, Problem, first_draw, make_problem, random_images
from ddpm_ref.nn.optim import AdamSettings
from ddpm_ref.nn.plan import UNetConfig
from ddpm_ref.schedule import Schedule

MODES = {"torch compile": "compile", "torch compiled graph": "compile", "torch autotune": "autotune"}
CAPTURED = ("torch graph", "torch compiled graph", "torch autotune")


class Shape(NamedTuple):
    """How many images of which network, and how they lie."""

    n: int
    config: UNetConfig
    device: str
    dtype: torch.dtype
    layout: torch.memory_format
    precision: str = "float32"

    def images(self) -> Tensor:
        """Standard normal numbers, (N, C, H, W)."""
        c = self.config
        x = torch.randn(self.n, c.channels, c.image_size, c.image_size, device=self.device, dtype=self.dtype)
        return x.contiguous(memory_format=self.layout)

    def ours(self, x: np.ndarray) -> Tensor:
        """Our (N, H, W, C) as PyTorch's."""
        return torch.from_numpy(x).to(self.device).permute(0, 3, 1, 2).contiguous(memory_format=self.layout)

    def cast(self) -> Any:
        """What to run the network in."""
        bf16 = self.precision == "bf16"
        return torch.autocast(self.device, torch.bfloat16) if bf16 else contextlib.nullcontext()


def settle(precision: str) -> None:
    """PyTorch's switches for a precision."""
    tf32 = precision in ("tf32", "bf16")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True


def compiled(model: Any, mode: str) -> Any:
    """The network as it is run."""
    if mode not in ("compile", "autotune"):
        return model
    return torch.compile(model, mode="max-autotune-no-cudagraphs" if mode == "autotune" else None)


def embedder(base: int, device: str, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """The sinusoidal embedding of t - 1, on the device. On a CPU in float64, as ours."""
    half, kind = base // 2, torch.float32 if device == "cuda" else torch.float64
    frequencies = torch.exp(-np.log(10000) / max(half - 1, 1) * torch.arange(half, device=device, dtype=kind))

    def embed(t: Tensor) -> Tensor:
        angles = t.to(kind)[:, None] * frequencies
        return torch.cat([torch.sin(angles), torch.cos(angles)], dim=1).to(dtype)

    return embed


class Training:
    """Lines 2-5 of Algorithm 1 on images drawn from data, (M, H, W, C) uint8; a call is one step."""

    def __init__(self, model: TorchUNet, run: Any, shape: Shape, embed: Any, schedule: Schedule, data: Tensor) -> None:
        self.run, self.shape, self.embed, self.data = run, shape, embed, data
        self.abar = torch.tensor(schedule.alpha_bar, dtype=shape.dtype, device=shape.device)
        self.descend = Descent(model, AdamSettings(warmup=0), shape.device)
        self.loss = torch.zeros(())

    def __call__(self) -> None:
        """Lines 2-5."""
        self.learn(*self.draw())

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """x_t, t, ε: lines 2-4, and Eq. 4."""
        n, device = self.shape.n, self.shape.device
        index = torch.randint(0, len(self.data), (n,), device=device)
        # The permuted rows lie as channels_last: in the other layout the network would be given what is none of it.
        rows = (self.data[index].to(self.shape.dtype) / 127.5 - 1).permute(0, 3, 1, 2)
        x_0 = rows.contiguous(memory_format=self.shape.layout)
        t = torch.randint(1, len(self.abar), (n,), device=device)
        eps = torch.randn_like(x_0)
        return self.noised(x_0, t, eps), t, eps

    def noised(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t."""
        c = self.abar[t][:, None, None, None]
        return c.sqrt() * x_0 + (1 - c).sqrt() * eps

    def learn(self, x_t: Tensor, t: Tensor, eps: Tensor) -> None:
        """Line 5."""
        with self.shape.cast():
            loss = F.mse_loss(self.run(x_t, self.embed(t - 1)).to(self.shape.dtype), eps)
        loss.backward()
        self.loss = loss.detach()
        self.descend()


class Descent:
    """Clipping, Adam and EMA; called after backward.

    `begin` sets the rate of a step, on the host, and `finish` is the rest: on a GPU that can be captured, with the rate
    in a tensor and, since the first step's EMA is not that of the others, `after_replay`.
    """

    def __init__(self, model: TorchUNet, settings: AdamSettings, device: str) -> None:
        self.weights, self.settings, self.k = list(model.parameters()), settings, 0
        self.ema = [p.detach().clone() for p in self.weights]
        lr: Any = torch.tensor(settings.lr, device=device) if device == "cuda" else settings.lr
        betas = settings.beta_1, settings.beta_2
        self.adam = torch.optim.Adam(
            self.weights, lr=lr, betas=betas, eps=settings.epsilon, fused=True, capturable=device == "cuda"
        )

    def __call__(self) -> None:
        """One step down."""
        self.begin()
        self.finish()

    def begin(self) -> None:
        """The next step's rate."""
        self.k += 1
        if self.settings.warmup:
            group, rate = self.adam.param_groups[0], self.settings.learning_rate(self.k)
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def finish(self) -> None:
        """Down."""
        s = self.settings
        torch.nn.utils.clip_grad_norm_(self.weights, s.clip_norm or float("inf"), foreach=True)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        weight = 1 - s.ema if self.k > 1 else 1.0  # as ours: after the first step the EMA is θ
        torch._foreach_lerp_(self.ema, [p.detach() for p in self.weights], weight)

    def after_replay(self) -> None:
        """The first step's EMA, after a graph that was captured in a later one."""
        if self.k == 1:
            torch._foreach_copy_(self.ema, [p.detach() for p in self.weights])

    def forget(self) -> None:
        """As if there had been no step, in the same memory."""
        self.k = 0
        for state in self.adam.state.values():
            for array in state.values():
                array.zero_()
        torch._foreach_copy_(self.ema, [p.detach() for p in self.weights])


# --- the contender ---------------------------------------------------------------------------------------------------


def contestant(job: Job, name: str) -> Contestant:
    """PyTorch by one of its names."""
    gpu = name not in ("torch contiguous", "torch channels_last", "torch compile")
    if gpu and not torch.cuda.is_available():
        raise RuntimeError("PyTorch finds no GPU")
    device = "cuda" if gpu else "cpu"
    torch.set_num_threads(job.threads)
    settle(job.precision)
    start = peak_memory()
    layout = torch.contiguous_format if name.endswith("contiguous") else torch.channels_last
    dtype = torch.float64 if job.dtype == "float64" else torch.float32
    shape = Shape(job.batch, job.config, device, dtype, layout, job.precision)
    clock = _event_clock if gpu else median_clock
    side = _make(job, name)(job, shape, name, clock)
    side.facts["start_memory_gib"] = start
    if gpu:
        side.memory = lambda: {"peak_memory_gib": torch.cuda.max_memory_reserved() / 2**30}
    return side


def _event_clock(call: Callable[[], Any], seconds: float) -> float:
    from benchmarks.peers.pytorch_gpu import timed

    call()
    return statistics.median(timed(call, 2, 1e3 * seconds, 500)) / 1e3


def _make(job: Job, name: str) -> Callable[[Job, Shape, str, Clock], Contestant]:
    """Whatever kind of job this is."""
    if job.loop is not None:
        from benchmarks.peers.pytorch_loops import contestant as loop

        return loop
    if job.what == "reach":
        from benchmarks.peers.pytorch_reach import reach

        return reach
    if job.what in SAMPLING:
        from benchmarks.peers.pytorch_chain import sampler

        return sampler
    return _steps


def network(problem: Problem, shape: Shape) -> TorchUNet:
    """The problem's, where and as its images lie."""
    return TorchUNet(problem.net, problem.params).to(shape.device).to(memory_format=shape.layout)


def _steps(job: Job, shape: Shape, name: str, clock: Clock) -> Contestant:
    problem, schedule = make_problem(job), Schedule.linear()
    model = network(problem, shape).eval()
    run, embed = compiled(model, MODES.get(name, "")), embedder(job.config.base, shape.device, shape.dtype)
    x, t = shape.ours(problem.x), torch.from_numpy(problem.t).to(shape.device)
    with shape.cast():
        output = run(x, embed(t - 1))
        F.mse_loss(output.to(shape.dtype), shape.ours(problem.eps)).backward()
    data = torch.from_numpy(random_images(job).pixels).to(shape.device)
    step = Training(model, run, shape, embed, schedule, data)
    assert step.draw()[0].is_contiguous(memory_format=shape.layout)
    results = _then_one_step(job, problem, model, step)
    results["output"] = [in_ours(output)]
    side = Contestant(f"PyTorch {torch.__version__}", {}, results, lambda _: None, clock)
    side.last_loss = lambda: float(step.loss)
    call: list[Callable[[], None]] = []

    def once() -> None:  # made at the first call, which is in no time: the results above are of the network before
        if not call:
            model.zero_grad(set_to_none=True)
            model.train()
            call.append(as_run(step, name))
        call[0]()

    side.calls[""] = once
    return side


def _then_one_step(job: Job, problem: Problem, model: TorchUNet, step: Training) -> dict[str, Any]:
    """The gradient; then, asked for in this order, θ and EMA after the step of the draws that ours has, without dropout
    and by what is timed: `Training.learn`."""

    def update() -> Iterator[np.ndarray]:
        model.zero_grad(set_to_none=True)  # once the gradient is written its arrays go
        draw, shape = first_draw(job, problem), step.shape
        x_0, t, eps = shape.ours(draw.x_0), torch.from_numpy(draw.t).to(shape.device), shape.ours(draw.eps)
        step.learn(step.noised(x_0, t, eps), t, eps)
        yield from problem.moved(by_our_names(model, problem.net, lambda p: p.detach()))

    def ema() -> Iterator[np.ndarray]:
        kept = {id(p): one for p, one in zip(step.descend.weights, step.descend.ema, strict=True)}
        yield from problem.moved(by_our_names(model, problem.net, lambda p: kept[id(p)]))

    def gradient() -> Iterator[np.ndarray]:
        yield from problem.ordered(gradients(model, problem.net))

    return {"gradient": gradient(), "update": update(), "ema": ema()}


def as_run(step: Callable[[], None], name: str) -> Callable[[], None]:
    """A step as this contender runs it: captured or as it is."""
    if name not in CAPTURED:
        return step
    from benchmarks.peers.pytorch_gpu import captured

    return captured(step)


def in_ours(y: Tensor) -> np.ndarray:
    """(N, C, H, W) as our (N, H, W, C)."""
    y = y.detach().permute(0, 2, 3, 1)
    return (y if y.dtype == torch.float64 else y.float()).cpu().contiguous().numpy()
