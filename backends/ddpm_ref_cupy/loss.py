"""The two ends of a training step on the device: L_simple with its gradient, and the embedding of t.

Nothing here waits for the device or brings anything to the host, so that a captured step may hold it.
"""

from typing import NamedTuple

import numpy as np

from ddpm_ref.checks import Array
from ddpm_ref.nn import ops
from ddpm_ref_cupy.device import Device, Launch

_CHUNK = 4096  # elements of an image that one block sums


class LossReport(NamedTuple):
    """What a step's losses add up to, float64 on the device: what `train.StepReport` has of them, and each image's own.

    per_image: (N,) of the last images.  mean: (1,).  quarters: (2, 4).
    """

    per_image: Array
    mean: Array
    quarters: Array


def new_report(run: Device, n: int) -> LossReport:
    """Room for the losses of up to n images at a time, before anything is added."""
    return LossReport(*(run.zeros(shape, np.float64) for shape in ((n,), (1,), (2, 4))))


def simple_loss(
    run: Device,
    output: Array,
    target: Array,
    t: Array,
    T: int,
    report: LossReport,
    *,
    weight: float = 1.0,
    part: float = 1.0,
    add: bool = False,
) -> Array:
    """`weight` times the squared error of a batch: its gradient d_output; its losses go into the report.

    What `objective.squared_error`, `combine` and `batch_mean` give, the gradient's bits included; losses are summed in
    another order. The mean's gradient is that over these N images.

    output, target: (N, ...).  t: (N,) int32 on the device, in 1..T.
    part: the share of these images in the whole batch, which multiplies the mean loss (and not the gradient).
    add: to the report's mean and quarters, instead of putting them there anew.
    """
    output, target = run.contiguous(output), run.contiguous(target)
    n, d, real = len(output), output.size // len(output), output.dtype.type
    chunk = min(d, _CHUNK)
    chunks = -(-d // chunk)
    d_output, sums = run.empty(output.shape, output.dtype), run.empty((n, chunks), np.float64)
    run.launch(
        Launch("loss.loss_squares", (n * chunks,), (256, 1, 1), 0, output.dtype),
        output, target, d_output, sums, np.int32(d), np.int32(chunk), real(2 / d), real(weight), real(1 / n),
    )  # fmt: skip
    run.launch(
        Launch("loss.loss_report", (1,), (256, 1, 1), 0, output.dtype),
        sums, t, *report, np.int32(n), np.int32(chunks), np.int32(d), np.int32(T), np.float64(weight), np.float64(part),
        np.int32(add),
    )  # fmt: skip
    return d_output


def embedding_table(run: Device, T: int, dim: int, dtype: type[np.floating]) -> Array:
    """`ops.time_embedding` of t = 1 … T, (T, dim), to look up on the device: its very bits."""
    return run.to_device(ops.time_embedding(np.arange(1, T + 1), dim).astype(dtype))


def time_embedding(run: Device, table: Array, t: Array) -> Array:
    """The embedding of each image's t, (N, dim).  table: `embedding_table`'s.  t: (N,) int32 on the device, in 1..T."""
    n, dim = len(t), table.shape[1]
    out = run.empty((n, dim), table.dtype)
    launch = Launch("loss.loss_rows", (-(-n * dim // 128),), (128, 1, 1), 0, table.dtype)
    run.launch(launch, table, t, out, np.int32(n), np.int32(dim))
    return out
