"""Each pass of the convolutions beside cuDNN's, on a GPU: PYTHONPATH=.:backends python -m benchmarks.gpu_conv

    own       the kernels of conv_hopper.cu and conv_tensor.cu, filters packed and parts added up
    windows   products over gathered windows by cuBLAS, which all else takes
    cudnn     PyTorch's, channels_last, cudnn.benchmark

Images are float32, in bf16 bfloat16 on both sides. Milliseconds are medians by events of calls on inputs that rotate,
queued behind other work so that no launch is waited for. error: from PyTorch's float64, by norm. JSON goes to
$OUT/conv.json.
"""

import argparse
import itertools
import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

SHAPES = [
    (32, 128, 128), (32, 256, 128), (32, 384, 128), (32, 3, 128), (32, 128, 3), (16, 256, 256), (16, 128, 256),
    (16, 384, 256), (16, 512, 256), (8, 256, 256), (8, 512, 256), (4, 256, 256), (4, 512, 256),
    (8, 32, 32), (8, 64, 32),
]  # fmt: skip
"""Size, channels in and out: those of the networks `cifar10` and `digits`."""
PASSES = ("y", "dx", "dW")
TERAFLOPS = {"fp32": 67, "tf32": 395, "bf16": 790}
TERABYTES = 4.3
ROTATED = 150 << 20  # bytes of inputs, more than any cache


class Inputs(NamedTuple):
    """CuPy arrays of one call."""

    x: Any
    W: Any
    b: Any
    dy: Any


