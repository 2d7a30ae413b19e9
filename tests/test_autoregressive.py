"""The autoregressive view (§4.3): the masking chain's bound against likelihoods by enumeration, and binary digits.

Statistical tests fail a right program less than once in a million times.
"""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ddpm_ref.checks import Array
from ddpm_ref.cli import main
from ddpm_ref.experiments import autoregressive, masking
from ddpm_ref.experiments.autoregressive import (
    AutoregressiveResult,
    binary_digits,
    fit_logistic,
    independent,
    independent_logistic,
    markov_chain,
    measure_toy,
)
from ddpm_ref.experiments.masking import (
    BLANK,
    Logistic,
    Tabulated,
    bound_terms,
    eq_5,
    eq_16,
    forward_kernels,
    log_likelihood,
    mask,
    reverse_kernels,
    states,
    unmask_steps,
)


def everything(D: int) -> Array:
    """All of {0, 1}^D, (2^D, D)."""
    return np.array(list(itertools.product((0, 1), repeat=D)), dtype=np.int8)


def joint_of(seed: int, D: int) -> Array:
    p = np.random.default_rng(seed).dirichlet(np.ones(2**D)) + 1e-6
    return (p / p.sum()).reshape((2,) * D)


def over_states(joint: Array) -> Array:
    """The data's probabilities over all 3^D states."""
    x = states(joint.ndim)
    data = (x != BLANK).all(axis=1)
    q_0 = np.zeros(len(x))
    q_0[data] = joint[tuple(x[data].T)]
    return q_0


def entropy(p: Array) -> float:
    return float(-(p * np.log2(p)).sum())


joints = st.tuples(st.integers(1, 4), st.integers(0, 2**32 - 1))


# --- the chain and its bound, by enumeration -------------------------------------------------------------------------


