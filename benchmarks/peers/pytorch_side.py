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
from benchmarks.contestant import Clock, Contestant, mean_clock, median_clock, one_clock, peak_memory
from benchmarks.peers.pytorch import TorchUNet, gradients
from benchmarks.problem import SAMPLING, STEP, Problem, make_problem, random_images
from ddpm_ref.forward import posterior_coefficients
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


def training(
    model: TorchUNet, run: Any, shape: Shape, embed: Any, schedule: Schedule, data: Tensor
) -> Callable[[], None]:
    """Lines 2-5 of Algorithm 1 on images drawn from data, (M, H, W, C) uint8."""
    n, device = shape.n, shape.device
    abar = torch.tensor(schedule.alpha_bar, dtype=shape.dtype, device=device)
    descend = Descent(model, AdamSettings(warmup=0), device)
    model.train()

    def step() -> None:
        index = torch.randint(0, len(data), (n,), device=device)
        x_0 = (data[index].to(shape.dtype) / 127.5 - 1).permute(0, 3, 1, 2)
        t = torch.randint(1, schedule.T + 1, (n,), device=device)
        eps = torch.randn_like(x_0)
        c = abar[t][:, None, None, None]
        x_t = c.sqrt() * x_0 + (1 - c).sqrt() * eps
        with shape.cast():
            loss = F.mse_loss(run(x_t, embed(t - 1)).to(shape.dtype), eps)
        loss.backward()
        descend()

    return step


class Descent:
    """Clipping, Adam and EMA; called after backward."""

    def __init__(self, model: TorchUNet, settings: AdamSettings, device: str) -> None:
        self.weights, self.settings, self.k = list(model.parameters()), settings, 0
        self.ema = [p.detach().clone() for p in self.weights]
        self.adam = torch.optim.Adam(self.weights, lr=settings.lr, fused=True, capturable=device == "cuda")

    def __call__(self) -> None:
        """One step down."""
        self.k += 1
        s = self.settings
        if s.warmup:
            self.adam.param_groups[0]["lr"] = s.learning_rate(self.k)
        torch.nn.utils.clip_grad_norm_(self.weights, s.clip_norm or float("inf"), foreach=True)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        weight = 1 - s.ema if self.k > 1 or not s.warmup else 1.0
        torch._foreach_lerp_(self.ema, [p.detach() for p in self.weights], weight)


class Chain:
    """Reverse steps with x̂_0 clipped (line 4 of Algorithm 2, σ_t² = β_t)."""

    def __init__(self, run: Any, shape: Shape, embed: Any, schedule: Schedule, T: int = 1000) -> None:
        self.run, self.shape, self.embed, self.schedule = run, shape, embed, schedule
        self.x, self.t, self.T = shape.images(), T, T
        self._out = torch.empty_like(self.x)

    def restart(self, _round: int = 0) -> None:
        """From new noise."""
        self.x.copy_(self.shape.images())
        self.t = self.T

    def one(self, t: int) -> Callable[[], None]:
        """A step from x at this t, into an array of its own."""
        move = self._from(t)
        return lambda: move(self._out)

    def onward(self) -> None:
        """A step from the last one's x."""
        self._from(self.t)(self.x)
        self.t -= 1
        if self.t == 0:
            self.restart()

    def _from(self, t: int) -> Callable[[Tensor], None]:
        abar = self.schedule.alpha_bar[t]
        a, b = float(1 / np.sqrt(abar)), float(np.sqrt(1 / abar - 1))
        c_0, c_t = (float(c) for c in posterior_coefficients(self.schedule, t))
        sigma = float(np.sqrt(self.schedule.beta[t])) if t > 1 else 0.0
        steps = torch.full((self.shape.n,), t - 1, device=self.shape.device)

        @torch.no_grad()
        def move(out: Tensor) -> None:
            with self.shape.cast():
                eps = self.run(self.x, self.embed(steps))
            x_0 = (a * self.x - b * eps.to(self.x.dtype)).clamp_(-1, 1)
            out.copy_(x_0.mul_(c_0).add_(self.x, alpha=c_t).add_(torch.randn_like(self.x), alpha=sigma))

        return move


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
    make = _reach if job.what == "reach" else _steps
    side = make(job, shape, name, clock)
    side.facts["start_memory_gib"] = start
    if gpu:
        side.memory = lambda: {"peak_memory_gib": torch.cuda.max_memory_reserved() / 2**30} | _device_memory()
    return side


