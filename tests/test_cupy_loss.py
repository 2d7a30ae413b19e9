"""The loss and the embedding of t in CUDA, run on the CPU, against the objective and the trainer."""

from typing import Any

import numpy as np
import pytest
from cuda_host.host_device import ORDERS, HostDevice
from cupy_checks import Host, dtypes, orders
from ddpm_ref_cupy import loss
from ddpm_ref_cupy.loss import LossReport
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_ref.checks import Array
from ddpm_ref.nn import ops
from ddpm_ref.objective import batch_mean, combine, squared_error

T = 37
seeds = st.integers(0, 99)
shapes = st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4))


def _batch(seed: int, shape: tuple[int, ...], dtype: Any) -> tuple[Array, Array, Array]:
    rng = np.random.RandomState(seed)
    output, eps = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    return output, eps, rng.randint(1, T + 1, len(output)).astype(np.int32)


def _numpy(output: Array, eps: Array, t: Array, weight: float) -> tuple[Array, float, Array, Array]:
    """Losses of the images, their mean, the quarters' sums and counts, and the gradient, as the trainer makes them."""
    losses = combine((weight, squared_error(output, eps)))
    mean, d_output = batch_mean(losses)
    quarter = (4 * t.astype(np.int64) - 1) // T
    quarters = np.array([np.bincount(quarter, losses.per_image, 4), np.bincount(quarter, minlength=4)], float)
    return losses.per_image, mean, quarters, d_output


def _on(run: HostDevice, output: Array, eps: Array, t: Array, report: LossReport, **options: Any) -> Array:
    return loss.simple_loss(run, *map(run.to_device, (output, eps, t)), T, report, **options)


@settings(deadline=None, max_examples=40)
@given(seeds, shapes, dtypes, orders, st.sampled_from([1.0, 0.3]), st.sampled_from([1, 5, 4096]))
def test_a_batch_has_the_losses_and_the_gradient_of_the_objective(
    host: Host, seed: int, shape: tuple[int, ...], dtype: Any, order: str, weight: float, chunk: int
) -> None:
    """The gradient to the bit; the losses but for the order of a sum in float64."""
    run, batch = host(order), _batch(seed, shape, dtype)
    report = loss.new_report(run, shape[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "_CHUNK", chunk)
        d_output = _on(run, *batch, report, weight=weight)
    per_image, mean, quarters, wanted = _numpy(*batch, weight)
    np.testing.assert_allclose(report.per_image, per_image, rtol=1e-14)
    np.testing.assert_allclose(report.mean, [mean], rtol=1e-14)
    np.testing.assert_allclose(report.quarters[0], quarters[0], rtol=1e-14)
    np.testing.assert_array_equal(report.quarters[1], quarters[1])
    assert d_output.dtype == wanted.dtype and d_output.tobytes() == wanted.tobytes()


@settings(deadline=None, max_examples=10)
@given(seeds, st.integers(2, 40), st.integers(1, 39))
def test_micro_batches_add_up_to_the_step(host: Host, seed: int, n: int, first: int) -> None:
    first = min(first, n - 1)
    run, (output, eps, t) = host("random"), _batch(seed, (n, 2, 3, 1), np.float32)
    report = loss.new_report(run, n)
    report.mean[...] = report.quarters[...] = np.nan  # what a step before has left
    for i, part in enumerate((slice(0, first), slice(first, n))):
        share = len(t[part]) / n
        _on(run, output[part], eps[part], t[part], report, part=share, add=i > 0)
    _, mean, quarters, _ = _numpy(output, eps, t, 1.0)
    np.testing.assert_allclose(report.mean, [mean], rtol=1e-14)
    np.testing.assert_allclose(report.quarters, quarters, rtol=1e-14)


def test_more_images_than_threads_each_count_once(host: Host) -> None:
    run, batch = host(), _batch(1, (300, 1, 2, 1), np.float32)
    report = loss.new_report(run, 300)
    _on(run, *batch, report)
    per_image, mean, quarters, _ = _numpy(*batch, 1.0)
    np.testing.assert_allclose(report.per_image, per_image, rtol=1e-14)
    np.testing.assert_allclose(report.mean, [mean], rtol=1e-14)
    np.testing.assert_allclose(report.quarters, quarters, rtol=1e-14)


def test_the_steps_between_quarters_fall_where_the_trainer_puts_them(host: Host) -> None:
    """Every t once."""
    run = host()
    t = np.arange(1, T + 1, dtype=np.int32)
    report = loss.new_report(run, T)
    _on(run, np.ones((T, 1), np.float32), np.zeros((T, 1), np.float32), t, report)
    np.testing.assert_array_equal(report.quarters, [np.bincount((4 * t - 1) // T)] * 2)


def test_a_nan_reaches_the_mean(host: Host) -> None:
    """By which a run that diverged is known."""
    run, (output, eps, t) = host(), _batch(2, (3, 2, 2, 1), np.float32)
    output[1, 0, 0, 0] = np.nan
    report = loss.new_report(run, 3)
    _on(run, output, eps, t, report)
    assert np.isnan(report.mean).all() and np.isnan(report.per_image).tolist() == [False, True, False]


@settings(deadline=None, max_examples=20)
@given(seeds, st.integers(1, 5), st.integers(1, 9), dtypes, orders)
def test_the_embedding_of_t_is_numpys_to_the_bit(
    host: Host, seed: int, n: int, dim: int, dtype: Any, order: str
) -> None:
    run = host(order)
    t = np.random.RandomState(seed).randint(1, T + 1, n).astype(np.int32)
    found = loss.time_embedding(run, loss.embedding_table(run, T, dim, dtype), run.to_device(t))
    assert found.dtype == dtype and found.tobytes() == ops.time_embedding(t, dim).astype(dtype).tobytes()


def _report(run: HostDevice) -> list[bytes]:
    report = loss.new_report(run, 40)
    d_output = _on(run, *_batch(3, (40, 7, 10, 1), np.float32), report)
    return [a.tobytes() for a in (*report, d_output)]


def test_the_bits_do_not_depend_on_which_thread_runs_first(host: Host) -> None:
    first, *others = (_report(host(order)) for order in ORDERS)
    assert all(other == first for other in others)
