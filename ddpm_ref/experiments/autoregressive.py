"""The autoregressive view (§4.3) made on two things: a toy whose bound is known, and binary digits.

The toy is a binary Markov chain of D = 5 coordinates, with everything by enumeration over all 3^D states: Eq. 16, Eq. 5
and E[-log₂ p_θ(x_0)] agree for every p_θ that copies what is visible, and exceed H(x_0) by KL(q ‖ p_θ). One that slips
now and then has a bound above its own likelihood, so copying is what the bound teaches.

The digits, thresholded, are T = D = 64 coordinates; p_θ is one logistic regression for each, given those after it.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_ref.checks import Array, check_int
from ddpm_ref.experiments import masking
from ddpm_ref.experiments.masking import Logistic, Tabulated, bound_terms, unmask_steps
from ddpm_ref.extras import import_extra
from ddpm_ref.files import run as runs
from ddpm_ref.files.source import open_source
from ddpm_ref.random import Purpose, uniform
from ddpm_ref.terminal import bar, need, out_folder, say, wrote

RESULT = "autoregressive.json"
SHOWN = 30  # images of each kind in the picture
SHOWN_STEPS = 9  # of the chain


# --- the toy ---------------------------------------------------------------------------------------------------------


def markov_chain(D: int, p: float = 0.3, stay: float = 0.85) -> Array:
    """A joint distribution over {0, 1}^D, (2, …, 2): x^D is 1 with probability p, x^t = x^{t+1} with `stay`."""
    check_int("D", D, 1)
    joint = np.array([1 - p, p])
    step = np.array([[stay, 1 - stay], [1 - stay, stay]])
    for _ in range(D - 1):
        joint = step[(slice(None), slice(None), *[None] * (joint.ndim - 1))] * joint
    return joint


def independent(joint: Array) -> Array:
    """The product of the marginals."""
    out = np.ones(())
    for axis in range(joint.ndim):
        marginal = joint.sum(axis=tuple(a for a in range(joint.ndim) if a != axis))
        out = out[..., None] * marginal
    return out


@dataclass(frozen=True)
class ToyRow:
    """One p_θ on the toy, in bits: L by each equation, E[-log₂ p_θ(x_0)] by the chain, and KL(q ‖ p_θ) of x_0."""

    name: str
    eq_16: float
    eq_5: float
    negative_log_likelihood: float
    kl: float


def measure_toy(D: int = 5) -> tuple[float, list[ToyRow]]:
    """H(x_0) in bits, and a row for the true conditionals, wrong ones, independent ones, and ones that slip."""
    q = markov_chain(D)
    x, Q = masking.states(D), masking.forward_kernels(D)
    data = (x != masking.BLANK).all(axis=1)
    q_0 = np.zeros(len(x))
    q_0[data] = q[tuple(x[data].T)]
    H = float(-(q * np.log2(q)).sum())
    models = {
        "the true conditionals": (q, 0.0),
        "a chain that stays less": (markov_chain(D, 0.5, 0.6), 0.0),
        "independent coordinates": (independent(q), 0.0),
        "true, but slips in 1 %": (q, 0.01),
    }
    rows = []
    for name, (joint, slip) in models.items():
        P = masking.reverse_kernels(Tabulated(joint), slip)
        log_p = masking.log_likelihood(P)[data]
        # Of a p_θ that copies the second opinion is the table itself, whatever the chain has made of it.
        known = log_p if slip else Tabulated(joint).log_2(x[data])
        kl = float((q_0[data] * (np.log2(q_0[data]) - known)).sum())
        nll = float(-(q_0[data] @ log_p))
        rows.append(ToyRow(name, masking.eq_16(q_0, Q, P), masking.eq_5(q_0, Q, P), nll, kl))
    return H, rows


# --- the digits ------------------------------------------------------------------------------------------------------


def fit_logistic(x_0: Array, progress: Callable[[int], object] | None = None) -> Logistic:
    """One logistic regression for each coordinate given those after it.  x_0: (N, D) of 0 and 1.

    Each is scikit-learn's with its default penalty, ½‖W_t‖² beside the sum of log losses.
    A coordinate that is always the same, and the last, which has nothing after it, have the rule of succession.
    """
    masking.check_binary(x_0, x_0.shape[1])
    LogisticRegression = import_extra("sklearn.linear_model", "the autoregressive model").LogisticRegression
    model = independent_logistic(x_0)
    D = x_0.shape[1]
    for t in range(1, D + 1):
        y, after = x_0[:, t - 1], x_0[:, t:].astype(np.float64)
        if t < D and y.min() < y.max():
            fitted = LogisticRegression(solver="newton-cholesky").fit(after, y)
            model.W[t - 1, t:], model.b[t - 1] = fitted.coef_[0], fitted.intercept_[0]
        if progress:
            progress(1)
    return model


def independent_logistic(x_0: Array) -> Logistic:
    """Coordinates that know nothing of each other: (ones + 1) / (N + 2) each."""
    p = (x_0.sum(axis=0) + 1) / (len(x_0) + 2)
    return Logistic(np.zeros((x_0.shape[1],) * 2), np.log(p / (1 - p)))


@dataclass(frozen=True)
class AutoregressiveResult:
    """What `measure` found.

    toy_entropy, toy: bits.  D: of the digits.  bits_per_dim: model → "train", "held_out" → the bound L over D.
    terms: (D,), L_{t-1} of the held-out digits for t = 1 … D, bits, under the logistic regressions.
    shape, samples, independent, real, steps: for the picture, of 0, 1 and 2 (masked); steps is the chain of one sample.
    """

    toy_entropy: float
    toy: list[ToyRow]
    D: int
    bits_per_dim: dict[str, dict[str, float]]
    terms: list[float]
    shape: tuple[int, int]
    samples: list[list[int]]
    independent: list[list[int]]
    real: list[list[int]]
    shown_steps: list[int]
    steps: list[list[int]]

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, for JSON."""
        return asdict(self)

    def table(self) -> str:
        """For the terminal."""
        lines = [
            f"Markov chain, bits: H(x_0) = {self.toy_entropy:.6f}",
            f"  {'p_θ':26}{'L, Eq. 16':>12}{'L, Eq. 5':>12}{'-log₂ p_θ(x_0)':>16}{'KL(q ‖ p_θ)':>13}",
        ]
        lines += [
            f"  {r.name:26}{r.eq_16:12.6f}{r.eq_5:12.6f}{r.negative_log_likelihood:16.6f}{r.kl:13.6f}" for r in self.toy
        ]
        lines += ["", f"binary digits, T = D = {self.D}, bits/dim:", f"  {'p_θ':26}{'train':>12}{'held-out':>12}"]
        lines += [f"  {name:26}{b['train']:12.4f}{b['held_out']:12.4f}" for name, b in self.bits_per_dim.items()]
        return "\n".join(lines)


