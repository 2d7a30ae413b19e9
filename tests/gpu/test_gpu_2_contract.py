"""The backend's contract on the card."""

from collections.abc import Callable
from typing import Any

from ddpm_ref import check_backend


def test_it_does_what_numpy_does(cuda: Callable[..., Any]) -> None:
    print(check_backend(cuda()))
