"""Level scaling: cost against batch, resolution, channels, T and threads, on a network between the presets.

    batch        a training step of 16x16 images, base 32        channels    the same, by base, 16 to 128, batch 4
    resolution   the same network, 8x8 to 64x64, batch 4         threads     the same, 1 … those there are, batch 8
    T            a chain of reverse steps of `digits` from t = T to 1, batch 16

cost = c x^exponent, by least squares of the logarithms of the medians: 1 means that twice as much takes twice as long,
less that the smaller ones do not keep the machine busy. Attention makes it more than 2 of resolution in the end, a
convolution 2 of channels; of threads -1 would be perfect.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.cases import Job
from benchmarks.work import Work, step_work
from ddpm_ref.nn.plan import PRESETS, UNetConfig

NETWORK = UNetConfig(3, 32, (1, 2), 1, (1,), groups=8, dropout=0.1, image_size=16)
BATCHES = (1, 2, 4, 8, 16, 32)
SIZES = (8, 16, 32, 64)
BASES = (16, 32, 64, 128)
CHAINS = (10, 30, 100)
PEERS = ("torch channels_last", "torch graph")


def jobs(options: Any) -> list[Job]:
    """Every point of every curve."""
    points: list[tuple[str, float, dict[str, Any]]] = []
    points += [("batch", n, {"batch": n}) for n in options.batch or BATCHES]
    points += [("resolution", size, {"config": replace(NETWORK, image_size=size)}) for size in SIZES]
    points += [("channels", base, {"config": replace(NETWORK, base=base)}) for base in BASES]
    points += [("T", T, {"what": "chain", "T": T, "batch": 16, "config": PRESETS["digits"]}) for T in CHAINS]
    points += [("threads", n, {"threads": n, "batch": 8}) for n in threads_up_to(options.threads)]
    return [_point(axis, x, changes, options) for axis, x, changes in points]


def threads_up_to(most: int) -> list[int]:
    """1, 2, 4 … and the most."""
    return [*(2**k for k in range(most.bit_length()) if 2**k < most), most]


def _point(axis: str, x: float, changes: dict[str, Any], options: Any) -> Job:
    values = {"what": "train", "config": NETWORK, "batch": 4, "T": 1000, "threads": options.threads} | changes
    config, what, batch = values["config"], values["what"], values["batch"]
    once = step_work(config, batch, "train" if what == "train" else "sample", itemsize=np.dtype(options.dtype).itemsize)
    work = Work(*(part * (values["T"] if what == "chain" else 1) for part in once))
    name = "digits" if what == "chain" else f"base{NETWORK.base}"
    contenders = (*options.backends, *(peer for peer in options.peers if peer in PEERS or options.level == "full"))
    return Job(
        "scaling", f"{what} {name} by {axis}", preset=name, parts=(("", work),), contenders=contenders,
        dtype=options.dtype, precision=options.precision, axis=axis, x=x, seconds=0.25,
        rounds=options.rounds_of("scaling"), **values,
    )  # fmt: skip


def fits(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The exponent of every curve with two points or more, with its standard error where there are three."""
    curves: dict[tuple[str, str, str], dict[float, float]] = {}
    for row in rows:
        if row["level"] == "scaling":
            curves.setdefault((row["case"], row["contender"], row["axis"]), {})[row["x"]] = row["median"]
    found = []
    for (case, contender, axis), points in curves.items():
        if len(points) > 1:
            exponent, stderr = fit_exponent(list(points), list(points.values()))
            found.append({"case": case, "contender": contender, "axis": axis, "exponent": exponent, "stderr": stderr})
    return found


def fit_exponent(x: list[float], seconds: list[float]) -> tuple[float, float | None]:
    """The slope of log seconds over log x by least squares, and its standard error from the residuals."""
    log_x, log_s = np.log(x), np.log(seconds)
    if len(x) == 2:
        return float((log_s[1] - log_s[0]) / (log_x[1] - log_x[0])), None
    line, covariance = np.polyfit(log_x, log_s, 1, cov=True)
    return float(line[0]), float(np.sqrt(covariance[0, 0]))
