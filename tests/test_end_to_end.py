"""Algorithm 1, the real U-Net and Algorithm 2 together, on data whose answer is known: images x_0 ~ N(m, S).

For such data the best predictor ε*, its loss at every t and the distribution of Algorithm 2's samples are known
exactly (`GaussianOracle`), so what training is meant to reach can be measured, not judged. The network is the digits
preset, with attention, down- and up-sampling and the embedding of t, on images of 4x4; T = 1000.

`--seed` changes everything random here: initial parameters, data, every draw of training, sampling and evaluation.
What chance may do is bounded so that all of it together fails a right program less than once in 1e9 runs.

In brackets: what seeds 1 to 5 and 11 to 13 measured. After 200 steps of training instead of 1000 (seed 1) every bound
is broken: the excess is 0.034 to 0.046, the loss of the first quarter 7 % above the irreducible one, and samples run
away.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
from scipy import stats
from threadpoolctl import threadpool_limits

from ddpm_ref import (
    AdamSettings,
    GaussianOracle,
    Purpose,
    Schedule,
    Trainer,
    TrainSettings,
    UNet,
    generate_steps,
    normal,
    preset,
    q_sample,
    sample,
)
from ddpm_ref.checks import Array

pytestmark = pytest.mark.statistical

SIDE, STEPS, SAMPLES = 4, 1000, 256
QUARTER = 16_384  # fresh images to evaluate each quarter of t with
CHANCE = 1e-11  # of one comparison: there are fewer than a hundred
Z = float(stats.norm.isf(CHANCE))  # standard errors, 6.7


def oracle() -> GaussianOracle:
    """N(m, S) on 4x4: a ramp for m, smooth images of variance 0.2 plus white ones of 0.05 for S.

    So pixels have a deviation of ½, neighbours a correlation of 0.64, and the eigenvalues of S run from 0.05 to 1.5.
    """
    at = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij"), axis=-1).reshape(-1, 2)
    square = ((at[:, None] - at) ** 2).sum(axis=-1)
    ramp = 0.3 * (at[:, 0] - at[:, 1]) / (SIDE - 1)
    cov = 0.2 * np.exp(-square / (2 * 1.5**2)) + 0.05 * np.eye(SIDE**2)
    return GaussianOracle(ramp.reshape(SIDE, SIDE, 1), cov, Schedule.linear())


@dataclass(frozen=True)
class GaussianImages:
    """Two thousand million images of the oracle, each drawn when asked for from its number: none is learned by heart.

    They are not clipped to [-1, 1], where about 95 % of their pixels lie, nor on any grid of grey levels.
    """

    oracle: GaussianOracle
    seed: int
    levels: int = 256
    shape: tuple[int, int, int] = (SIDE, SIDE, 1)

    def __len__(self) -> int:
        return 2**31

    def x_0(self, index: Array, dtype: type[np.floating]) -> Array:
        standard = normal(self.seed, Purpose.EVALUATE, 0, index, (SIDE**2,)).astype(np.float64)
        return self.oracle.data.from_standard(standard).reshape(-1, *self.shape).astype(dtype)


class Quarter(NamedTuple):
    """A network on fresh (x_0, t, ε), t within one quarter of 1..T. All but `irreducible`: (N,), means over pixels."""

    loss: Array  # (ε - ε_θ)²
    excess: Array  # (ε_θ - ε*)²
    irreducible: float


class Trained(NamedTuple):
    """What training left, and where it started."""

    oracle: GaussianOracle
    trainer: Trainer
    fresh: list[Quarter]
    quarters: list[Quarter]


@pytest.fixture(scope="module")
def seed(request: pytest.FixtureRequest) -> int:
    return int(request.config.option.seed)


@pytest.fixture(scope="module")
def trained(seed: int) -> Trained:
    """The digits network after STEPS steps of Algorithm 1 (about 17 s on one core), evaluated before and after."""
    known = oracle()
    settings = TrainSettings(batch=64, seed=seed, adam=AdamSettings(lr=3e-3, warmup=50, ema=0.99))
    trainer = Trainer(UNet(preset("digits")), known.schedule, GaussianImages(known, seed), settings)
    with threadpool_limits(1):  # a second thread gains little in so small a network, and loses much on busy cores
        fresh = evaluate(trainer, known, "raw", 2048)
        for _ in range(STEPS):
            trainer.step()
        return Trained(known, trainer, fresh, evaluate(trainer, known, "ema", QUARTER))


def evaluate(trainer: Trainer, known: GaussianOracle, weights: str, n: int) -> list[Quarter]:
    """The four quarters of t, each by n fresh images, as many at one t as at another (up to one)."""
    schedule, model = trainer.schedule, trainer.net.bind(trainer.params(weights))
    rng = np.random.default_rng([trainer.settings.seed, 1])
    quarters = []
    for first in range(1, schedule.T + 1, schedule.T // 4):
        t = first + np.arange(n) % (schedule.T // 4)
        x_0 = known.draw(n, rng)
        eps = rng.standard_normal(x_0.shape)
        x_t = q_sample(schedule, x_0, t, eps).astype(np.float32)
        output = np.concatenate([model(x_t[i : i + 256], t[i : i + 256]) for i in range(0, n, 256)])
        best = known(x_t.astype(np.float64), t)
        table = [known.irreducible_loss(int(step)) for step in range(first, first + schedule.T // 4)]
        loss, excess = (((output - target) ** 2).mean(axis=(1, 2, 3)) for target in (eps, best))
        quarters.append(Quarter(loss, excess, float(np.mean(np.array(table)[t - first]))))
    return quarters


def standard_error(values: Array) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


# --- what it has learned ---------------------------------------------------------------------------------------------


def test_the_trained_network_is_near_the_best_predictor_in_every_quarter_of_t(trained: Trained) -> None:
    """[0.0033 to 0.0043 in the first quarter, 0.0009 to 0.0013 in the others.]"""
    excess = [quarter.excess.mean() for quarter in trained.quarters]
    assert max(excess) < 0.02, excess
    # A fresh network answers 0, so its excess is E ε*² = 1 - the irreducible loss.
    assert min(quarter.excess.mean() for quarter in trained.fresh) > 0.4


def test_its_loss_is_within_5_percent_of_the_irreducible_one_in_the_first_quarter(trained: Trained) -> None:
    """[0.4 to 1.3 % above; chance alone moves it by 0.3 %.] A fresh network's is twice the irreducible one."""
    first = trained.quarters[0]
    assert first.loss.mean() < 1.05 * first.irreducible, (first.loss.mean(), first.irreducible)
    assert trained.fresh[0].loss.mean() > 1.5 * first.irreducible


