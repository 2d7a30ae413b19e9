"""The tests that need a GPU: `pytest -m gpu`. Without one they are skipped, and say why there is none."""

from collections.abc import Callable
from typing import Any

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of this folder are `gpu`; what CuPy and PyTorch warn of is theirs."""
    for item in items:
        if item.path.parent.name == "gpu":
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session")
def card() -> None:
    """Skips without a GPU."""
    from ddpm_ref_cupy.cuda import load_cupy

    try:
        load_cupy()
    except ImportError as error:
        pytest.skip(str(error))


@pytest.fixture
def cuda(card: None) -> Callable[..., Any]:
    """`CupyBackend` on this machine's card: cuda("tf32", graphs=False)."""

    def made(precision: str = "fp32", *, graphs: bool = True) -> Any:
        from ddpm_ref_cupy import CupyBackend
        from ddpm_ref_cupy.cuda import CudaDevice

        return CupyBackend(device=CudaDevice(precision, graphs=graphs))

    return made
