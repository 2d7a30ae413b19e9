"""The paper's network: gradients against float64 NumPy, beside PyTorch's in the same precision."""

from collections.abc import Callable
from typing import Any

import pytest

from ddpm_ref import check_backend  # noqa: F401  (the package before PyTorch)


@pytest.fixture(scope="module")
def found(card: None) -> dict[str, dict[str, float]]:
    pytest.importorskip("torch")
    from benchmarks.gpu_gradients import errors

    result = errors("cifar10", 2)
    for name, error in result.items():
        print(name, {what: f"{e:.2e}" for what, e in error.items()})
    return result


def test_gradients_in_float32_are_exact_to_five_digits(found: dict[str, dict[str, float]]) -> None:
    assert found["ours fp32"]["all"] < 1e-5 and found["ours fp32"]["output"] < 1e-5


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_rounded_gradients_are_as_near_as_pytorchs(found: dict[str, dict[str, float]], precision: str) -> None:
    for what in ("output", "gradient"):
        assert found[f"ours {precision}"][what] < 1.5 * found[f"torch {precision}"][what], what


def test_the_digits_network_alone(cuda: Callable[..., Any]) -> None:
    from benchmarks.gpu_gradients import Problem

    problem = Problem("digits", 16)
    error = problem.error(problem.ours(cuda()))
    assert max(error.values()) < 1e-5, error