def _event_clock(call: Callable[[], Any], seconds: float) -> float:
    from benchmarks.peers.pytorch_gpu import timed

    call()
    return statistics.median(timed(call, 2, 1e3 * seconds, 500)) / 1e3


def _device_memory() -> dict[str, float]:
    free, total = torch.cuda.mem_get_info()
    return {"device_memory_gib": (total - free) / 2**30}


def _model(problem: Problem, shape: Shape) -> TorchUNet:
    return TorchUNet(problem.net, problem.params).to(shape.device).to(memory_format=shape.layout)


def _steps(job: Job, shape: Shape, name: str, clock: Clock) -> Contestant:
    problem, schedule = make_problem(job), Schedule.linear()
    model = _model(problem, shape).eval()
    run, embed = compiled(model, MODES.get(name, "")), embedder(job.config.base, shape.device, shape.dtype)
    version = f"PyTorch {torch.__version__}"
    x, t = shape.ours(problem.x), torch.from_numpy(problem.t).to(shape.device)
    if job.what in SAMPLING:
        with torch.no_grad(), shape.cast():
            results = {"output": [_ours(run(x, embed(t - 1)))]}
        chain = Chain(run, shape, embed, schedule, job.T)
        return _sampler(job, name, chain, Contestant(version, {}, results, chain.restart, clock))
    with shape.cast():
        output = run(x, embed(t - 1))
        F.mse_loss(output.to(shape.dtype), shape.ours(problem.eps)).backward()
    results = {"output": [_ours(output)], "gradient": problem.ordered(gradients(model, problem.net))}
    data = torch.from_numpy(random_images(job).pixels).to(shape.device)
    step = training(model, run, shape, embed, schedule, data)
    return Contestant(version, {"": _captured(step, name)}, _then_free(results, model), lambda _: None, clock)


def _then_free(results: dict[str, Any], model: TorchUNet) -> dict[str, Any]:
    """The results; once the gradient is written its arrays go."""

    def gradient() -> Iterator[np.ndarray]:
        yield from results["gradient"]
        model.zero_grad(set_to_none=True)

    return {"output": results["output"], "gradient": gradient()}


def _sampler(job: Job, name: str, chain: Chain, side: Contestant) -> Contestant:
    if name in CAPTURED:  # one graph is one t
        call = _captured(chain.one(STEP), name)
        once = call if job.what != "chain" else lambda: [call() for _ in range(job.T)]
    elif job.what == "sample":
        once = chain.one(STEP)
    elif job.what == "chain":
        once = lambda: [chain.onward() for _ in range(job.T)]  # noqa: E731
    else:
        once, side.clock = chain.onward, mean_clock if chain.shape.device == "cpu" else side.clock
        side.draw = lambda _round: None
    side.calls[""] = once
    return side


def _captured(step: Callable[[], None], name: str) -> Callable[[], None]:
    if name not in CAPTURED:
        return step
    from benchmarks.peers.pytorch_gpu import captured

    return captured(step)


def _ours(y: Tensor) -> np.ndarray:
    """(N, C, H, W) as our (N, H, W, C)."""
    y = y.detach().permute(0, 2, 3, 1)
    return (y if y.dtype == torch.float64 else y.float()).cpu().contiguous().numpy()


def _reach(job: Job, shape: Shape, name: str, clock: Clock) -> Contestant:
    """Training on the digits with our draws."""
    from benchmarks.runs import contest, make_lesson

    lesson = make_lesson(job)
    net, settings, schedule, draws = lesson
    kind = np.float64 if job.dtype == "float64" else np.float32
    abar = torch.tensor(schedule.alpha_bar, device=shape.device)
    embed = embedder(job.config.base, shape.device, shape.dtype)

    def losses() -> Iterator[float]:
        model = TorchUNet(net, net.init(settings.seed, kind)).to(shape.device).to(memory_format=shape.layout).train()
        descend = Descent(model, settings.adam, shape.device)
        for draw in draws:
            t, x_0, eps = torch.from_numpy(draw.t).to(shape.device), shape.ours(draw.x_0), shape.ours(draw.eps)
            torch.randn_like(eps)  # as much noise as it would draw
            c = abar[t][:, None, None, None]
            x_t = (c.sqrt().to(shape.dtype) * x_0 + (1 - c).sqrt().to(shape.dtype) * eps).contiguous(
                memory_format=shape.layout
            )
            with shape.cast():
                loss = F.mse_loss(model(x_t, embed(t - 1)).to(shape.dtype), eps)
            loss.backward()
            descend()
            yield float(loss.detach())

    return contest(job, f"PyTorch {torch.__version__}", losses, one_clock)