def binary_digits() -> tuple[Array, Array, tuple[int, int]]:
    """Training and held-out digits as 0 and 1, (N, 64) int8, split as every run splits them, and their shape."""
    source, train, held_out = open_source("digits")
    assert held_out is not None
    parts = [(data.x_0() >= 0).reshape(len(data), -1).astype(np.int8) for data in (train, held_out)]
    return parts[0], parts[1], source.shape[:2]


def measure(*, seed: int = 0, progress: Callable[[int], object] | None = None) -> AutoregressiveResult:
    """The toy and the digits; seed: of the samples.  progress(1) after each of 64 regressions."""
    check_int("seed", seed, 0, 2**64 - 1)
    train, held_out, shape = binary_digits()
    models = {"logistic regressions": fit_logistic(train, progress), "independent pixels": independent_logistic(train)}
    bits = {
        name: {
            part: float(bound_terms(model, x).sum(axis=1).mean() / model.D)
            for part, x in (("train", train), ("held_out", held_out))
        }
        for name, model in models.items()
    }
    chains = [list(unmask_steps(model, SHOWN, _uniforms(seed, k))) for k, model in enumerate(models.values())]
    D = train.shape[1]
    shown = np.linspace(D, 0, SHOWN_STEPS).round().astype(int).tolist()
    toy_entropy, toy = measure_toy()
    return AutoregressiveResult(
        toy_entropy=toy_entropy,
        toy=toy,
        D=D,
        bits_per_dim=bits,
        terms=bound_terms(models["logistic regressions"], held_out).mean(axis=0).tolist(),
        shape=shape,
        samples=chains[0][-1][1].tolist(),
        independent=chains[1][-1][1].tolist(),
        real=held_out[:SHOWN].tolist(),
        shown_steps=shown,
        steps=[x_t[0].tolist() for t, x_t in chains[0] if t in shown],
    )


def _uniforms(seed: int, layer: int) -> Callable[[int], Array]:
    return lambda t: uniform(seed, Purpose.Z, t, range(SHOWN), (), layer=layer)


# --- files and the command -------------------------------------------------------------------------------------------


def save(folder: str | Path, result: AutoregressiveResult, facts: dict[str, Any] | None = None) -> list[Path]:
    """autoregressive.json and autoregressive.png in the folder; their paths."""
    from ddpm_ref.experiments.autoregressive_picture import save_autoregressive

    path = Path(folder) / RESULT
    runs.write_json(path, {"facts": facts or {}, "result": result.as_dict()})
    return [path, save_autoregressive(Path(folder) / "autoregressive.png", result)]


MORE = (
    "\nNeeds no checkpoint. Holds the bound of the masking chain (Eq. 16) against the autoregressive likelihood on a\n"
    "toy, and gives bits/dim and samples of binary digits with one logistic regression for each pixel; writes\n"
    "autoregressive.json and autoregressive.png."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `ddpm-ref autoregressive`."""
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    where = "where to write (runs/autoregressive, or the first of runs/autoregressive-2, -3 … that is new)"
    parser.add_argument("--out", metavar="FOLDER", help=where)


def run(args: argparse.Namespace) -> int:
    """`ddpm-ref autoregressive`"""
    need("tqdm", "matplotlib.figure", "sklearn.linear_model")
    folder = out_folder(args, "runs/autoregressive")
    with bar(64, "fitting", "pixel") as progress:
        result = measure(seed=args.seed, progress=progress.update)
    say(result.table())
    wrote(save(folder, result, runs.describe(seed=args.seed)))
    return 0