def test_no_quarters_loss_is_below_the_irreducible_one(trained: Trained) -> None:
    for quarter in trained.quarters:
        assert quarter.loss.mean() > quarter.irreducible - Z * standard_error(quarter.loss)


@pytest.mark.parametrize("which", ["fresh", "quarters"])
def test_a_loss_is_the_irreducible_one_plus_the_excess_for_any_network(trained: Trained, which: str) -> None:
    """E(ε - ε_θ)² = E(ε - ε*)² + E(ε* - ε_θ)²: ε - ε* has mean 0 given x_t, on which alone both predictions depend."""
    for quarter in getattr(trained, which):
        rest = quarter.loss - quarter.excess
        assert abs(rest.mean() - quarter.irreducible) < Z * standard_error(rest)


# --- what it draws ---------------------------------------------------------------------------------------------------


class Drawn(NamedTuple):
    """Samples of Algorithm 2 as rows: the network's, and the oracle's from the same x_T and the same z; no clipping."""

    net: Array
    oracle: Array


@pytest.fixture(scope="module")
def drawn(trained: Trained, seed: int) -> Drawn:
    """About 14 s on one core."""
    known, params, T = trained.oracle, trained.trainer.params("ema"), trained.oracle.schedule.T
    images, shape = np.arange(SAMPLES), (SIDE, SIDE, 1)
    with threadpool_limits(1):
        *_, (_, x_0, _) = generate_steps(
            trained.trainer.net, params, known.schedule, images, shape, seed=seed, clip=False, every=T
        )
    x_T = normal(seed, Purpose.X_T, 0, images, shape).astype(np.float64)
    best = sample(known.schedule, known, x_T, lambda t: normal(seed, Purpose.Z, t, images, shape))
    return Drawn(x_0.reshape(SAMPLES, -1).astype(np.float64), best.reshape(SAMPLES, -1))


