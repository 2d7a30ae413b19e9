"""Every public function that takes a batch of images, called in one way: what must hold of each is tested once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from strategies import schedule_of, schedules

from ddpm_ref import (
    PARAMETRISATIONS,
    EmpiricalOracle,
    GaussianOracle,
    MixtureOracle,
    Objective,
    Schedule,
    absolute_error,
    bound_term,
    bound_terms,
    combine,
    discretized_gaussian_log_likelihood,
    huber_error,
    log_variance_weighted,
    output_from_x_0,
    output_to_x_0,
    p_mean,
    p_mean_var,
    p_sample,
    predict_eps,
    predict_x_0,
    prior_kl,
    q_mean_var,
    q_posterior,
    q_sample,
    q_step,
    sample,
    squared_error,
)
from ddpm_ref.checks import Array

# β_1 = 10⁻⁴ as in the paper: in float32 1 - ᾱ_1 is then wrong in its fourth digit.
STEEP = schedule_of(np.geomspace(1e-4, 0.5, 8))


class Batch(NamedTuple):
    """Three arrays (N, ...) and a step for each image."""

    schedule: Schedule
    x: Array
    y: Array
    z: Array
    t: Array

    def of(self, change: Callable[[Array], Array]) -> "Batch":
        """The same change of all three arrays."""
        return self._replace(x=change(self.x), y=change(self.y), z=change(self.z))

    def only(self, index: Array) -> "Batch":
        """Some of its images, in this order."""
        return self.of(lambda a: a[index])._replace(t=self.t[index])


@st.composite
def batches(draw: Any) -> Batch:
    """Arrays of half precision, whose squares are exact in float32."""
    schedule = draw(st.one_of(st.just(STEEP), schedules))
    shape = (draw(st.integers(1, 6)), *draw(hnp.array_shapes(min_dims=0, max_dims=3, max_side=3)))
    x, y, z = draw(hnp.arrays(np.float64, (3, *shape), elements=st.floats(-3, 3, width=16)))
    t = draw(hnp.arrays(np.int64, shape[:1], elements=st.integers(1, schedule.T)))
    return Batch(schedule, x, y, z, t)


Results = tuple[Array, ...]
Call = Callable[[Batch], Results]


def learned(b: Batch) -> tuple[Batch, Array]:
    """A batch with a last axis, and an output that also has log σ_t² = y there."""
    b = b if b.x.ndim > 1 else b.of(lambda a: a[:, None])
    return b, np.concatenate([b.z, b.y], axis=-1)


def with_learned_variance(call: Callable[[Batch, Array], Results]) -> Call:
    """The results of a call on `learned`, those twice as wide cut in two."""

    def run(b: Batch) -> Results:
        b, output = learned(b)
        results = call(b, output)
        return tuple(part for r in results for part in (np.split(r, 2, axis=-1) if r.shape == output.shape else [r]))

    return run


def bound(b: Batch, output: Array, **kind: Any) -> Results:
    return tuple(bound_term(b.schedule, b.x, b.y, b.t, output, levels=9, **kind))


def decoder(b: Batch) -> Results:
    log_p, backward = discretized_gaussian_log_likelihood(b.x, b.y, np.maximum(b.z * b.z, 2**-6), 9)
    return (log_p, *backward(b.z))


def whole_objective(b: Batch) -> Results:
    objective = Objective("v", error="huber", weight="bound", w_simple=0.5, w_elbo=0.5, learned_weights=True)
    s = np.linspace(-1, 1, b.schedule.T + 1)
    losses, d_s = objective(b.schedule, b.x, b.y, b.t, b.z, b.z, levels=9, log_variance=s)
    assert d_s is not None
    return (*losses, d_s)


def weighted_losses(b: Batch) -> Results:
    both = combine((0.5, squared_error(b.x, b.y)), (2.0, absolute_error(b.x, b.z)))
    losses, d_s = log_variance_weighted(both, np.linspace(-1, 1, b.schedule.T + 1), b.t)
    return (*losses, d_s)


def chain(b: Batch) -> Results:
    return (sample(b.schedule, lambda x_t, t: 0.5 * np.abs(x_t) + t, b.x, lambda t: b.z * t),)


def terms(b: Batch) -> Results:
    return (bound_terms(b.schedule, lambda x_t, t: 0.5 * x_t, b.x, lambda t: b.z * t, levels=9).L.T,)


def one_step(predicts: str, **kind: Any) -> Call:
    return lambda b: tuple(p_mean_var(b.schedule, b.x, b.t, b.y, predicts=predicts, **kind))


CALLS: dict[str, Call] = {
    "q_step": lambda b: (q_step(b.schedule, b.x, b.t, b.y),),
    "q_sample": lambda b: (q_sample(b.schedule, b.x, b.t, b.y),),
    "q_mean_var": lambda b: q_mean_var(b.schedule, b.x, b.t),
    "q_posterior": lambda b: q_posterior(b.schedule, b.x, b.y, b.t),
    "predict_x_0": lambda b: (predict_x_0(b.schedule, b.x, b.t, b.y),),
    "predict_eps": lambda b: (predict_eps(b.schedule, b.x, b.t, b.y),),
    "p_mean": lambda b: (p_mean(b.schedule, b.x, b.t, b.y),),
    **{f"output_to_x_0 {p}": lambda b, p=p: (output_to_x_0(b.schedule, b.x, b.t, b.y, p),) for p in PARAMETRISATIONS},
    **{
        f"output_from_x_0 {p}": lambda b, p=p: (output_from_x_0(b.schedule, b.x, b.t, b.y, p),)
        for p in PARAMETRISATIONS
    },
    **{f"p_mean_var {p}": one_step(p) for p in PARAMETRISATIONS},
    **{f"p_mean_var {p}, clipped": one_step(p, clip=True) for p in PARAMETRISATIONS},
    "p_mean_var, learned variance": with_learned_variance(
        lambda b, output: tuple(p_mean_var(b.schedule, b.x, b.t, output, var="learned"))
    ),
    **{
        f"p_sample {p}": lambda b, p=p: p_sample(b.schedule, b.x, b.t, b.y, b.z, predicts=p, temperature=0.7)
        for p in PARAMETRISATIONS
    },
    "sample": chain,
    "squared_error": lambda b: tuple(squared_error(b.x, b.y)),
    "absolute_error": lambda b: tuple(absolute_error(b.x, b.y)),
    "huber_error": lambda b: tuple(huber_error(b.x, b.y, 0.8)),
    "weighted and combined": weighted_losses,
    **{f"bound_term {p}": lambda b, p=p: bound(b, b.z, predicts=p) for p in PARAMETRISATIONS},
    "bound_term, clipped": lambda b: bound(b, b.z, clip=True),
    "bound_term, learned variance": with_learned_variance(lambda b, output: bound(b, output, var="learned")),
    "discretized_gaussian_log_likelihood": decoder,
    "Objective": whole_objective,
    "prior_kl": lambda b: (prior_kl(b.schedule, b.x),),
    "bound_terms": terms,
}
"""Every public function that takes a batch, by name."""


# --- oracles ---------------------------------------------------------------------------------------------------------


def oracles(schedule: Schedule, shape: tuple[int, ...], seed: int) -> list[Any]:
    """One of each kind on data of this shape; those of another shape with as many elements are the same, reshaped."""
    rng, D = np.random.default_rng(seed), int(np.prod(shape))
    A, means = rng.standard_normal((3, D, D)), rng.standard_normal((3, D)).reshape(3, *shape)
    covs = A @ A.transpose(0, 2, 1) / D
    return [
        GaussianOracle(means[0], covs[0], schedule),
        MixtureOracle([0.2, 0.3, 0.5], means, covs, schedule),
        EmpiricalOracle(means, schedule),
    ]


def answers(oracle: Any, b: Batch) -> Results:
    """Everything an oracle says of a batch."""
    predictions = [oracle.predict(b.x, b.t, predicts) for predicts in PARAMETRISATIONS]
    densities = [oracle.log_q(b.x, b.t), oracle.posterior_variance(b.x, b.t)]
    weights = [oracle.responsibilities(b.x, b.t)] if isinstance(oracle, MixtureOracle) else []
    return (*predictions, oracle.score(b.x, b.t), *densities, *weights)