def inputs(run: Any, n: int, size: int, c: int, d: int) -> list[Inputs]:
    """As many as do not fit the card's cache, at most 8."""
    import numpy as np

    cupy = run.cupy
    random = cupy.random.default_rng(0)
    count = max(2, min(8, ROTATED // (4 * n * size * size * (c + d))))

    def normal(*shape: int) -> Any:
        return random.standard_normal(shape, dtype=np.float32)

    shapes = (n, size, size, c), (3, 3, c, d), (d,), (n, size, size, d)
    made = [Inputs(*(normal(*shape) for shape in shapes)) for _ in range(count)]
    return [i._replace(x=of_a_network(run, i.x), dy=of_a_network(run, i.dy)) for i in made]


def of_a_network(run: Any, x: Any) -> Any:
    """float32 images as a network holds them."""
    from ddpm_ref_cupy.dense import rounded

    return rounded(run, x) if stored(run, x.shape[3]) == "uint16" else x


# --- the contenders: {pass: function of one Inputs} ------------------------------------------------------------------


def stored(run: Any, channels: int) -> Any:
    """What images of so many channels hold within a network."""
    import numpy as np

    return np.dtype(np.uint16 if run.precision == "bf16" and channels % 8 == 0 else np.float32)


def own(run: Any) -> dict[str, Callable[[Inputs], Any]]:
    """Tensor cores, without columns."""
    from ddpm_ref_cupy import conv

    def convolve(x: Any, W: Any, b: Any, turned: bool) -> Any:
        d = W.shape[2 if turned else 3]
        cut = conv._blocks(run, x.shape, d)
        assert cut, f"no kernel for {x.shape}"
        filters = conv._packed(run, W, cut, turned)[0]
        return conv._convolve_tiles(run, conv._operands(run, x), filters, b, None, d, stored(run, d), cut)

    def gradient(i: Inputs) -> Any:
        cut = conv._gradient_blocks(run, i.x.shape, i.dy.shape[3])
        assert cut, f"no kernel for {i.x.shape}"
        return conv._gradient_of_tiles(run, *(conv._operands(run, a) for a in (i.x, i.dy)), i.W.shape[2:], cut)[0]

    return {
        "y": lambda i: convolve(i.x, i.W, i.b, False),
        "dx": lambda i: convolve(i.dy, i.W, None, True),
        "dW": gradient,
    }


def windows(run: Any) -> dict[str, Callable[[Inputs], Any]]:
    """Gathered windows and cuBLAS."""
    import numpy as np
    from ddpm_ref_cupy import conv
    from ddpm_ref_cupy.dense import add_bias, spread

    def forward(i: Inputs) -> Any:
        y = run.empty(i.dy.shape, stored(run, i.dy.shape[3]))
        conv._convolve(run, conv._factor(run, i.x), i.W, y, 1, 1, 1, 1)
        add_bias(run, y, i.b, y.size // y.shape[-1])
        return y

    def adjoint(i: Inputs) -> Any:
        c, d = i.W.shape[2:]
        turned, dx = run.empty((3, 3, d, c), np.float32), run.empty(i.x.shape, stored(run, c))
        run.launch(spread("conv.turned", i.W.size), i.W, turned, np.int32(c), np.int32(d))
        conv._convolve(run, conv._factor(run, i.dy), turned, dx, 1, 1, 1, 1)
        return dx

    def gradient(i: Inputs) -> Any:
        dW = run.empty(i.W.shape, np.float32)
        conv._filter_gradient(run, conv._factor(run, i.x), conv._factor(run, i.dy), dW, 1, 1, 1)
        return dW

    return {"y": forward, "dx": adjoint, "dW": gradient}


def cudnn(dtype: Any) -> tuple[Callable[[Inputs], Inputs], dict[str, Callable[[Inputs], Any]]]:
    """What turns our arrays into PyTorch's, and its passes."""
    import torch

    def theirs(i: Inputs) -> Inputs:
        x, W, b, dy = (tensor(a).to(dtype) for a in i)
        return Inputs(
            x.permute(0, 3, 1, 2), W.permute(3, 0, 1, 2).contiguous().permute(0, 3, 1, 2), b, dy.permute(0, 3, 1, 2)
        )

    def backward(*wanted: bool) -> Callable[[Inputs], Any]:
        step = torch.ops.aten.convolution_backward
        at = wanted.index(True)
        return lambda i: step(i.dy, i.x, i.W, None, (1, 1), (1, 1), (1, 1), False, (0, 0), 1, wanted)[at]

    forward = torch.nn.functional.conv2d
    return theirs, {
        "y": lambda i: forward(i.x, i.W, i.b, padding=1),
        "dx": backward(True, False, False),
        "dW": backward(False, True, False),
    }


def tensor(a: Any) -> Any:
    """Our array as PyTorch's, bfloat16 as what it is."""
    import torch

    t = torch.from_dlpack(a)
    return t.view(torch.bfloat16) if t.dtype == torch.uint16 else t


def as_ours(name: str, a: Any) -> Any:
    """PyTorch's result with our axes, float64."""
    return a.double().permute(*((2, 3, 1, 0) if name == "dW" else (0, 2, 3, 1)))


def timed(
    stream: Any, busy: Callable[[], Any], step: Callable[[Inputs], Any], given: list[Inputs], rounds: int
) -> float:
    """Milliseconds of a call: the median of rounds of twenty. stream: PyTorch's, in which all of it runs."""
    import torch

    calls, took = 20, []
    for i in given:
        step(i)
    for _ in range(rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        turn = itertools.cycle(given)
        busy()
        begin.record(stream)
        for _ in range(calls):
            step(next(turn))
        end.record(stream)
        end.synchronize()
        took.append(begin.elapsed_time(end) / calls)
    return statistics.median(took)


def measure(precision: str, shape: tuple[int, int, int], n: int, rounds: int, reference: bool) -> list[dict[str, Any]]:
    """The three passes of one shape."""
    import torch
    from ddpm_ref_cupy.cuda import CudaDevice

    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision != "fp32"
    run, (size, c, d) = CudaDevice(precision), shape
    given = inputs(run, n, size, c, d)
    run.synchronize()
    stream = torch.cuda.ExternalStream(run.stream.ptr)
    with torch.cuda.stream(stream):
        big = torch.randn(6144, 6144, device="cuda", dtype=torch.bfloat16)

        def busy() -> None:
            for _ in range(6):
                big @ big

        theirs, passes = cudnn(torch.bfloat16 if precision == "bf16" else torch.float32)
        converted = [theirs(i) for i in given]
        contenders = {"windows": (windows(run), given), "cudnn": (passes, converted)}
        if precision != "fp32":
            contenders = {"own": (own(run), given)} | contenders
        rows = []
        for name in PASSES:
            arithmetic = 2 * n * size * size * 9 * c * d
            moved = sum(a.nbytes for a in (given[0].x, given[0].dy))
            floor = 1e3 * max(arithmetic / TERAFLOPS[precision] / 1e12, moved / TERABYTES / 1e12)
            row = {"shape": [n, *shape], "pass": name, "precision": precision, "floor_ms": floor}
            row["images"] = "bfloat16" if precision == "bf16" else "float32"
            for who, (steps, arrays) in contenders.items():
                row[who] = timed(stream, busy, steps[name], arrays, rounds)
            if reference:
                exact_inputs, exact = cudnn(torch.float64)
                wanted = as_ours(name, exact[name](exact_inputs(given[0])))
                for who, (steps, arrays) in contenders.items():
                    found = steps[name](arrays[0])
                    found = as_ours(name, found) if who == "cudnn" else tensor(found).double()
                    row[f"{who}_error"] = float((found - wanted).norm() / wanted.norm())
            row["teraflops"] = arithmetic / row.get("own", row["windows"]) / 1e9
            rows.append(row)
            say(row)
    return rows


def say(row: dict[str, Any]) -> None:
    """One line of the table."""
    n, size, c, d = row["shape"]
    best = row.get("own", row["windows"])
    errors = " ".join(
        f"{who} {row[f'{who}_error']:.1e}" for who in ("own", "windows", "cudnn") if f"{who}_error" in row
    )
    print(
        f"{row['precision']} {n}x{size}x{size} {c:3d}->{d:3d} {row['pass']:2s}  own {row.get('own', float('nan')):7.4f}"
        f"  windows {row['windows']:7.4f}  cudnn {row['cudnn']:7.4f} ms  {row['teraflops']:5.0f} TFLOP/s,"
        f" {row['floor_ms'] / best:4.0%} of the floor, cudnn / own {row['cudnn'] / best:5.2f}  {errors}",
        flush=True,
    )


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precisions", nargs="+", default=["bf16", "tf32"], choices=sorted(TERAFLOPS))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="only the first so many")
    args = parser.parse_args()
    rows = []
    for precision in args.precisions:
        for at, shape in enumerate(SHAPES[: args.shapes]):
            rows += measure(precision, shape, args.batch, args.rounds, reference=at < 2 or shape[0] < 16)
            out = Path(os.environ.get("OUT", "."), "conv.json")
            out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
