"""`check_backend` holds what keeps the contract and finds what does not: each of these backends has one fault."""

import re

import faulty_calls
import faulty_steps
import faulty_values
import numpy as np
import pytest

import ddpm_ref
from ddpm_ref import backend_check
from ddpm_ref.backend import OPERATIONS, Backend
from ddpm_ref.backend_cases import compared, placed
from ddpm_ref.backend_check import check_backend


def test_numpy_holds_and_the_report_says_how_well() -> None:
    report = ddpm_ref.check_backend(Backend())
    assert report.backend == Backend().describe()
    assert set(report.checks) == {*OPERATIONS, "together", "to_device", "to_host"} and sum(report.checks.values()) > 500
    assert all(0 <= share < 0.2 for share in report.largest.values()), "far from the bounds, which mistakes pass by far"
    assert report.largest["dense"] > 0 and report.largest["group_norm"] > 0
    assert "conv3x3" in str(report) and str(report).endswith("numpy does what NumPy does")


FAULTS = {**faulty_values.FAULTS, **faulty_calls.FAULTS, **faulty_steps.FAULTS}

FOLLOW: dict[type[Backend], set[str]] = {
    faulty_steps.WrongNormal: {"q_sample", "p_sample"},
    faulty_steps.OnePurposeOfNormals: {"p_sample"},
    faulty_values.Truncates: {"q_sample", "p_sample", "update"},
}
"""What is wrong because of it."""


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("faulty", FAULTS)
def test_a_fault_is_found_and_named_with_operation_shape_dtype_and_size(
    faulty: type[Backend], monkeypatch: pytest.MonkeyPatch
) -> None:
    named = FAULTS[faulty].removeprefix("^").removeprefix("together: ").split()[0].strip(":")
    for cases in ("CASES", "LARGE_CASES", "NAN_CASES"):
        chosen = [case for case in getattr(backend_check, cases) if case.name in (named, faulty_calls.ALSO.get(faulty))]
        monkeypatch.setattr(backend_check, cases, chosen)
    with pytest.raises(AssertionError, match=rf"\A{faulty.name}: \d+ of \d+ checks do not hold\n") as caught:
        check_backend(faulty())
    lines = str(caught.value).splitlines()[1:]
    assert any(re.search(FAULTS[faulty], line) for line in lines), "\n".join(lines[:20])
    others = {line.split()[0].strip(":") for line in lines} - {named, "together"}
    assert others <= FOLLOW.get(faulty, set()), "and nothing else is called wrong"


def test_an_error_is_a_share_of_what_is_allowed_and_nan_is_an_error() -> None:
    one = np.ones((2, 3), np.float32)
    assert compared("it", one + np.float32(0.25), one.astype(float), 0.5 * one, np.float32) == 0.5
    assert compared("it", one, one.astype(float), 0 * one, np.float32) == 0
    assert compared("nothing", one[:0], one[:0].astype(float), one[:0], np.float32) == 0
    with pytest.raises(AssertionError, match=r"it: off by nan where 1 is allowed, at \(0, 0\)"):
        compared("it", one * np.nan, one.astype(float), one, np.float32)
    with pytest.raises(AssertionError, match=r"it: wanted shape \(2, 3\), got \(3, 2\)"):
        compared("it", one.T, one.astype(float), one, np.float32)


def test_the_layouts_hold_the_same_values_and_a_strided_array_is_contiguous_nowhere() -> None:
    x = np.arange(24.0).reshape(2, 3, 4)
    contiguous, strided = placed(Backend(), x), placed(Backend(), x, "strided")
    assert np.array_equal(contiguous, x) and np.array_equal(strided, x) and not np.shares_memory(contiguous, x)
    assert contiguous.flags.c_contiguous and not (strided.flags.c_contiguous or strided.flags.f_contiguous)
