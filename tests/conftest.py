"""Seeds and Hypothesis profiles, and the one measure of a gradient that the tests of operations and network share.

Runs are repeatable by default. HYPOTHESIS_PROFILE=random draws new examples every time, and `--seed random` (or a
number) reseeds the statistical tests; the header prints both, and a failing example prints how to repeat it.
HYPOTHESIS_PROFILE=mutation draws fewer and stops at the first that fails instead of looking for the simplest.
"""

import functools
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, settings

from ddpm_ref.checks import Array

settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True, max_examples=30)
settings.register_profile("random", deadline=None, print_blob=True, max_examples=100)
settings.register_profile(
    "mutation", settings.get_profile("ci"), max_examples=10, phases=[Phase.explicit, Phase.generate]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", default="0", help="of the statistical tests' random numbers: a number, or 'random'")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.seed == "random":
        config.option.seed = str(secrets.randbits(32))


def pytest_report_header(config: pytest.Config) -> str:
    profile = os.environ.get("HYPOTHESIS_PROFILE", "ci")
    return f"seeds: --seed {config.option.seed}, HYPOTHESIS_PROFILE={profile}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Hypothesis marks its own tests; with these, `-m "hypothesis or statistical"` is every randomised one."""
    for item in items:
        if "rng" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.statistical)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers of this test alone, which `--seed` changes."""
    return np.random.default_rng([int(request.config.option.seed), zlib.crc32(request.node.nodeid.encode())])


@pytest.fixture(scope="session")
def host_build(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `HostDevice` keeps kernels compiled for the CPU: pytest's cache, so that only what changed is compiled."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ here, which compiles the CUDA kernels for the CPU")
    cache = getattr(request.config, "cache", None)
    return cache.mkdir("cuda_host") if cache else tmp_path_factory.mktemp("cuda_host")


@pytest.fixture(scope="session")
def host(host_build: Path) -> Callable[..., Any]:
    """`HostDevice` with its compiled kernels kept: host("random", precision="tf32")."""
    from cuda_host.host_device import HostDevice

    return functools.partial(HostDevice, build=host_build)


GradientErrors = Callable[..., list[float]]


@pytest.fixture(scope="session")
def gradient_errors() -> GradientErrors:
    """Measures a backward pass against differences of its forward pass; see `_gradient_errors`."""
    return _gradient_errors


def _gradient_errors(
    op: Callable[..., tuple[Array, Callable[..., object]]],
    args: Sequence[Array],
    rng: np.random.Generator,
    directions: Sequence[tuple[int, Array]] | None = None,
) -> list[float]:
    """For each direction v of argument k, the error of ⟨gradient_k, v⟩ against the central difference of fourth order.

        difference = (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12h,  f(h) = ⟨op(… args[k] + h v …), dy⟩, dy random
        error      = |⟨gradient_k, v⟩ - difference| / (‖dy‖ (‖J v‖ + ‖y‖ / 100))

    with the better of two h: where the function bends sharply (a norm over few numbers that are nearly equal) the wide
    one is off, by h⁴. A wrong gradient is off at both.
    args: float64.  directions: (k, v) pairs; by default one random v for each argument.  Correct gradients have
    errors near 1e-11; one wrong factor in a few of the terms already makes it 1e-3.
    """
    y, backward = op(*args)
    dy = rng.standard_normal(y.shape)
    found = backward(dy)
    gradients = found if isinstance(found, tuple) else (found,)
    assert [np.shape(g) for g in gradients] == [a.shape for a in args], "one gradient for each argument, of its shape"
    if directions is None:
        directions = [(k, rng.standard_normal(a.shape)) for k, a in enumerate(args)]

    def at(k: int, step: Array) -> Array:
        return op(*args[:k], args[k] + step, *args[k + 1 :])[0]

    def error(k: int, v: Array, h: float) -> float:
        slope = (8 * (at(k, h * v) - at(k, -h * v)) - (at(k, 2 * h * v) - at(k, -2 * h * v))) / (12 * h)
        off = abs(np.sum(gradients[k] * v) - np.sum(slope * dy))
        scale = np.linalg.norm(dy) * (np.linalg.norm(slope) + np.linalg.norm(y) / 100)
        return float(off / scale) if off else 0.0

    def least(k: int, v: Array) -> float:
        wide = error(k, v, 1e-4)
        return wide if wide < 1e-9 else min(wide, error(k, v, 1e-5))

    return [least(k, v) for k, v in directions]
