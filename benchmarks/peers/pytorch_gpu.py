"""PyTorch's whole training and sampling step on a GPU, at its settings: python -m benchmarks.peers.pytorch_gpu

The network of `pytorch.py` in channels_last, cudnn.benchmark, fused Adam, foreach clipping and EMA, images drawn from a
uint8 data set on the device, noise and t drawn there. precision: tf32 (matrix products and convolutions), bf16
(autocast), fp32. mode: eager; graph, the whole step captured as one CUDA graph; compile, `torch.compile`d network
in such a graph; autotune, the same with max-autotune. Every setting lives in a process of its own: all warm up and
compile at once, then each is timed alone, by events, in turns of several rounds.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple


class Setting(NamedTuple):
    """One contender."""

    case: str
    what: str
    batch: int
    mode: str
    precision: str

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.case} {self.what} {self.batch} {self.precision} {self.mode}"


T = 500  # the step that is sampled


def build(setting: Setting, device: str = "cuda") -> tuple[Callable[[], None], dict[str, Any]]:
    """The step as a function without arguments, and facts about it. Also runs on "cpu", without graphs."""
    import torch

    from benchmarks.cases import CASES
    from benchmarks.peers.pytorch import TorchUNet
    from benchmarks.peers.pytorch_chain import Chain
    from benchmarks.peers.pytorch_side import Shape, Training, compiled, embedder, settle
    from ddpm_ref import Schedule, UNet

    settle(setting.precision)
    net = UNet(CASES[setting.case].config)
    cfg, schedule, n = net.config, Schedule.linear(), setting.batch
    model = TorchUNet(net, net.init(0)).to(device).to(memory_format=torch.channels_last)
    shape = Shape(n, cfg, device, torch.float32, torch.channels_last, setting.precision)
    embed = embedder(cfg.base, device, torch.float32)
    if setting.what == "sample":
        chain = Chain(model.eval(), shape, embed, schedule, mode=setting.mode)
        return (lambda: chain.from_t(chain.x, T)), {}
    data = torch.randint(
        0, 256, (50_000, cfg.image_size, cfg.image_size, cfg.channels), dtype=torch.uint8, device=device
    )
    model.train()
    return Training(model, compiled(model, setting.mode), shape, embed, schedule, data), {"parameters": net.size}


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """The step as one CUDA graph."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def timed(step: Callable[[], None], least: int, milliseconds: float, most: int) -> list[float]:
    """Milliseconds of each of many steps, by events."""
    import torch

    times: list[float] = []
    spent = 0.0
    while len(times) < least or (spent < milliseconds and len(times) < most):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        step()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
        spent += times[-1]
    return times


def best_product(precision: str, size: int) -> float:
    """Seconds of the fastest of some products of two size x size matrices."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device="cuda").to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return min(timed(lambda: torch.matmul(a, b, out=out), 10, 500, 200)) / 1e3


def serve(pipe: Any, setting: Setting) -> None:
    """In a contender's own process: warm up, say so, then time at each request."""
    import torch

    try:
        begun = time.perf_counter()
        step, facts = build(setting)
        for _ in range(3):
            step()
        if setting.mode != "eager":
            step = captured(step)
        step()
        torch.cuda.synchronize()
        facts |= {"warm_up_seconds": time.perf_counter() - begun}
        pipe.send(facts)
        while pipe.recv() == "time":
            for _ in range(2 if setting.mode == "eager" else 1):
                step()
            times = timed(step, 10, 400, 200)
            pipe.send(times)
        pipe.send({"peak_memory_gib": torch.cuda.max_memory_reserved() / 2**30, "version": torch.__version__})
    except Exception as error:  # left out, and said so
        pipe.send(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")


def measure(settings: list[Setting], rounds: int, patience: float) -> list[dict[str, Any]]:
    """Milliseconds of each setting, interleaved; those not ready after `patience` seconds are left out."""
    context = get_context("spawn")
    workers, begun = [], time.perf_counter()
    for setting in settings:
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, setting), daemon=True)
        process.start()
        workers.append((setting, ours, process))
    rows: list[dict[str, Any]] = []
    ready = []
    for setting, pipe, process in workers:
        left = max(0.0, patience - (time.perf_counter() - begun))
        facts = pipe.recv() if pipe.poll(left) else f"not compiled within {patience:.0f} s"
        if isinstance(facts, str):
            print(f"  {setting.name}: left out, {facts}", flush=True)
            process.kill()
        else:
            ready.append((setting, pipe, process))
            rows.append({**setting._asdict(), **facts, "milliseconds": []})
    for _ in range(rounds):
        for row, (_, pipe, _) in zip(rows, ready, strict=True):
            pipe.send("time")
            got = pipe.recv()
            if not isinstance(got, str):
                row["milliseconds"].append(statistics.median(got))
    for row, (setting, pipe, process) in zip(rows, ready, strict=True):
        pipe.send("stop")
        got = pipe.recv()
        row |= got if isinstance(got, dict) else {"error": got}
        process.join(10)
        middle = statistics.median(row["milliseconds"]) if row["milliseconds"] else float("nan")
        print(f"  {setting.name:40s} {middle:9.3f} ms  {row.get('peak_memory_gib', 0):6.2f} GiB", flush=True)
    return rows


def settings_of(case: str, what: str, batch: int, modes: list[str], precisions: list[str]) -> list[Setting]:
    """Every combination."""
    return [Setting(case, what, batch, mode, precision) for precision in precisions for mode in modes]


def main() -> None:
    """Time the settings asked for, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="case:what:batch, such as cifar10:train:128")
    parser.add_argument("--modes", nargs="+", default=["eager", "graph", "compile"])
    parser.add_argument("--precisions", nargs="+", default=["tf32", "bf16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--patience", type=float, default=240, help="seconds to compile in")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    steps = args.only or ["digits:train:128", "cifar10:train:128", "cifar10:sample:16", "cifar10:sample:256"]
    settings: list[Setting] = []
    for step in steps:
        case, what, batch = step.split(":")
        settings += settings_of(case, what, int(batch), args.modes, args.precisions)
    rows = measure(settings, args.rounds, args.patience)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
