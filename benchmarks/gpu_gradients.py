"""How far from exact an output and its gradient are on a GPU: ours and PyTorch's, with the same weights."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np

from benchmarks.cases import CASES
from benchmarks.problem import random_problem
from ddpm_ref import simple_loss
from ddpm_ref.backend import Backend
from ddpm_ref.nn.params import Params


class Problem:
    """A network with no layer near 0, and a batch. exact: output and gradients of the convolutions by float64 NumPy."""

    def __init__(self, case: str, batch: int, seed: int = 0) -> None:
        self.net, self.params, self.x, self.t, self.eps = random_problem(CASES[case].config, batch, seed=seed)
        self.exact = self.ours(Backend(), np.float64)

    def ours(self, backend: Backend, dtype: Any = np.float32) -> dict[str, np.ndarray]:
        """By one of our backends."""
        move: Callable[[Any], Any] = lambda a: backend.to_device(a.astype(dtype))  # noqa: E731
        params = self.params.like(move(self.params.vector))
        run = getattr(backend, "run", None)  # a device, on which images are stored as within a whole step
        with run.whole_pass() if run else nullcontext():
            output, backward = self.net(params, move(self.x), self.t, backend)
        grads = backward(simple_loss(output, move(self.eps))[1])[1]
        host = Params(backend.to_host(grads.vector), grads.shapes)
        return {"output": backend.to_host(output), "gradient": self._convolutions(host), "all": host.vector}

    def _convolutions(self, grads: Params) -> np.ndarray:
        return np.concatenate([grads[name].ravel() for name in grads if grads[name].ndim == 4])

    def torch(self, precision: str) -> dict[str, np.ndarray]:
        """By PyTorch on the GPU, in the settings of `peers.pytorch_gpu`."""
        import torch
        import torch.nn.functional as F

        from benchmarks.peers.pytorch import TorchUNet, embed

        tf32 = precision != "fp32"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        model = TorchUNet(self.net, self.params).cuda().to(memory_format=torch.channels_last).eval()
        x, eps = (torch.from_numpy(a).permute(0, 3, 1, 2).contiguous().cuda() for a in (self.x, self.eps))
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            output = model(x, embed(self.t, self.net.config.base).cuda())
            F.mse_loss(output.float(), eps).backward()
        names = [name for name, shape in self.net.shapes.items() if len(shape) == 4]
        weights = [model.convolution(name[: -len("/W")]).weight.grad for name in names]
        gradient = np.concatenate([w.permute(2, 3, 1, 0).reshape(-1).float().cpu().numpy() for w in weights])
        return {"output": output.detach().float().permute(0, 2, 3, 1).cpu().numpy(), "gradient": gradient}

    def error(self, found: dict[str, np.ndarray]) -> dict[str, float]:
        """Relative norm of what differs from exact."""
        norm = np.linalg.norm
        return {
            what: float(norm(found[what].astype(np.float64) - self.exact[what]) / norm(self.exact[what]))
            for what in found
        }


def errors(case: str, batch: int, seed: int = 0) -> dict[str, dict[str, float]]:
    """By "ours tf32", "torch bf16", …: the relative errors of output and gradient."""
    from ddpm_ref_cupy import CupyBackend

    problem = Problem(case, batch, seed)
    found = {}
    for precision in ("fp32", "tf32", "bf16"):
        found[f"ours {precision}"] = problem.error(problem.ours(CupyBackend(precision=precision)))
        found[f"torch {precision}"] = problem.error(problem.torch(precision))
    return found
