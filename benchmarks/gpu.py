"""The CuPy backend on a GPU: its tests, its races, its speed beside PyTorch. Called by benchmarks/gpu.sh.

Every item of a part writes OUT/PART-ITEM.json when it is done, and is not done again where that file is there, of the
same code and card. Nothing is started after --seconds; what is left then is listed. The table comes last.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu_steps import sampling, timed, training
from benchmarks.provenance import ROOT, code_hash, gpu

STEPS = ("digits:train:128", "cifar10:train:128", "cifar10:sample:16", "cifar10:sample:256")
PRECISIONS = ("tf32", "bf16", "fp32")


class Item(NamedTuple):
    """One thing to do. work: given the folder, returns what its JSON file is to hold."""

    name: str
    work: Callable[[Path], dict[str, Any]]


def main() -> int:
    """Do the parts, print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("test", "sanitize", "bench"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--only", help="items whose names match this regular expression")
    args = parser.parse_args()
    begun, failed, left = time.monotonic(), [], []
    of = {"code": code_hash(ROOT), "card": (gpu() or {}).get("name")}
    items = {"test": tests, "sanitize": sanitizers, "bench": benches}[args.part]()
    for item in [one for one in items if re.search(args.only or "", one.name)]:
        path = args.out / f"{args.part}-{item.name.replace(':', '-')}.json"
        if path.exists() and json.loads(path.read_text()).items() >= of.items():
            print(f"{item.name}: done before", flush=True)
            continue
        if time.monotonic() - begun > args.seconds:
            left.append(item.name)
            continue
        start = time.monotonic()
        try:
            result = item.work(args.out)
        except Exception as error:  # the others may still run
            result = {"error": f"{type(error).__name__}: {error}"}
        result["seconds"] = round(time.monotonic() - start, 1)
        print(f"{item.name}: {result.get('error') or 'done'}, {result['seconds']} s", flush=True)
        if "error" in result:
            failed.append(item.name)
            path = path.with_suffix(".failed.json")
        path.write_text(json.dumps(result | of, indent=1, default=str) + "\n")
    if args.part == "bench":
        table(args.out)
    print(f"failed: {', '.join(failed) or 'nothing'}; left for another call: {', '.join(left) or 'nothing'}")
    return 1 if failed else 0


# --- test and sanitize -----------------------------------------------------------------------------------------------


def compile_one(kernel: tuple[str, str]) -> tuple[str, float, str]:
    """Compile one file for one type into the cache on disk."""
    import numpy as np
    from ddpm_ref_cupy.cuda import CudaDevice

    file, real = kernel
    begun = time.monotonic()
    try:
        CudaDevice().compile(file, np.dtype(real))
    except Exception as error:
        return f"{file} {real}", time.monotonic() - begun, f"{type(error).__name__}: {error}"
    return f"{file} {real}", time.monotonic() - begun, ""


def compile_all(out: Path) -> dict[str, Any]:
    """Every kernel file, in as many processes as there are cores."""
    from ddpm_ref_cupy.source import types

    folder = Path("backends/ddpm_ref_cupy/kernels")
    kernels = [(path.stem, real) for path in sorted(folder.glob("*.cu")) for real in types(path.stem)]
    with get_context("spawn").Pool(min(len(kernels), os.cpu_count() or 1)) as pool:
        done = pool.map(compile_one, kernels, chunksize=1)
    wrong = [f"{name}: {error}" for name, _, error in done if error]
    return {"compile_seconds": {name: s for name, s, _ in done}} | ({"error": "\n".join(wrong)} if wrong else {})


def command(out: Path, name: str, words: list[str], limit: float) -> dict[str, Any]:
    """Run a command with its output in OUT/name.log; an error if it fails, with the log's end."""
    log = out / f"{name}.log"
    with log.open("w") as file:
        try:
            code = subprocess.run(words, stdout=file, stderr=subprocess.STDOUT, timeout=limit).returncode
        except subprocess.TimeoutExpired:
            code = -1
    lines = log.read_text(errors="replace").splitlines()
    print("\n".join(lines[-40:] if code else lines[-6:]), flush=True)
    wrong = f"exit status {code}" if code else None
    if "pytest" in words and " passed" not in lines[-1]:
        wrong = wrong or f"nothing passed: {lines[-1]}"
    return {"command": " ".join(words), "log": log.name} | ({"error": wrong} if wrong else {})


def pytest_item(file: str) -> Item:
    """The tests of one file."""
    stop = ["-x"] if "first" in file else []
    words = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", *stop, f"tests/gpu/{file}"]
    name = file.removesuffix(".py").removeprefix("test_gpu_")
    return Item(name, lambda out: command(out, f"test-{name}", [*words, "-p", "no:cacheprovider"], 300))


def tests() -> list[Item]:
    """Every file of tests/gpu, in the order of their names."""
    files = sorted(path.name for path in Path("tests/gpu").glob("test_*.py"))
    return [Item("compile", compile_all), *map(pytest_item, files)]


def sanitizers() -> list[Item]:
    """Each tool over `benchmarks.gpu_small`."""

    def item(tool: str) -> Item:
        words = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable]
        return Item(tool, lambda out: command(out, f"sanitize-{tool}", [*words, "-m", "benchmarks.gpu_small"], 280))

    return [item(tool) for tool in ("memcheck", "racecheck", "synccheck")]


