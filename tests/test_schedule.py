"""The tables β_t, α_t, ᾱ_t, β̃_t of every named schedule and of any other (§2, §4)."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special
from strategies import betas, schedule_of, short

from ddpm_ref import SCHEDULES, Schedule

TABLES = ("beta", "alpha", "alpha_bar", "beta_tilde")
PAPER = ("linear", "quadratic", "constant", "warmup10", "warmup50")
every_build = pytest.mark.parametrize("build", SCHEDULES.values(), ids=SCHEDULES)


# --- what every schedule has -----------------------------------------------------------------------------------------


@every_build
def test_tables_have_T_plus_1_float64_entries_and_start_without_noise(build: Callable[..., Schedule]) -> None:
    schedule = build()
    assert schedule.T == 1000
    for name in TABLES:
        table = getattr(schedule, name)
        assert table.shape == (1001,) and table.dtype == np.float64, name
    assert schedule.beta[0] == 0
    assert schedule.alpha[0] == 1
    assert schedule.alpha_bar[0] == 1
    assert schedule.beta_tilde[0] == 0


@every_build
def test_alpha_is_1_minus_beta_and_alpha_bar_its_running_product(build: Callable[..., Schedule]) -> None:
    schedule = build()
    abar = 1.0
    for t in range(1, schedule.T + 1):
        assert schedule.alpha[t] == 1 - schedule.beta[t]
        abar *= schedule.alpha[t]
        np.testing.assert_allclose(schedule.alpha_bar[t], abar, rtol=1e-13)


@every_build
def test_beta_tilde_follows_eq_7(build: Callable[..., Schedule]) -> None:
    schedule = build()
    beta, abar = schedule.beta, schedule.alpha_bar
    expected = (1 - abar[:-1]) / (1 - abar[1:]) * beta[1:]
    np.testing.assert_allclose(schedule.beta_tilde[1:], expected, rtol=1e-15)
    assert schedule.beta_tilde[1] == 0
    assert (schedule.beta_tilde[2:] > 0).all() and (schedule.beta_tilde <= beta).all()


@pytest.mark.parametrize("name", SCHEDULES)
@given(T=st.integers(1, 2000))
def test_alpha_bar_falls_and_beta_does_not_at_any_T(name: str, T: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        s = SCHEDULES[name](T)
    assert s.alpha_bar[0] == 1 and (np.diff(s.alpha_bar) < 0).all() and s.alpha_bar[-1] >= 0
    assert (np.diff(s.beta[1:]) >= -1e-15).all()
    # Σ_{k≥t} of what each step hides is what is hidden at last: ᾱ_t = 1 - Σ_{s≤t} β_s ᾱ_{s-1}.
    np.testing.assert_allclose(s.alpha_bar[1:], 1 - np.cumsum(s.beta[1:] * s.alpha_bar[:-1]), atol=1e-12)


@given(betas)
def test_beta_tilde_adds_the_precisions_of_both_neighbours(beta: Any) -> None:
    """Bayes: 1/β̃_t = α_t/β_t + 1/(1 - ᾱ_{t-1})."""
    s = schedule_of(beta)
    precision = s.alpha[2:] / s.beta[2:] + 1 / (1 - s.alpha_bar[1:-1])
    np.testing.assert_allclose(1 / s.beta_tilde[2:], precision, rtol=1e-12)


@every_build
@pytest.mark.parametrize("name", TABLES)
def test_tables_are_read_only(build: Callable[..., Schedule], name: str) -> None:
    schedule = build()
    with pytest.raises(ValueError, match="read-only"):
        getattr(schedule, name)[1] = 0.5
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(schedule, name, np.zeros(3))


def test_a_schedule_keeps_its_own_copy_of_beta() -> None:
    beta = np.array([0.0, 0.5, 1.0])
    schedule = Schedule(beta)
    beta[1] = 0.25
    assert schedule.beta[1] == 0.5 and schedule.name == "custom"


def test_a_schedule_shows_itself_by_beta_and_name_alone() -> None:
    fields = dataclasses.fields(Schedule)
    assert [field.name for field in fields if field.repr] == [field.name for field in fields if field.init]
    assert repr(Schedule.jsd(2)) == "Schedule(beta=array([0. , 0.5, 1. ]), name='jsd')"


def test_schedules_are_equal_when_their_tables_are() -> None:
    a, b, c = Schedule.linear(), Schedule.from_beta(np.linspace(1e-4, 0.02, 1000)), Schedule.quadratic()
    assert a == b and hash(a) == hash(b) and a.name != b.name
    assert a != c and hash(a) != hash(c)
    assert a != Schedule.linear(beta_T=0.02 + 1e-9)
    assert a != "linear" and a != a.beta.tobytes()
    assert len({a, b, c}) == 2


# --- the named ones --------------------------------------------------------------------------------------------------


def test_the_names_are_those_documented() -> None:
    assert list(SCHEDULES) == [*PAPER, "jsd", "cosine", "sigmoid"]
    assert {name: build().name for name, build in SCHEDULES.items()} == {name: name for name in SCHEDULES}


@pytest.mark.parametrize("name", ["linear", "quadratic", "warmup10", "warmup50"])
def test_the_papers_schedules_run_from_1e_4_to_2e_2(name: str) -> None:
    for beta_1, beta_T in [(1e-4, 0.02), (1e-3, 0.05)]:
        beta = SCHEDULES[name](1000, beta_1, beta_T).beta
        np.testing.assert_allclose(beta[[1, -1]], [beta_1, beta_T], rtol=1e-14)


def test_linear_is_evenly_spaced_in_beta() -> None:
    np.testing.assert_allclose(np.diff(Schedule.linear().beta[1:]), (0.02 - 1e-4) / 999, rtol=1e-9)


def test_quadratic_is_evenly_spaced_in_the_root_of_beta() -> None:
    steps = np.diff(np.sqrt(Schedule.quadratic().beta[1:]))
    np.testing.assert_allclose(steps, (np.sqrt(0.02) - np.sqrt(1e-4)) / 999, rtol=1e-9)


def test_constant_is_constant() -> None:
    assert (Schedule.constant().beta[1:] == 0.02).all()
    assert (Schedule.constant(1000, 0.05).beta[1:] == 0.05).all()


@pytest.mark.parametrize(("name", "rise"), [("warmup10", 100), ("warmup50", 500)])
def test_warmup_rises_over_its_share_of_the_steps_then_stays(name: str, rise: int) -> None:
    beta = SCHEDULES[name]().beta
    np.testing.assert_allclose(np.diff(beta[1 : rise + 1]), (0.02 - 1e-4) / (rise - 1), rtol=1e-9)
    assert beta[rise - 1] < 0.02 and (beta[rise:] == 0.02).all()


def test_warmup_over_nothing_is_constant_and_over_everything_linear_and_the_names_say_the_percentage() -> None:
    assert (Schedule.warmup(0) == Schedule.constant()) and Schedule.warmup(0).name == "warmup0"
    assert (Schedule.warmup(1) == Schedule.linear()) and Schedule.warmup(1).name == "warmup100"
    assert Schedule.warmup(0.3, 1000, 1e-3, 0.05).beta[[1, 300]].tolist() == [1e-3, 0.05]
    with pytest.raises(ValueError, match=r"fraction: wanted a number in \[0, 1\], got -0.1"):
        Schedule.warmup(-0.1)


def test_a_share_of_the_steps_that_is_no_whole_number_is_rounded_down() -> None:
    with pytest.warns(UserWarning, match="not close to"):
        beta = Schedule.warmup(0.28, 10).beta  # over 2.8 steps
    assert beta.tolist() == [0, 1e-4] + 9 * [0.02]


def test_jsd_forgets_one_part_in_T_each_step() -> None:
    for T in (1, 2, 7, 1000):
        s = Schedule.jsd(T)
        np.testing.assert_allclose(s.alpha_bar, (T - np.arange(T + 1)) / T, rtol=1e-12)
        np.testing.assert_allclose(s.beta[1:], [1 / (T - t + 1) for t in range(1, T + 1)], rtol=1e-15)
        assert s.alpha_bar[T] == 0 and s.beta[T] == 1


def test_cosine_reproduces_its_alpha_bar_up_to_the_cap_on_beta() -> None:
    t = np.arange(1001)
    f = np.cos((t / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(Schedule.cosine().alpha_bar[:-1], f[:-1] / f[0], rtol=1e-10)
    assert Schedule.cosine().beta[-1] == 0.999 == Schedule.cosine().beta.max()
    assert Schedule.cosine(beta_max=0.5).beta.max() == 0.5
    np.testing.assert_allclose(
        Schedule.cosine(s=0.1).alpha_bar[500], (np.cos(0.6 / 1.1 * np.pi / 2) / np.cos(0.1 / 1.1 * np.pi / 2)) ** 2
    )


def test_sigmoid_reproduces_its_alpha_bar_up_to_the_cap_on_beta() -> None:
    u = np.linspace(0, 1, 1001)
    for start, end, tau in [(-3, 3, 1.0), (0, 3, 0.5)]:
        v = special.expit(end / tau) - special.expit((start + (end - start) * u) / tau)
        s = Schedule.sigmoid(1000, start, end, tau)
        np.testing.assert_allclose(s.alpha_bar[:-1], v[:-1] / v[0], rtol=1e-9)
        assert s.beta[-1] == 0.999 == s.beta.max()
    assert Schedule.sigmoid() == Schedule.sigmoid(1000, -3, 3, 1) != Schedule.sigmoid(1000, -3, 3, 0.9)


# --- any other -------------------------------------------------------------------------------------------------------


@given(betas)
def test_from_beta_keeps_the_values(beta: Any) -> None:
    s = schedule_of(beta)
    assert len(beta) == s.T and s.beta.tolist() == [0, *beta] and s.name == "custom"
    assert s == schedule_of(np.array(beta))


@given(betas, st.booleans())
def test_from_alpha_bar_gives_back_beta(beta: Any, to_the_end: bool) -> None:
    s = schedule_of([*beta, 1.0] if to_the_end else beta)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        again = Schedule.from_alpha_bar(s.alpha_bar)
        narrow = s.alpha_bar.astype(np.float32)
        assert Schedule.from_alpha_bar(narrow) == Schedule.from_alpha_bar(narrow.astype(np.float64))
    assert again.name == "custom"
    np.testing.assert_allclose(again.beta, s.beta, rtol=0, atol=1e-15)
    np.testing.assert_allclose(again.alpha_bar, s.alpha_bar, rtol=1e-12)


@pytest.mark.parametrize(
    "abar",
    [[0.9, 0.5], [1, 0.5, 0.5], [1, 0.5, 0.7], [1, 0.5, -0.1], [1], [], 1.0, [[1, 0.5]], [1, np.nan], [1, 0.5, np.nan]],
)
def test_from_alpha_bar_wants_a_fall_from_1(abar: Any) -> None:
    with pytest.raises(ValueError, match="alpha_bar: wanted T\\+1 values that fall strictly from 1"):
        Schedule.from_alpha_bar(abar)


@pytest.mark.parametrize(
    ("beta", "first"),
    [
        ([0.0, 0.5], "beta_1 = 0.0"),
        ([0.1, -0.2, -0.3], "beta_2 = -0.2"),
        ([0.1, 0.2, 1.5], "beta_3 = 1.5"),
        ([0.1, np.nan, 0.2, np.nan], "beta_2 = nan"),
        ([np.inf], "beta_1 = inf"),
    ],
)
def test_a_beta_outside_0_1_is_named_with_its_step(beta: Any, first: str) -> None:
    with pytest.raises(ValueError, match=rf"beta_t in \(0, 1\], not below 1e-16, got {first}$"):
        Schedule.from_beta(beta)


@pytest.mark.parametrize(("beta", "shape"), [(0.1, r"\(\)"), ([[0.1, 0.2]], r"\(1, 2\)")])
def test_beta_of_another_rank_is_an_error(beta: Any, shape: Any) -> None:
    with pytest.raises(ValueError, match=f"beta: wanted a 1-D list .* got shape {shape}"):
        Schedule.from_beta(beta)


@pytest.mark.parametrize("table", [[], [0.0], [0.1, 0.2], [[0.0, 0.1]]])
def test_a_table_must_start_with_beta_0_and_have_a_step(table: Any) -> None:
    with pytest.raises(ValueError, match=r"beta: wanted a table 0, beta_1 \.\.\. beta_T with T >= 1"):
        Schedule(np.array(table))
    with pytest.raises(ValueError, match="T >= 1"):
        Schedule.from_beta([])


@every_build
@pytest.mark.parametrize("T", [0, -1, 10.0, True, "10", None])
def test_T_must_be_an_integer_of_1_or_more(build: Callable[..., Schedule], T: Any) -> None:
    with pytest.raises(ValueError, match=f"T: wanted an integer >= 1, got {T!r}"):
        build(T)


# --- how close x_T is to N(0, I) -------------------------------------------------------------------------------------


@every_build
def test_no_named_schedule_warns_at_its_default_T(build: Callable[..., Schedule]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build() == build(np.int64(1000))
        short(20)


@pytest.mark.parametrize(("T", "gap", "abar"), [(500, "0.0046", "0.00635"), (100, "0.326", "0.364")])
def test_cutting_T_without_rescaling_beta_warns_with_the_gap(T: Any, gap: str, abar: str) -> None:
    said = rf"'linear' with T = {T}: L_T is {gap} bits/dim .* alpha_bar_T = {abar}, .*If T was changed, rescale beta\.$"
    with pytest.warns(UserWarning, match=said):
        Schedule.linear(T)


def test_the_warning_begins_over_a_thousandth_of_a_bit() -> None:
    """Of one step L_T is -½ log₂ β at |x_0| = 1."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Schedule.from_beta([2**-0.00198])
    with pytest.warns(UserWarning, match=r"L_T is 0\.00102 bits/dim"):
        Schedule.from_beta([2**-0.00204])


