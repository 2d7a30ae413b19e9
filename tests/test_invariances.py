"""What must not matter: the order of a batch, how it is split, the shape of the data and its layout in memory.

Sums run in another order in the oracles and the network, whose results agree to rounding; all others agree in every
bit.
"""

from functools import partial

import numpy as np
import pytest
from every_call import CALLS, Batch, Call, answers, batches, oracles
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds, short

from ddpm_ref import Backend, UNet, UNetConfig, batch_mean, generate_steps, simple_loss, squared_error
from ddpm_ref.checks import Array

every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
few = settings(max_examples=max(5, settings.default.max_examples // 2))  # of each of the many calls


def in_chunks(n: int, seed: int) -> list[Array]:
    """A random order of 0 … n-1, cut into chunks at random."""
    rng = np.random.default_rng(seed)
    return [chunk for chunk in np.split(rng.permutation(n), np.flatnonzero(rng.random(n) < 0.5)) if len(chunk)]


@every_call
@few
@given(b=batches(), seed=seeds)
def test_neither_the_order_of_a_batch_nor_its_split_matters(call: Call, b: Batch, seed: int) -> None:
    whole = call(b)
    for chunk in in_chunks(len(b.x), seed):
        for part, all_of_them in zip(call(b.only(chunk)), whole, strict=True):
            np.testing.assert_array_equal(part, all_of_them[chunk])


@every_call
@few
@given(b=batches())
def test_data_may_have_any_shape_and_any_layout_in_memory(call: Call, b: Batch) -> None:
    """(N,), (N, D), (N, H, W, C): as if every image were a row; in Fortran's order, or with gaps between the images."""
    results, rows = call(b), call(b.of(lambda a: a.reshape(len(a), -1)))
    for one, row in zip(results, rows, strict=True):
        assert len(one) == len(b.x)
        np.testing.assert_array_equal(one.reshape(len(one), -1), row.reshape(len(row), -1))
    for layout in (np.asfortranarray, lambda a: a.repeat(2, axis=0)[::2]):
        for one, other in zip(results, call(b.of(layout)), strict=True):
            np.testing.assert_array_equal(one, other)


@given(batches(), seeds)
def test_the_mean_over_a_batch_is_that_over_its_parts_by_their_sizes(b: Batch, seed: int) -> None:
    loss, gradient = simple_loss(b.x, b.y)
    chunks = in_chunks(len(b.x), seed)
    parts = [simple_loss(b.x[chunk], b.y[chunk]) for chunk in chunks]
    shares = np.array([len(chunk) / len(b.x) for chunk in chunks])
    np.testing.assert_allclose(shares @ [part for part, _ in parts], loss, rtol=1e-13)
    for chunk, share, (_, part) in zip(chunks, shares, parts, strict=True):
        np.testing.assert_allclose(share * part, gradient[chunk], rtol=1e-13)
    assert batch_mean(squared_error(b.x, b.y))[0] == loss


# --- oracles and networks --------------------------------------------------------------------------------------------


@given(batches(), seeds)
def test_an_oracle_answers_each_image_alike_in_any_batch_and_any_shape(b: Batch, seed: int) -> None:
    rows = b.of(lambda a: a.reshape(len(a), -1))
    kinds = zip(oracles(b.schedule, b.x.shape[1:], seed), oracles(b.schedule, rows.x.shape[1:], seed), strict=True)
    for oracle, flat in kinds:
        whole = answers(oracle, b)
        # Rounding of sums over D elements and K components; at β_1 = 10⁻⁴ ε* divides it by √(1 - ᾱ_1).
        close = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9)
        for one, row in zip(whole, answers(flat, rows), strict=True):
            close(one.reshape(len(one), -1), row.reshape(len(row), -1))
        for chunk in in_chunks(len(b.x), seed):
            for part, all_of_them in zip(answers(oracle, b.only(chunk)), whole, strict=True):
                close(part, all_of_them[chunk])


NET = UNet(UNetConfig(2, 6, (1, 2), 1, (1,), groups=2, dropout=0.0))
BACKEND = Backend()


@given(seeds, st.integers(2, 5))
@settings(max_examples=10)
def test_a_network_answers_each_image_alike_in_any_batch_and_its_gradients_add(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    params = NET.init(seed % 2**32, np.float64)
    params.vector[:] += 0.2 * rng.standard_normal(NET.size)
    x, d_output = rng.standard_normal((2, n, 4, 2, 2))
    t = rng.integers(1, 1001, n)
    whole, backward = NET(params, x, t, BACKEND)
    dx, grads = backward(d_output)
    total = np.zeros_like(grads.vector)
    for chunk in in_chunks(n, seed):
        output, backward = NET(params, x[chunk], t[chunk], BACKEND)
        np.testing.assert_allclose(output, whole[chunk], rtol=0, atol=1e-12 * np.abs(whole).max())
        part_dx, part_grads = backward(d_output[chunk])
        np.testing.assert_allclose(part_dx, dx[chunk], rtol=0, atol=1e-12 * np.abs(dx).max())
        total += part_grads.vector
    np.testing.assert_allclose(total, grads.vector, rtol=0, atol=1e-12 * np.abs(grads.vector).max())


@given(seeds)
@settings(max_examples=10)
def test_a_sample_depends_on_its_number_and_not_on_those_drawn_beside_it(seed: int) -> None:
    params = NET.init(seed, np.float64)
    params.vector[:] += 0.2 * np.random.default_rng(seed).standard_normal(NET.size)

    def drawn(numbers: Array) -> list[Array]:
        steps = generate_steps(NET, params, short(4), numbers, (2, 2, 2), seed=seed)
        return [a for _, x_t, x_0_hat in steps for a in (x_t, x_0_hat)]

    whole = drawn(np.arange(5))
    for chunk in in_chunks(5, seed):
        for part, all_of_them in zip(drawn(chunk), whole, strict=True):
            # Four steps of a network that was not trained multiply a rounding by up to 1e6; other noise is off by 1.
            np.testing.assert_allclose(part, all_of_them[chunk], rtol=0, atol=1e-7 * np.abs(all_of_them).max())
    assert len({a.tobytes() for a in whole[0]}) == 5
