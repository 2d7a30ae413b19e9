"""One training or sampling step, our backends beside PyTorch: python -m benchmarks.steps --case cifar10 --what train

Training: forward, L_simple, backward, clipping at norm 1, Adam and EMA, with the network's dropout, on random images.
Sampling: the network's ε_θ(x_t, t) and line 4 of Algorithm 2 with fresh noise. Every contender lives in a process of
its own that does nothing else; rounds go A B C A B C …, each visit the median of as many steps as fit half a second;
the ratio is taken round by round. Before timing, all outputs and all convolutions' gradients are compared on the same
weights. All run with OMP_PROC_BIND=true: without it two threads that wait for each other are now and then left on one
core by the system, for every side alike.
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

from benchmarks.cases import CASES

PEERS = ("torch contiguous", "torch channels_last", "torch compile")
T = 500  # the step that is sampled


def main() -> None:
    """Parse the command line, run the rounds, print a table, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="cifar10")
    parser.add_argument("--what", choices=("train", "sample"), default="train")
    parser.add_argument("--batch", type=int, help="the case's unless given")
    parser.add_argument(
        "--backend", nargs="+", default=["numba", "numpy"], help="ours; the first is compared with peers"
    )
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    case = CASES[args.case]
    args.batch = args.batch or (case.train if args.what == "train" else case.sample)

    # Read by the children's libraries before they load; the last two hold NumPy's BLAS to kernels of older processors.
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[variable] = str(args.threads)
    for variable in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        os.environ.pop(variable, None)
    os.environ.setdefault("OMP_PROC_BIND", "true")
    context, workers, facts = get_context("spawn"), {}, {}
    for name in [*args.backend, *args.peers]:  # one after another: they may compile, and say how long it took
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, name, args), daemon=True)
        process.start()
        facts[name] = ours.recv()
        if isinstance(facts[name], str):
            print(f"  {name}: left out, {facts.pop(name)}")
        else:
            workers[name] = (ours, process)
    agreement = _agreement(facts, args.backend[0])
    times: dict[str, list[float]] = {name: [] for name in workers}
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
    args: Any, times: dict[str, list[float]], memory: dict[str, float], agreement: dict[str, float], facts: Any
) -> dict:
    median = {name: statistics.median(t) for name, t in times.items()}
    peers = [name for name in times if name not in args.backend]
    ours = args.backend[0]
    print(f"{args.case}, {args.what}, batch {args.batch}, {args.threads} threads, {args.rounds} interleaved rounds")
    for name, t in times.items():
        spread = f"range {1e3 * min(t):.1f}-{1e3 * max(t):.1f}"
        held = f"peak {memory[name]:.2f} GiB, {facts[name]['start_memory']:.2f} of it before the network"
        print(f"  {name:20s} median {1e3 * median[name]:8.1f} ms  {spread:18s} {held}")
    ratios = {}
    best = min(peers, key=median.__getitem__, default=None)
    for other in [name for name in times if name != ours]:
        each = [b / a for a, b in zip(times[ours], times[other], strict=True)]
        ratios[other] = statistics.quantiles(each, n=4)
        low, middle, high = ratios[other]
        print(f"  {ours} is {middle:.2f} times as fast as {other} (quartiles {low:.2f}-{high:.2f})")
    print("  same network: " + ", ".join(f"{what} differs by {gap:.1e}" for what, gap in agreement.items()))
    return {
        "case": args.case, "what": args.what, "batch": args.batch, "threads": args.threads, "seconds": times,
        "best_peer": best, "speed_over": ratios, "peak_memory_gib": memory,
        "start_memory_gib": {name: f["start_memory"] for name, f in facts.items()},
        "agreement": agreement, "versions": {name: f["version"] for name, f in facts.items()},
        "compile_seconds": {name: f["seconds"] for name, f in facts.items()},
        "cpu": _cpu(), "python": platform.python_version(),
        "command": " ".join(["python -m benchmarks.steps", *sys.argv[1:]]),
    }  # fmt: skip


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def _agreement(facts: dict[str, Any], ours: str) -> dict[str, float]:
    """The largest relative difference in norm between our network and every other; more than 1e-4 is an error."""
    import numpy as np

    worst = {}
    for what in ("output", "gradient"):
        reference = facts[ours][what]
        gaps = [np.linalg.norm(f[what] - reference) / (np.linalg.norm(reference) + 1e-30) for f in facts.values()]
        worst[what] = float(max(gaps))
        if worst[what] > 1e-4:
            sys.exit(f"not the same network: {what} differs by {worst[what]:.1e}")
    return worst