def distance(cov: Array, true: Array) -> float:
    """‖cov - true‖ / ‖true‖, Frobenius norms."""
    return float(np.linalg.norm(cov - true) / np.linalg.norm(true))


def covariance(x: Array) -> Array:
    return np.cov(x, rowvar=False)


def distance_by_chance(variances: Array) -> float:
    """What the `distance` of the covariance of SAMPLES exact draws exceeds with a probability below CHANCE.

    Along the axes of S the entries of the sample covariance are nearly independent normals of variance
    λ_i λ_j / (N - 1), twice that on the diagonal. So distance² is Σ w u² with standard normals u, and
    P(Σ w u² > d²) ≤ e^{-s d²} ∏ (1 - 2 s w)^{-½} for every s.
    """
    i, j = np.tril_indices(len(variances))
    w = 2 * variances[i] * variances[j] / (SAMPLES - 1) / (variances**2).sum()
    s = np.linspace(0, 1 / (2 * w.max()), 2000)[1:-1]
    log_moment = -0.5 * np.log1p(-2 * s[:, None] * w).sum(axis=1)
    return float(np.sqrt(((log_moment - np.log(CHANCE)) / s).min()))


def test_the_samples_covariance_approaches_the_truth(trained: Trained, drawn: Drawn) -> None:
    """With the oracle's own samples as control, chance cancels and the network's error is left [0.05 to 0.10].

    Independent pixels with the right variances are at 0.83.
    """
    chain, S = trained.oracle.p_marginals(z_at_1=False)[0], trained.oracle.data.cov
    cov = covariance(drawn.net) - covariance(drawn.oracle) + chain.cov
    independent = distance(np.diag(np.diag(S)), S)
    assert distance(cov, S) < independent / 4, distance(cov, S)
    # The same from the network's samples alone [0.13 to 0.19].
    by_chance = distance_by_chance(chain.variances)
    assert by_chance + independent / 4 < independent
    assert distance(covariance(drawn.net), chain.cov) < by_chance + independent / 4
    assert distance(covariance(drawn.oracle), chain.cov) < by_chance


def test_the_samples_vary_along_the_axes_of_the_truth_as_much_as_it_does(trained: Trained, drawn: Drawn) -> None:
    """The mean over all axes of sample variance / λ, on which narrow axes weigh as much as wide ones.

    Of exact draws it is χ² of D (N - 1) degrees over their number. [1.00 to 1.04 times the oracle's own samples'.]
    """
    chain = trained.oracle.p_marginals(z_at_1=False)[0]
    net, best = (
        float((chain.along_axes(x).var(axis=0, ddof=1) / chain.variances).mean()) for x in (drawn.net, drawn.oracle)
    )
    freedom = chain.D * (SAMPLES - 1)
    low, high = stats.chi2.ppf(CHANCE, freedom) / freedom, stats.chi2.isf(CHANCE, freedom) / freedom
    assert 0.85 < low < best < high < 1.17
    assert low - 0.1 < net < high + 0.1


def test_the_samples_mean_approaches_the_truth(trained: Trained, drawn: Drawn) -> None:
    """m runs from -0.3 to 0.3. [At most 0.036 from the oracle's own samples, 2.4 standard errors from the truth.]"""
    chain = trained.oracle.p_marginals(z_at_1=False)[0]
    error = np.sqrt(np.diag(chain.cov) / SAMPLES)
    assert np.abs((drawn.net - drawn.oracle).mean(axis=0)).max() < 0.1
    assert (np.abs(drawn.oracle.mean(axis=0) - chain.mean.ravel()) < Z * error).all()
    assert (np.abs(drawn.net.mean(axis=0) - chain.mean.ravel()) < 0.1 + Z * error).all()


def test_the_samples_are_nearly_those_the_best_predictor_draws_from_the_same_noise(drawn: Drawn) -> None:
    """Pixels have a deviation of 0.5. [They differ by 0.04 to 0.05.]"""
    assert np.sqrt(((drawn.net - drawn.oracle) ** 2).mean()) < 0.15
