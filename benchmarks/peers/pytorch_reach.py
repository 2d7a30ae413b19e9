"""PyTorch's run to a stated loss on the digits, on our draws: `runs.reach` with its own tools."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import Job
from benchmarks.contestant import Clock, Contestant, one_clock
from benchmarks.peers.pytorch import TorchUNet
from benchmarks.peers.pytorch_side import CAPTURED, MODES, Descent, Shape, compiled, embedder
from benchmarks.runs import Lesson, contest, make_lesson


def reach(job: Job, shape: Shape, name: str, clock: Clock) -> Contestant:
    """Training on the digits. Network, compiled step or graph are made once; each run sets the weights back first."""
    lesson = make_lesson(job)
    pupil = _Pupil(job, shape, name, lesson)

    def losses() -> Iterator[float]:
        pupil.forget()
        for draw in lesson.draws:
            t, x_0, eps = torch.from_numpy(draw.t).to(shape.device), shape.ours(draw.x_0), shape.ours(draw.eps)
            torch.randn_like(eps)  # as much noise as it would draw
            yield float(pupil.step(x_0, t, eps))

    return contest(job, f"PyTorch {torch.__version__}", losses, one_clock)


class _Pupil:
    """A network, and what trains it."""

    def __init__(self, job: Job, shape: Shape, name: str, lesson: Lesson) -> None:
        kind = np.float64 if job.dtype == "float64" else np.float32
        self.shape, self.settings = shape, lesson.settings
        model = TorchUNet(lesson.net, lesson.net.init(lesson.settings.seed, kind))
        self.model = model.to(shape.device).to(memory_format=shape.layout).train()
        self.run = compiled(self.model, MODES.get(name, ""))
        self.abar = torch.tensor(lesson.schedule.alpha_bar, device=shape.device)
        self.embed = embedder(job.config.base, shape.device, shape.dtype)
        self.first = [p.detach().clone() for p in self.model.parameters()]
        self.descend = Descent(self.model, self.settings.adam, shape.device)
        self.step: Callable[[Tensor, Tensor, Tensor], Tensor] = self._step
        if name in CAPTURED:
            self.step = self._captured()

    def forget(self) -> None:
        """Begin anew. Nothing moves to other memory, which a graph holds on to."""
        with torch.no_grad():
            for p, before in zip(self.model.parameters(), self.first, strict=True):
                p.copy_(before)
        self.descend.forget()

    def _step(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        self.descend.begin()
        return self._learn(x_0, t, eps)

    def _learn(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        dtype, c = self.shape.dtype, self.abar[t][:, None, None, None]
        x_t = c.sqrt().to(dtype) * x_0 + (1 - c).sqrt().to(dtype) * eps
        with self.shape.cast():
            loss = F.mse_loss(self.run(x_t, self.embed(t - 1)).to(dtype), eps)
        loss.backward()
        self.descend.finish()
        return loss.detach()

    def _captured(self) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """The step as one graph on arrays that each step's draws are copied into."""
        from benchmarks.peers.pytorch_gpu import captured

        n, device = self.settings.batch, self.shape.device
        images = Shape(n, *self.shape[1:])
        x_0, eps = images.images(), images.images()
        t = torch.ones(n, dtype=torch.int64, device=device)
        kept: dict[str, Any] = {}

        def once() -> None:
            kept["loss"] = self._learn(x_0, t, eps)

        self.descend.begin()
        self.descend.begin()  # a second step: the graph's EMA is that of all steps but the first
        replay = captured(once)

        def step(*draw: Tensor) -> Tensor:
            self.descend.begin()
            for own, given in zip((x_0, t, eps), draw, strict=True):
                own.copy_(given)
            replay()
            self.descend.after_replay()
            return kept["loss"]

        return step