def _serve(pipe: Connection, name: str, args: Any) -> None:
    """In a contender's own process: make it, then time it at each request."""
    start = time.perf_counter()
    try:
        facts, step = (_torch_side if name in PEERS else _our_side)(name, args)
        step()
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {str(error).splitlines()[:1]}")
        return
    pipe.send(facts | {"seconds": time.perf_counter() - start})
    while pipe.recv() == "step":
        seconds: list[float] = []
        while sum(seconds) < 0.5 or len(seconds) < 2:
            begun = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - begun)
        pipe.send(statistics.median(seconds))
    pipe.send(_peak_memory())


def _peak_memory() -> float:
    """The most memory this process has held, GiB; NaN where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def _problem(args: Any) -> Any:
    """The network, random weights (so that no layer is near 0), and a batch, the same on every side."""
    import numpy as np

    from ddpm_ref.nn.unet import UNet

    net = UNet(CASES[args.case].config)
    cfg, rng = net.config, np.random.default_rng(0)
    params = net.init(0)
    for p in params:
        if p.endswith(("conv2/W", "proj_out/W", "conv_out/W")):
            params[p] = params[p] * 1e5
    x = rng.standard_normal((args.batch, cfg.image_size, cfg.image_size, cfg.channels), dtype=np.float32)
    eps = rng.standard_normal(x.shape, dtype=np.float32)
    return net, params, x, rng.integers(1, 1001, args.batch), eps


def _our_side(name: str, args: Any) -> tuple[Any, Callable[[], None]]:
    import numpy as np

    from ddpm_ref import Schedule, simple_loss
    from ddpm_ref.discovery import get_backend
    from ddpm_ref.memory import keep_freed_memory
    from ddpm_ref.nn.optim import AdamSettings
    from ddpm_ref.random import Purpose

    keep_freed_memory()
    backend, samples = get_backend(name, args.threads), np.arange(args.batch)
    facts: dict[str, Any] = {"version": str(backend.describe()), "start_memory": _peak_memory()}
    net, params, x, t, eps = _problem(args)
    if args.what == "sample":
        schedule, model = Schedule.linear(), net.bind(params, backend)
        facts |= {"output": model(x, T), "gradient": np.zeros(1)}
        return facts, lambda: backend.p_sample(schedule, x, T, model(x, T), 0, samples, clip=True)  # type: ignore[return-value]
    output, backward = net(params, x, t, backend)
    _, grads = backward(simple_loss(output, eps)[1])
    facts |= {"output": output, "gradient": np.concatenate([grads[p].ravel() for p in grads if grads[p].ndim == 4])}
    m, v, ema = (np.zeros_like(params.vector) for _ in range(3))
    settings, k = AdamSettings(), 0

    def step() -> None:
        nonlocal k
        k += 1

        def dropout(layer: int, shape: tuple[int, ...]) -> Any:
            return backend.uniform(0, Purpose.DROPOUT, k, samples, shape[1:], layer=layer)

        output, backward = net(params, x, t, backend, dropout=dropout if net.config.dropout else None)
        _, grads = backward(simple_loss(output, eps)[1])
        backend.update(params.vector, grads.vector, m, v, ema, k, settings)

    return facts, step


def _torch_side(name: str, args: Any) -> tuple[Any, Callable[[], None]]:
    import numpy as np
    import torch
    import torch.nn.functional as F

    from benchmarks.peers.pytorch import TorchUNet, embed, sampler

    torch.set_num_threads(args.threads)
    facts: dict[str, Any] = {"version": f"PyTorch {torch.__version__}", "start_memory": _peak_memory()}
    net, params, x_np, t, eps_np = _problem(args)
    layout = torch.contiguous_format if name.endswith("contiguous") else torch.channels_last
    model = TorchUNet(net, params).to(memory_format=layout)
    run = torch.compile(model) if name.endswith("compile") else model
    x, eps = (torch.from_numpy(a).permute(0, 3, 1, 2).contiguous(memory_format=layout) for a in (x_np, eps_np))
    model.eval()
    if args.what == "sample":
        step, output = sampler(run, x, T, net.config.base)
        return facts | {"output": output.permute(0, 2, 3, 1).numpy().copy(), "gradient": np.zeros(1)}, step
    output = model(x, embed(t, net.config.base))
    F.mse_loss(output, eps).backward()
    convolutions = [model.convolution(p[: -len("/W")]) for p, shape in net.shapes.items() if len(shape) == 4]
    gradient = np.concatenate([c.weight.grad.permute(2, 3, 1, 0).reshape(-1).numpy() for c in convolutions])
    facts |= {"output": output.detach().permute(0, 2, 3, 1).numpy().copy(), "gradient": gradient}
    del output, convolutions
    model.train()
    weights = list(model.parameters())
    ema = [p.detach().clone() for p in weights]
    optimizer = torch.optim.Adam(weights, lr=2e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.mse_loss(run(x, embed(t, net.config.base)), eps).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        torch._foreach_lerp_(ema, [p.detach() for p in weights], 1e-4)

    return facts, step


if __name__ == "__main__":
    main()
