"""The checker against known mistakes: each breaks exactly the properties it should, at the right t, and is named."""

import pytest
from zoo import Animal
from zoo_changes import Mistake
from zoo_mistakes import OF_THE_PROCESS
from zoo_mistakes_around import AROUND_IT
from zoo_mistakes_unseen import UNSEEN

from ddpm_ref.conformance import PROPERTIES, check, watched

MISTAKES = (*OF_THE_PROCESS, *AROUND_IT, *UNSEEN)
LOOP = tuple(p.id for p in PROPERTIES if p.needs == ("sample",))
REVERSE = {"reverse-mean", "reverse-var", "clip", "step-mean", "step-noise", "last-step", *LOOP}


ITSELF = {*LOOP, "interpolation-mix", "interpolation-chain"}


def asked(mistake: Mistake) -> list[str]:
    """Every property; of a mistake in the loop alone those of loops, which take longest and are else left out."""
    breaks = set(mistake.breaks)
    if breaks <= set(LOOP):
        return [p.id for p in PROPERTIES if p.id in ITSELF]
    return [p.id for p in PROPERTIES if REVERSE & breaks or p.id not in LOOP]


@pytest.mark.parametrize("mistake", MISTAKES, ids=[m.name for m in MISTAKES])
def test_a_known_mistake_breaks_what_it_should_and_is_named(mistake: Mistake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched, "ELEMENTS", 768)  # fewer than usual: still enough for each of these
    animal = Animal(**mistake.conventions)
    mistake.change(animal)
    report = check(animal, only=asked(mistake))
    assert {r.id for r in report.broken} == set(mistake.breaks), report.table()
    named = [r for r in report.broken if mistake.words in r.diagnosis]
    assert named, report.table()
    assert mistake.first is None or named[0].t == mistake.first, report.table()
    assert not report.errors and report.exit_status == 1


def test_every_property_is_broken_by_some_mistake() -> None:
    broken = {id for m in MISTAKES for id in m.breaks}
    assert {p.id for p in PROPERTIES} == broken