@given(joints)
def test_conditionals_multiply_to_the_joint(kind: tuple[int, int]) -> None:
    D, seed = kind
    model, x = Tabulated(joint_of(seed, D)), everything(D)
    terms = bound_terms(model, x)
    np.testing.assert_allclose(-terms.sum(axis=1), np.log2(model.joint.ravel()), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(model.log_2(x), np.log2(model.joint.ravel()), rtol=1e-12)
    if D > 1:  # P(x^1 | x^2 …) straight from the definition
        p = model.joint[1] / model.joint.sum(axis=0)
        np.testing.assert_allclose(model.probability(x, 1), np.broadcast_to(p, (2,) * D).ravel(), rtol=1e-12)


@settings(max_examples=15)
@given(joints, st.integers(0, 2**32 - 1))
def test_eq_16_is_eq_5_is_the_autoregressive_likelihood_and_its_gap_the_kl(kind: tuple[int, int], other: int) -> None:
    D, seed = kind
    q, p = joint_of(seed, D), joint_of(other, D)
    q_0, Q, P = over_states(q), forward_kernels(D), reverse_kernels(Tabulated(p))
    cross = float(-(q * np.log2(p)).sum())
    for L in (eq_16(q_0, Q, P), eq_5(q_0, Q, P)):
        np.testing.assert_allclose(L, cross, rtol=1e-9, atol=1e-9)
    found = log_likelihood(P)
    np.testing.assert_allclose(2.0**found, over_states(p), rtol=1e-9, atol=1e-15)
    terms = bound_terms(Tabulated(p), everything(D))
    np.testing.assert_allclose(q.ravel() @ terms.sum(axis=1), cross, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(eq_16(q_0, Q, reverse_kernels(Tabulated(q))), entropy(q), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("D", [2, 4])
def test_one_that_slips_pays_for_every_coordinate_that_it_should_copy(D: int) -> None:
    """Eq. 5 by hand: -log₂(1 - slip) for each of the D - t coordinates after the t-th, beside the likelihood's terms.

    Its own likelihood, to which more than one path leads, is then under the bound.
    """
    q, slip = joint_of(3, D), 0.03
    q_0, Q, P = over_states(q), forward_kernels(D), reverse_kernels(Tabulated(q), slip)
    expected = entropy(q) - np.log2(1 - slip) * D * (D - 1) / 2
    np.testing.assert_allclose(eq_16(q_0, Q, P), expected, rtol=1e-9)
    np.testing.assert_allclose(eq_5(q_0, Q, P), expected, rtol=1e-9)
    data = q_0 > 0
    likelihood = -(q_0[data] @ log_likelihood(P)[data])
    assert entropy(q) < likelihood < expected


def test_one_that_never_copies_has_an_infinite_bound() -> None:
    q = joint_of(1, 2)
    P = reverse_kernels(Tabulated(q))
    x = states(2)
    P[0] = np.zeros_like(P[0])
    P[0][:, -1] = 1  # everything becomes the blank
    assert len(x) == 9
    assert eq_16(over_states(q), forward_kernels(2), P) == np.inf


@pytest.mark.parametrize("D", [1, 3])
def test_the_forward_chain_masks_one_coordinate_after_the_other(D: int) -> None:
    x, Q = states(D), forward_kernels(D)
    assert len(x) == 3**D and (x[-1] == BLANK).all()
    state = np.arange(len(x))
    for t, kernel in enumerate(Q, start=1):
        np.testing.assert_array_equal(kernel.sum(axis=1), 1)
        state = kernel.argmax(axis=1)[state]
        assert (x[state][:, :t] == BLANK).all()
        np.testing.assert_array_equal(x[state][:, t:], x[:, t:])
        data = (x != BLANK).all(axis=1)
        np.testing.assert_array_equal(x[state][data], mask(x[data], t))
    for kernel in reverse_kernels(Tabulated(joint_of(0, D)), 0.1):
        np.testing.assert_allclose(kernel.sum(axis=1), 1, rtol=1e-12)


def test_the_toy_says_what_the_equations_do() -> None:
    H, rows = measure_toy()
    np.testing.assert_allclose(H, entropy(markov_chain(5)), rtol=1e-12)
    # The chain rule: one free coin and four turns.
    np.testing.assert_allclose(H, entropy(np.array([0.3, 0.7])) + 4 * entropy(np.array([0.85, 0.15])), rtol=1e-12)
    true, wrong, alone, slips = rows
    for row in (true, wrong, alone):
        np.testing.assert_allclose([row.eq_16, row.eq_5, row.negative_log_likelihood], H + row.kl, rtol=1e-9)
    assert abs(true.kl) < 1e-12 and wrong.kl > 0.1 and alone.kl > 0.1
    np.testing.assert_allclose(slips.eq_16, H - 10 * np.log2(0.99), rtol=1e-9)
    assert H < slips.negative_log_likelihood < slips.eq_16 - 0.01


def test_independent_is_the_product_of_the_marginals() -> None:
    joint = joint_of(4, 3)
    p = [joint.sum(axis=tuple(b for b in range(3) if b != a)) for a in range(3)]
    np.testing.assert_allclose(independent(joint), np.einsum("i,j,k->ijk", *p), rtol=1e-12)


# --- sampling --------------------------------------------------------------------------------------------------------


def test_the_reverse_chain_draws_from_the_joint(rng: np.random.Generator) -> None:
    joint, n = joint_of(2, 3), 20_000
    steps = list(unmask_steps(Tabulated(joint), n, lambda t: rng.random(n)))
    assert [t for t, _ in steps] == [3, 2, 1, 0]
    for t, x_t in steps:
        assert (x_t[:, :t] == BLANK).all() and (x_t[:, t:] != BLANK).all()
        np.testing.assert_array_equal(x_t[:, t:], steps[-1][1][:, t:], err_msg="copies what is visible")
    counts = np.bincount(steps[-1][1] @ [4, 2, 1], minlength=8)
    assert stats.chisquare(counts, n * joint.ravel()).pvalue > 1e-6


# --- logistic regressions --------------------------------------------------------------------------------------------


def test_a_logistic_model_looks_only_at_what_comes_after() -> None:
    rng = np.random.default_rng(0)
    model = Logistic(rng.normal(size=(4, 4)), rng.normal(size=4))
    x = everything(4)
    for t in range(1, 5):
        logit = model.b[t - 1] + sum(model.W[t - 1, s] * x[:, s] for s in range(t, 4))
        p = 1 / (1 + np.exp(-logit))
        np.testing.assert_allclose(model.probability(x, t), p, rtol=1e-12)
        np.testing.assert_allclose(model.probability(mask(x, t), t), p, rtol=1e-12)
    # So it is a distribution, of sum 1 (2^-bits of every x_0).
    np.testing.assert_allclose((2.0 ** -bound_terms(model, x).sum(axis=1)).sum(), 1, rtol=1e-12)


def test_regressions_find_a_markov_chain_and_their_bound_its_entropy(rng: np.random.Generator) -> None:
    """40,000 draws: the likelihood ratio against the truth is χ² of about 14 degrees, 0.001 bits a draw at the most."""
    pytest.importorskip("sklearn")
    joint = markov_chain(4)
    x = everything(4)[rng.choice(16, size=40_000, p=joint.ravel())]
    model = fit_logistic(x)
    exact = float(joint.ravel() @ bound_terms(model, everything(4)).sum(axis=1))
    assert entropy(joint) <= exact < entropy(joint) + 0.002
    weights = [model.W[t, t + 1] for t in range(3)]
    np.testing.assert_allclose(weights, 2 * np.log(0.85 / 0.15), rtol=0.1)


def test_coordinates_that_never_change_have_the_rule_of_succession() -> None:
    pytest.importorskip("sklearn")
    x = np.array([[0, 1, 1], [0, 1, 0], [0, 1, 1], [0, 1, 1]], dtype=np.int8)
    model = fit_logistic(x)
    p = [model.probability(x, t)[0] for t in (1, 2, 3)]
    np.testing.assert_allclose(p, [1 / 6, 5 / 6, 4 / 6], rtol=1e-12)
    np.testing.assert_array_equal(model.W, 0)
    np.testing.assert_array_equal(independent_logistic(x).b, model.b)


def test_progress_counts_coordinates() -> None:
    pytest.importorskip("sklearn")
    calls: list[int] = []
    fit_logistic(everything(3), calls.append)
    assert calls == [1, 1, 1]


# --- the experiment --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def result() -> AutoregressiveResult:
    pytest.importorskip("sklearn")
    return autoregressive.measure(seed=3)


def test_the_digits_are_better_told_one_after_the_other(result: AutoregressiveResult) -> None:
    bits = result.bits_per_dim
    assert bits["logistic regressions"]["held_out"] < 0.8 * bits["independent pixels"]["held_out"]
    assert bits["logistic regressions"]["train"] < bits["logistic regressions"]["held_out"]
    np.testing.assert_allclose(np.mean(result.terms), bits["logistic regressions"]["held_out"], rtol=1e-12)
    train, held_out, shape = binary_digits()
    assert (len(train), len(held_out), shape, result.D) == (1500, 297, (8, 8), 64)
    p = (train.sum(axis=0) + 1) / (len(train) + 2)
    by_hand = -np.log2(np.where(held_out == 1, p, 1 - p)).mean()
    np.testing.assert_allclose(bits["independent pixels"]["held_out"], by_hand, rtol=1e-12)


def test_the_picture_has_a_chain_that_goes_from_the_blank_to_a_sample(result: AutoregressiveResult) -> None:
    assert result.shown_steps[0] == 64 and result.shown_steps[-1] == 0
    assert set(result.steps[0]) == {BLANK} and result.steps[-1] == result.samples[0]
    for t, x_t in zip(result.shown_steps, result.steps, strict=True):
        assert x_t == [BLANK] * t + result.samples[0][t:]
    assert {v for row in result.samples for v in row} == {0, 1} and result.samples != result.independent


def test_the_files_are_the_same_bytes_again_and_plain_json(result: AutoregressiveResult, tmp_path: Path) -> None:
    paths = autoregressive.save(tmp_path, result)
    assert [p.name for p in paths] == ["autoregressive.json", "autoregressive.png"]
    assert json.loads(paths[0].read_text())["result"] == json.loads(json.dumps(result.as_dict(), allow_nan=False))
    before = [p.read_bytes() for p in paths]
    assert [p.read_bytes() for p in autoregressive.save(tmp_path, result)] == before


def test_the_command(
    result: AutoregressiveResult, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(autoregressive, "measure", lambda seed, progress: asked.append(seed) or result)
    assert main(["autoregressive", "--seed", "5", "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert asked == [5] and "the true conditionals" in said and "independent pixels" in said
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"autoregressive.json", "autoregressive.png"}


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad", [np.zeros((2, 3)), np.full((2, 4), 2), np.full((2, 4), 0.5), np.zeros(4), [[0, 1, 0, 1]]]
)
def test_data_must_be_binary_and_of_D_coordinates(bad: Any) -> None:
    with pytest.raises(ValueError, match=r"x_0: wanted shape \(N, 4\) of 0 and 1"):
        bound_terms(Logistic(np.zeros((4, 4)), np.zeros(4)), bad)


def test_chains_too_long_to_write_out_and_bad_slips_are_refused() -> None:
    for D in (0, 7):
        with pytest.raises(ValueError, match=r"D: wanted an integer in 1\.\.6"):
            states(D)
    for slip in (-0.1, 1.0, np.nan):
        with pytest.raises(ValueError, match="slip: wanted a probability"):
            reverse_kernels(Tabulated(joint_of(0, 2)), slip)


def test_the_largest_chain_that_is_written_out_is_right() -> None:
    q = joint_of(8, masking.LARGEST_D)
    L = eq_16(over_states(q), forward_kernels(q.ndim), reverse_kernels(Tabulated(q)))
    np.testing.assert_allclose(L, entropy(q), rtol=1e-9)
