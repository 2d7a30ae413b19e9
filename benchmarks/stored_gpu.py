"""The older form of a GPU's results, a folder of files by `benchmarks/gpu.py` and `gpu_conv.py`, as rows.

    bench-ours-CASE-WHAT-BATCH-PRECISION.json    our step, as one CUDA graph and launch by launch
    bench-torch*-CASE-WHAT-BATCH.json            PyTorch's, by mode and precision
    conv.json                                    each pass of each convolution, beside cuDNN's

Ours and PyTorch's steps were timed in calls of their own: no rounds are paired, and a ratio is one of medians, without
quartiles. The floors of conv.json are of rates that `gpu_conv` holds, not of rates measured in its call.
"""

import re
import statistics
from pathlib import Path
from typing import Any

from benchmarks.gpu_conv import TERABYTES, TERAFLOPS
from benchmarks.stored import Ceiling, Result, Row, load, precision

STEP = re.compile(r"bench-(ours|torch(-compile|-autotune)?)-\w+-(train|sample)-\d+(-\w+)?\.json")
CONTENDERS = {"own": ("cupy", True), "windows": ("cupy windows", True), "cudnn": ("torch cudnn", False)}
"""Of conv.json: whose it is, and whether it is ours."""
MODES = {"compile": "compiled graph"}
"""Of PyTorch, those that the runner calls otherwise: a compiled network in a CUDA graph."""
PASSES = {"y": "forward", "dx": "input's gradient", "dW": "filter's gradient"}


def is_older(path: Path) -> bool:
    """Whether a file has one of these forms, by its name."""
    return path.name == "conv.json" or STEP.fullmatch(path.name) is not None


def read_older(folder: Path, name: str) -> Result:
    """All such files of a folder as one result, on the card that they name; ValueError for a file of another form."""
    rows: list[Row] = []
    facts: dict[str, set[str]] = {"card": set(), "version": set(), "note": set()}
    left_out: dict[str, str] = {}
    commands: list[str] = []
    ceilings: tuple[Ceiling, ...] = ()
    for path in [one for one in sorted(folder.glob("*.json")) if is_older(one)]:
        stored = load(path)
        try:
            if path.name == "conv.json":
                rows += [row for one in stored for row in _convolution(one)]
                ceilings = _ceilings({one["precision"] for one in stored})
                commands.append("python -m benchmarks.gpu_conv")
                if not all("images" in one for one in stored):
                    facts["note"].add("convolutions in bf16: cuDNN is given bf16 arrays, ours are float32 ones")
                continue
            commands.append("benchmarks/gpu.sh bench")
            if path.name.startswith("bench-ours"):
                rows += _ours(stored)
            else:
                rows += [_torch(row) for row in stored["rows"] if row["milliseconds"]]
                left_out |= {_called(row): _reason(row) for row in stored["rows"] if not row["milliseconds"]}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path}: not a file of benchmarks/gpu.py: {type(error).__name__}: {error}") from error
        for one in (stored, *stored.get("rows", ())):
            for word, found in facts.items():
                found |= {one[word]} if one.get(word) else set()
    if len(facts["card"]) != 1:
        raise ValueError(f"{folder}: wanted files of one card, got {', '.join(sorted(facts['card'])) or 'none'}")
    (card,) = facts["card"]
    return Result(
        name=name,
        machine={"name": card, "gpu": {"name": card}},
        rows=tuple(rows),
        versions={"torch": ", ".join(sorted(facts["version"]))} if facts["version"] else {},
        command="; ".join(dict.fromkeys(commands)),
        ceilings=ceilings,
        left_out=left_out,
        notes=tuple(sorted(facts["note"])),
    )


def _ours(stored: dict[str, Any]) -> list[Row]:
    """One graph, and launch by launch."""
    case, what, batch = stored["step"].split(":")
    names = {"graph": "cupy", "eager": "cupy eager"}
    how = {"level": "steps", "case": f"{what} {case}", "what": what, "preset": case, "batch": int(batch), "ours": True}
    return [
        Row(
            **how,
            contender=name,
            median=stored[mode]["median_ms"] / 1e3,
            precision=precision(stored["precision"]),
            peak_memory_gib=stored[mode]["held_gib"],
        )
        for mode, name in names.items()
        if mode in stored
    ]


def _torch(row: dict[str, Any]) -> Row:
    seconds = tuple(one / 1e3 for one in row["milliseconds"])
    return Row(
        level="steps",
        case=f"{row['what']} {row['case']}",
        what=row["what"],
        preset=row["case"],
        batch=row["batch"],
        contender=_peer(row),
        ours=False,
        precision=precision(row["precision"]),
        seconds=seconds,
        median=statistics.median(seconds),
        peak_memory_gib=row.get("peak_memory_gib"),
        compile_seconds=row.get("warm_up_seconds"),
    )


def _peer(row: dict[str, Any]) -> str:
    return f"torch {MODES.get(row['mode'], row['mode'])}"


def _called(row: dict[str, Any]) -> str:
    return f"{_peer(row)}, {row['what']} {row['case']}, batch {row['batch']}, {row['precision']}"


def _reason(row: dict[str, Any]) -> str:
    return str(row.get("error") or "no time was taken")


def _convolution(stored: dict[str, Any]) -> list[Row]:
    """One pass of one shape, by each contender."""
    n, size, c, d = stored["shape"]
    rows = []
    for word, (contender, ours) in CONTENDERS.items():
        if word in stored:
            seconds, floor = stored[word] / 1e3, stored["floor_ms"] / 1e3
            error = stored.get(f"{word}_error")
            rows.append(
                Row(
                    level="loops",
                    case=f"conv3x3 {size}x{size}x{c}→{d}, {PASSES[stored['pass']]}",
                    what="conv3x3",
                    batch=n,
                    contender=contender,
                    ours=ours,
                    precision=precision(stored["precision"]),
                    median=seconds,
                    flops=2.0 * n * size * size * 9 * c * d,
                    bytes=4.0 * n * size * size * (c + d),
                    floor_seconds=floor,
                    fraction=floor / seconds,
                    agreement={} if error is None else {"output": error},
                )
            )
    return rows


def _ceilings(precisions: set[str]) -> tuple[Ceiling, ...]:
    """The rates that the floors are of."""
    products = [
        Ceiling("gemm", 1e3 * TERAFLOPS[p], "GFLOP/s", precision(p), measured=False) for p in sorted(precisions)
    ]
    return (*products, Ceiling("copy", 1e3 * TERABYTES, "GB/s", measured=False))
