"""What everything else stands on: products by cuBLAS, the random bits, launches, and one training step."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from small_run import after, variant

from ddpm_ref import random
from ddpm_ref.random import Purpose

Cuda = Callable[..., Any]
ROUNDING = {"fp32": 1e-6, "tf32": 1e-3, "bf16": 8e-3}


@pytest.mark.parametrize("precision", ROUNDING)
@pytest.mark.parametrize("batch", [(), (3,)])
def test_products_are_those_of_numpy_whichever_is_transposed(
    cuda: Cuda, precision: str, batch: tuple[int, ...]
) -> None:
    run, rng = cuda(precision).run, np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        for trans_a in (False, True):
            for trans_b in (False, True):
                a = rng.standard_normal((*batch, 72, 40) if trans_a else (*batch, 40, 72)).astype(dtype)
                b = rng.standard_normal((*batch, 24, 72) if trans_b else (*batch, 72, 24)).astype(dtype)
                out = rng.standard_normal((*batch, 40, 24)).astype(dtype)
                exact = (a.swapaxes(-1, -2) if trans_a else a).astype(np.float64) @ (
                    b.swapaxes(-1, -2) if trans_b else b
                )
                for add in (False, True):
                    there = run.to_device(out)
                    run.matmul(run.to_device(a), run.to_device(b), there, trans_a=trans_a, trans_b=trans_b, add=add)
                    wanted = exact + out if add else exact
                    off = np.linalg.norm(run.to_host(there) - wanted) / np.linalg.norm(wanted)
                    assert off < (ROUNDING[precision] if dtype == np.float32 else 1e-14), (dtype, trans_a, trans_b, add)


def test_products_of_bfloat16_are_summed_in_float32(cuda: Cuda) -> None:
    run, rng = cuda().run, np.random.default_rng(0)
    a, b = (
        rng.standard_normal(s).astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000) for s in ((64, 96), (96, 32))
    )
    halves = [run.to_device((x >> np.uint32(16)).astype(np.uint16)) for x in (a, b)]
    out = run.to_host(run.matmul(*halves, run.empty((64, 32), np.float32)))
    exact = a.view(np.float32).astype(np.float64) @ b.view(np.float32)
    assert np.linalg.norm(out - exact) / np.linalg.norm(exact) < 1e-6
    bits = run.to_host(run.matmul(*halves, run.empty((64, 32), np.uint16)))
    stored = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    assert (np.abs(stored - exact) <= np.abs(exact) / 256 + 1e-5).all()


@pytest.mark.parametrize("name", ["normal", "uniform"])
def test_a_batch_of_random_numbers_has_the_bits_of_numpys(cuda: Cuda, name: str) -> None:
    backend, samples, shape = cuda(), np.arange(128), (32, 32, 3)
    for seed, step, layer in ((0, 1, 0), (2**64 - 1, 2**32 - 1, 2**24 - 1)):
        ours = backend.to_host(getattr(backend, name)(seed, Purpose.EPS, step, samples, shape, layer=layer))
        wanted = getattr(random, name)(seed, Purpose.EPS, step, samples, shape, layer=layer)
        assert ours.tobytes() == wanted.tobytes(), (
            f"{(ours.view(np.uint32) != wanted.view(np.uint32)).mean():.2%} differ"
        )


@pytest.mark.parametrize("name", ["as in the paper", "dropout", "micro-batches", "learned variance"])
def test_a_small_network_trains_as_on_the_cpu(cuda: Cuda, name: str) -> None:
    here, there = after(3, variant(name)), after(3, variant(name, backend=cuda(graphs=False)))
    for vector in ("params", "ema"):
        a, b = getattr(here.state, vector), getattr(there.host_state(), vector)
        assert np.abs(a - b).max() < 1e-4, vector
