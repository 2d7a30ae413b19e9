"""The implementations under check, imported only by the tests that ask for them."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

ADAPTERS = Path(__file__).resolve().parents[2] / "examples" / "adapters"
INSTALL = (
    'install them with: pip install -e ".[test,peers]" && pip install --no-deps denoising-diffusion-pytorch==2.3.4'
)


def adapter_module(name: str) -> ModuleType:
    """examples/adapters/NAME.py, or a skip that says what is missing and how to install it."""
    if str(ADAPTERS) not in sys.path:
        sys.path.append(str(ADAPTERS))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as missing:
        pytest.skip(f"{missing}; {INSTALL}")


@pytest.fixture(scope="session")
def diffusers_ddpm() -> ModuleType:
    return adapter_module("diffusers_ddpm")


@pytest.fixture(scope="session")
def lucidrains() -> ModuleType:
    return adapter_module("lucidrains")
