"""Optional libraries, imported where they are used."""

import importlib
from typing import Any


def import_extra(module: str, purpose: str) -> Any:
    """Import an optional module, or say which extra brings it (ImportError)."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        needed = module.partition(".")[0]
        raise ImportError(f'{purpose} needs {needed}: pip install "ddpm_ref[demo]"') from error
