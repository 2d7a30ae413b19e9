"""Each property of each adapter as a test of pytest.

    pytest -p ddpm_ref.conformance.pytest_plugin --ddpm-adapter my_adapter.py

`--ddpm-adapter` may be given more than once. Broken and error are failures with the report's text, not offered is a
skip that says what is missing.
"""

from pathlib import Path
from typing import Any

import pytest

from ddpm_ref.conformance import PROPERTIES, AdapterError, Property, load_adapter
from ddpm_ref.conformance.judge import Case


def pytest_addoption(parser: pytest.Parser) -> None:
    """The plug-in's options."""
    group = parser.getgroup("ddpm", "conformance with the DDPM paper")
    group.addoption("--ddpm-adapter", action="append", default=[], metavar="ADAPTER", help="what to check; repeatable")
    group.addoption("--ddpm-seed", type=int, default=0, help="of all random inputs")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> None:
    """Put the adapters' properties after the tests in files, before -k and the like choose among them."""
    for text in session.config.option.ddpm_adapter:
        items.extend(Adapted.from_parent(session, name=text, nodeid=text).collect())


class Adapted(pytest.Collector):
    """One adapter."""

    def collect(self) -> list["Item"]:
        """A test for each property; a usage error if the adapter cannot be loaded."""
        try:
            case = Case(load_adapter(self.name), self.config.option.ddpm_seed)
        except (AdapterError, ValueError) as error:
            raise pytest.UsageError(f"--ddpm-adapter {self.name}: {error}") from None
        return [
            Item.from_parent(self, name=p.id, nodeid=f"{self.name}::{p.id}", case=case, asked=p) for p in PROPERTIES
        ]


class Broke(Exception):
    """A property that does not hold; shown without a traceback."""


class Item(pytest.Item):
    """One property of one adapter."""

    def __init__(self, *, case: Case, asked: Property, **more: Any) -> None:
        super().__init__(**more)
        self.case, self.asked = case, asked

    def runtest(self) -> None:
        """Ask it."""
        result = self.asked.ask(self.case.adapter, self.case)
        if result.status == "not offered":
            pytest.skip(f"not offered: {result.diagnosis}")
        if result.status != "holds":
            raise Broke("\n".join(result.lines()))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The report's lines alone."""
        return str(excinfo.value) if isinstance(excinfo.value, Broke) else super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Where it stands in pytest's report."""
        return Path(self.case.adapter.name), None, f"{self.asked.equation}: {self.asked.title}"