# --- bench -----------------------------------------------------------------------------------------------------------


def benches() -> list[Item]:
    """Ours first, then PyTorch from cheap to dear."""

    def ours(step: str, precision: str) -> Item:
        return Item(f"ours:{step}:{precision}", lambda out: in_child(ours_step, step, precision))

    def torch(name: str, step: str, modes: list[str], patience: float) -> Item:
        return Item(f"{name}:{step}", lambda out: torch_steps(out, step, modes, patience))

    return [
        Item("compile", compile_all),
        Item("same", lambda out: in_child(same_network)),
        *(ours(step, precision) for step in STEPS for precision in PRECISIONS),
        *(torch("torch", step, ["eager", "graph"], 60) for step in STEPS),
        Item("convs", lambda out: command(out, "bench-convs", [sys.executable, "-m", "benchmarks.gpu_conv"], 280)),
        *(torch(f"torch-{mode}", step, [mode], 200) for mode in ("compile", "autotune") for step in STEPS),
    ]


def in_child(work: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """Run in a process of its own, so that its memory is its own."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(work, args)


def torch_steps(out: Path, step: str, modes: list[str], patience: float) -> dict[str, Any]:
    """PyTorch's times of one step, by `benchmarks.peers.pytorch_gpu`."""
    from benchmarks.peers.pytorch_gpu import measure, settings_of

    case, what, batch = step.split(":")
    return {"rows": measure(settings_of(case, what, int(batch), modes, ["tf32", "bf16"]), 3, patience)}


def ours_step(step: str, precision: str) -> dict[str, Any]:
    """Our step, as one graph and launch by launch."""
    import cupy
    from ddpm_ref_cupy import CupyBackend
    from ddpm_ref_cupy.cuda import CudaDevice

    case, what, batch = step.split(":")
    result: dict[str, Any] = {"step": step, "precision": precision}
    for mode in ("graph", "eager"):
        run = CudaDevice(precision, graphs=mode == "graph")
        once = (training if what == "train" else sampling)(CupyBackend(device=run), case, int(batch))
        for _ in range(4):
            once()
        times = timed(run, once)
        pool = cupy.get_default_memory_pool()
        result[mode] = {"median_ms": statistics.median(times), "min_ms": min(times), "steps": len(times)}
        result[mode] |= {"held_gib": pool.total_bytes() / 2**30}
        del once, run
        pool.free_all_blocks()
    result["card"] = CudaDevice().name
    return result


def same_network() -> dict[str, Any]:
    """Output and gradient of both sides' cifar10 network on the same weights, by relative norm from ours in fp32."""
    from benchmarks.gpu_gradients import errors

    found = errors("cifar10", 2)
    wrong = [name for name, e in found.items() if not e["gradient"] < 5e-2]
    return {"errors": found} | ({"error": f"not the same network: {wrong}"} if wrong else {})


def table(out: Path) -> None:
    """What was measured so far: ours beside the best of PyTorch in the same precision."""
    best: dict[tuple[str, str], tuple[float, str]] = {}
    eager: dict[tuple[str, str], float] = {}
    for path in sorted(out.glob("bench-torch*.json")):
        for row in [one for one in json.loads(path.read_text()).get("rows", []) if one["milliseconds"]]:
            key = f"{row['case']}:{row['what']}:{row['batch']}", row["precision"]
            took, memory = statistics.median(row["milliseconds"]), row.get("peak_memory_gib", 0)
            best[key] = min(best.get(key, (9e9, "")), (took, row["mode"]))
            if row["mode"] == "eager":
                eager[key] = took
            print(f"  torch {key[0]:20s} {key[1]} {row['mode']:8s} {took:9.3f} ms, {memory:.2f} GiB")
    for path in sorted(out.glob("bench-ours*.json")):
        row = json.loads(path.read_text())
        if "graph" not in row:
            continue
        key, ours = (row["step"], row["precision"]), row["graph"]["median_ms"]
        line = f"  ours  {key[0]:20s} {key[1]} graph {ours:9.3f} ms, eager {row['eager']['median_ms']:9.3f} ms"
        line += f", {row['graph']['held_gib']:.2f} GiB"
        if key in best:
            line += f"; {best[key][0] / ours:.2f}x of PyTorch's best ({best[key][1]})"
        if key in eager:
            line += f", {eager[key] / ours:.2f}x of its eager"
        print(line)


if __name__ == "__main__":
    sys.exit(main())
