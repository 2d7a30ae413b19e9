"""The checker: the paper's properties, asked of any implementation through a small adapter.

    report = check("my_adapter.py")
    print(report.table())

`ddpm-ref check my_adapter.py` does the same; `pytest -p ddpm_ref.conformance.pytest_plugin --ddpm-adapter
my_adapter.py` makes each property a test. `ddpm-ref check --list` shows what an adapter may offer and declare.
"""

from collections.abc import Sequence

from ddpm_ref.conformance import (
    decoder_properties,
    forward_properties,
    likelihood_properties,
    objective_properties,
    reverse_properties,
    rows_properties,
    sampling_properties,
    schedule_properties,
    surroundings_properties,
)
from ddpm_ref.conformance.adapter import FUNCTIONS, Adapter, AdapterError, load_adapter
from ddpm_ref.conformance.conventions import Conventions, did_you_mean
from ddpm_ref.conformance.property import Property, Report, Result, run

PROPERTIES: tuple[Property, ...] = (
    *schedule_properties.PROPERTIES,
    *forward_properties.PROPERTIES,
    *rows_properties.PROPERTIES,
    *reverse_properties.PROPERTIES,
    *sampling_properties.PROPERTIES,
    *objective_properties.PROPERTIES,
    *likelihood_properties.PROPERTIES,
    *decoder_properties.PROPERTIES,
    *surroundings_properties.PROPERTIES,
)

__all__ = [
    "FUNCTIONS",
    "PROPERTIES",
    "Adapter",
    "AdapterError",
    "Conventions",
    "Property",
    "Report",
    "Result",
    "check",
    "load_adapter",
]


def check(adapter: object, *, seed: int = 0, only: Sequence[str] | None = None) -> Report:
    """Hold an adapter (see `load_adapter`) to every property, or to those whose ids are in `only`.

    All random inputs come from the seed. Raises AdapterError or ValueError if the adapter cannot be loaded, ValueError
    for an unknown id.
    """
    chosen = PROPERTIES if only is None else [_property(id) for id in only]
    return run(chosen, load_adapter(adapter), seed)


def _property(id: str) -> Property:
    for p in PROPERTIES:
        if p.id == id:
            return p
    raise ValueError(f"only: no property {id!r}{did_you_mean(id, [p.id for p in PROPERTIES])}")
