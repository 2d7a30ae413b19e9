"""Result files that nobody measured: times drawn around chosen medians, for the tests of reports and comparisons.

Rows have the fields that `benchmarks.rounds` writes, and of each level the values; a test holds them to a real run's.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

SPEED = {"numba": 1.0, "numpy": 4.2, "torch contiguous": 2.6, "torch channels_last": 2.2, "torch compile": 1.5}
"""Each contender's time over numba's, unless a test says otherwise."""
OURS = ("numba", "numpy")
CASES = [
    ("train digits", "train", "digits", 128, 0.012), ("train cifar10", "train", "cifar10", 8, 1.1),
    ("sample digits", "sample", "digits", 64, 0.003), ("sample cifar10", "sample", "cifar10", 16, 0.7),
    ("sample cifar10", "sample", "cifar10", 1, 0.06),
]  # fmt: skip
LOOPS = [
    ("conv3x3 8x32x32x128→128", "conv3x3", 2.4e9, 9e6), ("conv3x3 8x16x16x128→128", "conv3x3", 1.2e9, 5e6),
    ("dense 8192x384→128", "dense", 8e8, 2e7), ("attention 8x256x256", "attention", 5e8, 8e6),
    ("group_norm 8x32x32x128", "group_norm", 8e6, 8e6), ("update 35746307", "update", 5e8, 1.4e9),
]  # fmt: skip
CURVES = [
    ("batch", "train", "base32", (1, 2, 4, 8, 16), 0.9), ("T", "chain", "digits", (10, 100, 1000), 1.0),
    ("threads", "train", "base32", (1, 2), -0.7),
]  # fmt: skip
ROW: dict[str, Any] = {
    "axis": None, "x": None, "dtype": "float32", "precision": "float32", "threads": 2, "noisy": False, "flops": 1e9,
    "bytes": 1e8, "floor_seconds": None, "version": "made up", "start_memory_gib": 0.1, "compile_seconds": 1.0,
    "peak_memory_gib": 0.2, "agreement": {"output": 1e-7}, "unit": "s",
}  # fmt: skip
"""What a row has where its group does not say otherwise."""


def made_up(
    seed: int = 0, *, rounds: int = 9, noise: float = 0.01, speed: dict[str, float] | None = None, drift: float = 1.0
) -> dict[str, Any]:
    """A file of format 1 of a machine that does not exist.

    noise: standard deviation of log time.   speed: times over numba's that differ from SPEED.   drift: of all times.
    """
    rng = np.random.default_rng(seed)
    factors = SPEED | (speed or {})

    def group(names: list[str], base: float, **facts: Any) -> list[dict[str, Any]]:
        times = {name: drift * base * factors[name] * np.exp(noise * rng.standard_normal(rounds)) for name in names}
        return [row_of(name, times, facts) for name in names]

    rows = []
    for case, what, preset, batch, base in CASES:
        memory = {"peak_memory_gib": 0.2 + base, "start_memory_gib": 0.15, "compile_seconds": 3.0 * base}
        work = {"flops": 1e11 * base, "bytes": 5e9 * base, "floor_seconds": 0.4 * base}
        rows += group(
            list(SPEED), base, level="steps", case=case, what=what, preset=preset, batch=batch, **memory, **work
        )
    for case, what, flops, size in LOOPS:
        floor, batch = max(flops / 2e11, size / 2e10), 1 if what == "update" else 8
        work = {"flops": flops, "bytes": size, "floor_seconds": floor, "preset": "cifar10", "batch": batch}
        rows += group(["numba", "numpy"], 1.4 * floor, level="loops", case=case, what=what, **work)
    run = {"level": "runs", "preset": "digits", "batch": 64}
    rows += group(
        ["numba", "torch contiguous"], 20.0, case="train digits to loss 0.11", what="reach", flops=0, bytes=0,
        peak_memory_gib=None, start_memory_gib=None, steps=812, **run,
    )  # fmt: skip
    rows += group(["numba", "torch compile"], 0.05, case="image digits", what="images", **run)
    fits = []
    for axis, what, preset, xs, law in CURVES:
        where = {"level": "scaling", "case": f"{what} {preset} by {axis}", "what": what, "preset": preset, "axis": axis}
        names = ["numba", "numpy", "torch compile"]
        for x in xs:
            own = {"batch": {"batch": x}, "threads": {"threads": x, "batch": 8}}.get(axis, {"batch": 16})
            flops = 1e9 if axis == "threads" else 1e9 * x
            rows += group(names, 0.01 * x**law, **where, x=x, flops=flops, **own)
        named = {"case": where["case"], "axis": axis, "exponent": law, "stderr": 0.01 if len(xs) > 2 else None}
        fits += [{"contender": name, **named} for name in names]
    return {
        "format": 1,
        "machine": {"name": "2x Made Up", "cpu": "Made Up", "cores": 2, "memory_gib": 8.0, "gpu": None, "os": "none"},
        "versions": {"python": "3.12", "numpy": "2.5", "torch": "2.13"},
        "commit": "0123456789", "dirty": False, "command": "python -m benchmarks", "started": "2026-01-02T03:04:05",
        "threads": 2, "level": "full", "elapsed_seconds": 754.2, "load": [0.5, 2.05],
        "ceilings": [
            {"what": "gemm", "precision": "float32", "threads": 2, "rate": 200.0, "unit": "GFLOP/s"},
            {"what": "copy", "precision": None, "threads": 2, "rate": 20.0, "unit": "GB/s"},
        ],
        "rows": rows, "fits": fits, "left_out": {"jax": "not installed"},
    }  # fmt: skip


def row_of(name: str, times: dict[str, np.ndarray], facts: dict[str, Any]) -> dict[str, Any]:
    """One row from the rounds of all contenders."""
    own = times[name]
    over = {other: list(np.quantile(t / own, [0.25, 0.5, 0.75])) for other, t in times.items() if other != name}
    low, median, high = np.quantile(own, [0.25, 0.5, 0.75])
    return ROW | facts | {
        "contender": name, "ours": name in OURS, "seconds": list(own), "median": median, "quartiles": [low, high],
        "over": over, "fraction": facts["floor_seconds"] / median if facts.get("floor_seconds") else None,
    }  # fmt: skip


def store(folder: Path, stored: dict[str, Any], name: str = "made-up.json") -> Path:
    """Write it as the runner would."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(json.dumps(stored), encoding="utf-8")
    return path
