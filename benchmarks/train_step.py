"""One training step of a preset, ddpm_ref beside PyTorch: python -m benchmarks.train_step --preset cifar10 --batch 8

A step is forward, L_simple, backward, clipping at norm 1, Adam and EMA, with the preset's dropout, on random images.
Every contender lives in a process of its own; rounds go A B C A B C …; the ratio is taken round by round and its median
reported. Before timing, the networks' outputs and all convolutions' gradients are compared on the same weights.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

CONTENDERS = ("numpy", "torch contiguous", "torch channels_last")


def main() -> None:
    """Parse the command line, run the rounds, print a table, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cifar10")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()

    # Read by the children's BLAS and OpenMP before they load.
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(args.threads)
    context = get_context("spawn")
    workers = {}
    for name in CONTENDERS:
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_serve, args=(theirs, name, args.preset, args.batch, args.threads), daemon=True
        )
        process.start()
        workers[name] = (ours, process)
    facts = {name: pipe.recv() for name, (pipe, _) in workers.items()}
    agreement = _agreement(facts)
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for round_ in range(args.rounds + 1):
        for name, (pipe, _) in workers.items():
            pipe.send("step")
            seconds = pipe.recv()
            if round_:  # the first round warms up
                times[name].append(seconds)
    memory = {}
    for name, (pipe, process) in workers.items():
        pipe.send("stop")
        memory[name] = pipe.recv()
        process.join()
    report = _report(args, times, memory, agreement, facts)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


