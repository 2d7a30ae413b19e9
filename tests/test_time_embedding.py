"""The sinusoidal embedding of t: where it starts, its frequencies, and odd widths."""

import math

import numpy as np
import pytest

from ddpm_ref.nn import ops


def test_time_embedding_of_the_first_step_is_sin_0_and_cos_0() -> None:
    np.testing.assert_array_equal(ops.time_embedding(np.array([1]), 8), [[0] * 4 + [1] * 4])


@pytest.mark.parametrize(
    ("dim", "omega"), [(2, [1]), (4, [1, 1e-4]), (6, [1, 1e-2, 1e-4]), (7, [1, 1e-2, 1e-4]), (5, [1, 1e-4]), (3, [1])]
)
def test_time_embedding_is_sines_then_cosines_of_geometric_frequencies_and_a_zero_if_odd(
    dim: int, omega: list[float]
) -> None:
    t = [1, 2, 500, 1000]
    expected = [[f(w * (s - 1)) for f in (math.sin, math.cos) for w in omega] + [0.0] * (dim % 2) for s in t]
    np.testing.assert_allclose(ops.time_embedding(np.array(t), dim), expected, atol=1e-12)