def test_prior_gaps_of_the_papers_schedules_are_small() -> None:
    for name in PAPER:
        assert 0 < SCHEDULES[name]().prior_gap() < 6e-4, name
    assert Schedule.jsd().prior_gap() == 0


def test_tables_and_gaps_of_float32_arrays_are_computed_in_float64() -> None:
    beta, squares = np.linspace(0, 0.5, 30, dtype=np.float32), np.linspace(0.1, 0.9, 9, dtype=np.float32)
    narrow, wide = Schedule(beta), Schedule(beta.astype(np.float64))
    assert narrow == wide == Schedule.from_beta(beta[1:])
    np.testing.assert_array_equal(narrow.alpha_bar, wide.alpha_bar)
    np.testing.assert_array_equal(narrow.L_T(squares), wide.L_T(squares.astype(np.float64)))
    assert narrow.L_T() == narrow.L_T(1.0) != narrow.L_T(0.9)


def test_numbers_of_the_default_schedule() -> None:
    s = Schedule.linear()
    assert f"{s.alpha_bar[-1]:.4e}" == "4.0358e-05"
    assert f"{s.prior_gap(0.25):.1e}" == "7.3e-06"
    assert f"{s.prior_gap():.1e}" == f"{s.prior_gap(1):.1e}" == "2.9e-05"
    assert f"{s.beta_tilde[488]:.7f} {s.beta_tilde[1000]:.8f}" == "0.0097916 0.01999998"


def test_a_beta_that_float64_cannot_subtract_from_one_is_refused():
    with pytest.raises(ValueError, match="beta_1 = 1e-17"):
        Schedule.from_beta([1e-17, 0.5, 0.99999])


def test_a_warmup_longer_than_the_chain_is_refused():
    with pytest.raises(ValueError, match="fraction"):
        Schedule.warmup(1.5)