def _report(
    args: Any,
    times: dict[str, list[float]],
    memory: dict[str, float],
    agreement: dict[str, float],
    facts: Any,
) -> dict:
    median = {name: statistics.median(t) for name, t in times.items()}
    best = min((n for n in CONTENDERS if n != "numpy"), key=median.__getitem__)
    ratios = [a / b for a, b in zip(times["numpy"], times[best], strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)
    print(
        f"{args.preset}, batch {args.batch}, {args.threads} threads, {args.rounds} interleaved rounds, seconds a step"
    )
    for name, t in times.items():
        spread = f"range {min(t):.3f}-{max(t):.3f}"
        print(f"  {name:20s} median {median[name]:7.3f}   {spread}   peak memory {memory[name]:.2f} GiB")
    print(f"  numpy / {best}: {quartiles[1]:.2f} (quartiles {quartiles[0]:.2f}-{quartiles[2]:.2f})")
    gaps = {what: f"{gap:.1e}" for what, gap in agreement.items()}
    print(f"  same network: output differs by {gaps['output']}, gradient by {gaps['gradient']} (relative norms)")
    return {
        "preset": args.preset, "batch": args.batch, "threads": args.threads, "seconds": times, "best_peer": best,
        "ratio": quartiles[1], "ratio_quartiles": [quartiles[0], quartiles[2]], "peak_memory_gib": memory,
        "agreement": agreement, "versions": {name: f["version"] for name, f in facts.items()},
        "cpu": _cpu(), "python": platform.python_version(),
        "command": " ".join(["python -m benchmarks.train_step", *sys.argv[1:]]),
        "OPENBLAS_CORETYPE": os.environ.get("OPENBLAS_CORETYPE", ""),
    }  # fmt: skip


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def _agreement(facts: dict[str, Any]) -> dict[str, float]:
    """The largest relative difference in norm between the NumPy network and each peer; more than 1e-4 is an error."""
    import numpy as np

    ours, worst = facts["numpy"], {}
    for what in ("output", "gradient"):
        reference = ours[what]
        gaps = [
            np.linalg.norm(f[what] - reference) / np.linalg.norm(reference) for n, f in facts.items() if n != "numpy"
        ]
        worst[what] = float(max(gaps))
        if worst[what] > 1e-4:
            sys.exit(f"not the same network: {what} differs by {worst[what]:.1e}")
    return worst


def _serve(pipe: Connection, name: str, preset: str, batch: int, threads: int) -> None:
    """In a contender's own process: check values, then time one step at each request."""
    make = _numpy_side if name == "numpy" else _torch_side
    facts, step = make(preset, batch, threads, name)
    pipe.send(facts)
    while pipe.recv() == "step":
        start = time.perf_counter()
        step()
        pipe.send(time.perf_counter() - start)
    pipe.send(_peak_memory())


def _peak_memory() -> float:
    """The most memory this process has held, GiB; NaN where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def _problem(preset: str, batch: int) -> Any:
    """The network, random weights (so that no layer is near 0), and a batch, the same on every side."""
    import numpy as np

    from ddpm_ref.nn.plan import PRESETS
    from ddpm_ref.nn.unet import UNet

    net = UNet(PRESETS[preset])
    cfg, rng = net.config, np.random.default_rng(0)
    params = net.init(0)
    for p in params:
        if p.endswith(("conv2/W", "proj_out/W", "conv_out/W")):
            params[p] = params[p] * 1e5
    x = rng.standard_normal((batch, cfg.image_size, cfg.image_size, cfg.channels), dtype=np.float32)
    eps = rng.standard_normal(x.shape, dtype=np.float32)
    return net, params, x, rng.integers(1, 1001, batch), eps


def _numpy_side(preset: str, batch: int, threads: int, name: str) -> tuple[Any, Callable[[], None]]:
    import numpy as np

    from ddpm_ref.backend import Backend
    from ddpm_ref.memory import keep_freed_memory
    from ddpm_ref.nn.optim import AdamSettings
    from ddpm_ref.objective import simple_loss
    from ddpm_ref.random import Purpose

    keep_freed_memory()
    net, params, x, t, eps = _problem(preset, batch)
    backend, samples = Backend(), np.arange(batch)
    output, backward = net(params, x, t, backend)
    _, d_output = simple_loss(output, eps)
    _, grads = backward(d_output)
    facts = {
        "version": f"NumPy {np.__version__}",
        "output": output,
        "gradient": np.concatenate([grads[p].ravel() for p in grads if grads[p].ndim == 4]),
    }
    m, v, ema = (np.zeros_like(params.vector) for _ in range(3))
    settings, k = AdamSettings(), 0
    del grads, backward

    def step() -> None:
        nonlocal k
        k += 1

        def dropout(layer: int, shape: tuple[int, ...]) -> Any:
            return backend.uniform(0, Purpose.DROPOUT, k, samples, shape[1:], layer=layer)

        output, backward = net(params, x, t, backend, dropout=dropout if net.config.dropout else None)
        _, d_output = simple_loss(output, eps)
        _, grads = backward(d_output)
        backend.update(params.vector, grads.vector, m, v, ema, k, settings)

    return facts, step


def _torch_side(preset: str, batch: int, threads: int, name: str) -> tuple[Any, Callable[[], None]]:
    import numpy as np
    import torch
    import torch.nn.functional as F

    from benchmarks.peers.pytorch import TorchUNet, embed

    torch.set_num_threads(threads)
    net, params, x_np, t, eps_np = _problem(preset, batch)
    layout = torch.channels_last if name.endswith("channels_last") else torch.contiguous_format
    model = TorchUNet(net, params).to(memory_format=layout)
    x, eps = (torch.from_numpy(a).permute(0, 3, 1, 2).contiguous(memory_format=layout) for a in (x_np, eps_np))
    temb = embed(t, net.config.base)
    model.eval()
    output = model(x, temb)
    F.mse_loss(output, eps).backward()
    convolutions = {p: model.convolution(p[: -len("/W")]) for p, shape in net.shapes.items() if len(shape) == 4}
    gradient = np.concatenate([c.weight.grad.permute(2, 3, 1, 0).reshape(-1).numpy() for c in convolutions.values()])
    facts = {
        "version": f"PyTorch {torch.__version__}",
        "output": output.detach().permute(0, 2, 3, 1).numpy().copy(),
        "gradient": gradient,
    }
    model.train()
    weights = list(model.parameters())
    ema = [p.detach().clone() for p in weights]
    optimizer = torch.optim.Adam(weights, lr=2e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.mse_loss(model(x, embed(t, net.config.base)), eps).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        torch._foreach_lerp_(ema, [p.detach() for p in weights], 1e-4)

    return facts, step


if __name__ == "__main__":
    main()
