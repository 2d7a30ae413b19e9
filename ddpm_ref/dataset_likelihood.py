"""The variational bound over a data set: L_T … L_0, rate and distortion, and what x_t tells of x_0 (§4.3, Table 1).

Each image gets one x_t ~ q(x_t | x_0) at each step, so that its terms are one-sample estimates, unbiased in their sum.
Images go a batch at a time, and every sum runs image by image: neither memory nor a single bit depends on the batch,
beyond the network's own rounding. With `every` = K an image has a K-th of the steps 2 … T instead:

    groups     of K successive images; the n-th image has offset o_n = (u_g + n) mod K, u_g uniform for its group g
    steps      t = 1, always, and those t ≥ 2 with (t - 2) mod K = o_n: each with probability 1/K, hence weight K

so a whole group sees each step once, and the mean over u_g = 0 … K-1 is what every step of every image gives.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ddpm_ref.checks import Array, check_choice, check_finite, check_int
from ddpm_ref.forward import q_sample
from ddpm_ref.likelihood import prior_kl
from ddpm_ref.objective import bound_term
from ddpm_ref.random import Purpose, integers, normal
from ddpm_ref.reverse import PARAMETRISATIONS, Model, output_to_x_0, reverse_variance, split_output
from ddpm_ref.schedule import Schedule, Table
from ddpm_ref.train import Images

Progress = Callable[[int], object]
"""progress(n): n more of the `evaluations` are done."""


@dataclass(frozen=True, eq=False)
class DatasetBound:
    """The bound of N images, float64, in nats per dimension; row s of a table belongs to the paper's L_s.

    L           (T+1,) the mean over the images; their sum is `total.mean()`
    L_var       (T+1,) the variance of one image's one-sample term over the images seen, NaN where that is one
    seen        (T+1,) how many images had the term
    mse         (T+1,) row t: the mean over images of (x̂_0 - x_0)² at x_t, x̂_0 the network's (Eq. 15); row 0 is 0
    mse_clipped (T+1,) the same with x̂_0 clipped to [-1, 1], as the released code shows it
    rate        (N,) each image's Σ_{t>1} L_{t-1} + L_T, estimated      distortion  (N,) its L_0
    """

    L: Table
    L_var: Table
    seen: Table
    mse: Table
    mse_clipped: Table
    rate: Table
    distortion: Table
    every: int

    @property
    def total(self) -> Table:
        """Each image's bound on -log p_θ(x_0), (N,): an unbiased estimate."""
        return self.rate + self.distortion

    def standard_error(self, per_image: Table) -> float:
        """Of the mean of `rate`, `distortion` or `total`: from the spread between groups of K successive images.

            √( G/(G-1) Σ_g (S_g - n_g mean)² ) / N,     S_g the sum over group g's n_g images

        With K = 1 it is the standard deviation over √N. It covers the choice of images, their noise ε and the steps
        they were given, not the training run. NaN for a single group.
        """
        first = np.arange(0, len(per_image), self.every)
        if len(first) < 2:
            return float("nan")
        with np.errstate(invalid="ignore"):  # of terms that are infinite
            off = np.add.reduceat(per_image - per_image.mean(), first)
            return float(np.sqrt(len(first) / (len(first) - 1) * (off**2).sum()) / len(per_image))


def dataset_bound(
    schedule: Schedule,
    model: Model,
    data: Images,
    *,
    seed: int,
    predicts: str = "eps",
    var: str | Table = "beta",
    clip: bool = False,
    every: int = 1,
    count: int | None = None,
    batch: int = 100,
    dtype: type[np.floating] = np.float32,
    progress: Progress | None = None,
) -> DatasetBound:
    """The bound of the first `count` images (all if None), each term at one x_t of (seed, image, t) (Eq. 5).

    model: called with x_t (n, H, W, C) of `dtype` and one integer t.  clip: x̂_0 is clipped before the mean is made.
    every: K, at most the number of images: every K-th step of each image, K times as fast and less precise.
    batch: images at a time.  The terms are float64, whatever the network answers in; where its answers are not
    finite, neither is the result.  Raises ValueError for bad arguments and data that are not finite.
    """
    n = _check(schedule, data, predicts, var, every, count, batch)
    how: dict[str, Any] = dict(levels=data.levels, predicts=predicts, var=var, clip=clip)
    offset = offsets(seed, n, every)
    terms, squares, clipped = (_Moments(schedule.T + 1) for _ in range(3))
    rate, distortion = np.zeros(n), np.zeros(n)
    for o in range(every):
        steps = steps_of(schedule.T, every, o)
        for images in _batches(np.flatnonzero(offset == o), batch):
            x_0 = data.x_0(images, np.float64)
            check_finite(x_0=x_0)
            L, raw, cut = _at_each(schedule, model, x_0, images, steps, seed, dtype, how, progress)
            L_T = prior_kl(schedule, x_0)
            for L_t in L[1:]:  # one by one: NumPy's order of summing depends on the shape, and so on the batch
                rate[images] += L_t
            rate[images] = L_T + every * rate[images]
            distortion[images] = L[0]
            terms.add(np.append(steps - 1, schedule.T), np.vstack([L, L_T]))
            squares.add(steps, raw)
            clipped.add(steps, cut)

    weight = np.full(schedule.T + 1, every / n)
    weight[[0, -1]] = 1 / n  # L_0 and L_T are every image's
    L = terms.mean * (terms.n * weight)
    return DatasetBound(L, terms.variance, terms.n, squares.mean, clipped.mean, rate, distortion, every)


def offsets(seed: int, n: int, every: int) -> Array:
    """The offset of each of n images, (n,) in 0..K-1: each of a group of K successive images has another."""
    image = np.arange(n)
    turn = integers(seed, Purpose.EVALUATE, 0, np.arange(-(-n // every)), every)
    return (turn[image // every] + image) % every


def steps_of(T: int, every: int, offset: int) -> Array:
    """The steps of an image with this offset, increasing: t = 1, and every K-th from 2 + offset."""
    return np.append(1, np.arange(2 + offset, T + 1, every))


def evaluations(T: int, n: int, every: int = 1, *, seed: int = 0) -> int:
    """How often the network is evaluated on one image in `dataset_bound` of n images, for a progress bar."""
    counts = np.bincount(offsets(seed, n, every), minlength=every)
    return int(sum(c * len(steps_of(T, every, o)) for o, c in enumerate(counts)))


def _at_each(
    schedule: Schedule,
    model: Model,
    x_0: Array,
    images: Array,
    steps: Array,
    seed: int,
    dtype: type[np.floating],
    how: dict[str, Any],
    progress: Progress | None,
) -> Array:
    """Of each image at each step L_{t-1}, and the mean square of x̂_0 - x_0 as it is and clipped: (3, steps, images)."""
    found = np.empty((3, len(steps), len(images)))
    for row, t in enumerate(steps.tolist()):
        eps = normal(seed, Purpose.EVALUATE, t, images, x_0.shape[1:]).astype(dtype, copy=False)
        x_t = q_sample(schedule, x_0.astype(dtype, copy=False), t, eps)
        output = model(x_t, t)
        found[0, row] = bound_term(schedule, x_0, x_t, t, output, **how).per_image
        prediction = np.asarray(split_output(output, how["var"])[0], dtype=np.float64)
        x_0_hat = output_to_x_0(schedule, x_t.astype(np.float64, copy=False), t, prediction, how["predicts"])
        for which, x in ((1, x_0_hat), (2, np.clip(x_0_hat, -1, 1))):
            found[which, row] = ((x - x_0) ** 2).reshape(len(x), -1).mean(axis=1)
        if progress:
            progress(len(images))
    return found


@dataclass(eq=False)
class _Moments:
    """Running means and variances of the rows of a table, image by image in the order they come (Welford)."""

    rows: int
    n: Table = field(init=False)
    mean: Table = field(init=False)
    squares: Table = field(init=False)

    def __post_init__(self) -> None:
        self.n, self.mean, self.squares = np.zeros((3, self.rows))

    def add(self, rows: Array, values: Array) -> None:
        """values (R, n): of n images in these rows, which differ from each other."""
        with np.errstate(invalid="ignore"):  # of values that are infinite
            for column in values.T:
                self.n[rows] += 1
                off = column - self.mean[rows]
                self.mean[rows] += off / self.n[rows]
                self.squares[rows] += off * (column - self.mean[rows])

    @property
    def variance(self) -> Table:
        """Σ (x - mean)² / (n - 1), NaN where n < 2."""
        several = self.n > 1
        variance: Table = np.where(several, self.squares / np.where(several, self.n - 1, 1), np.nan)
        return variance


def _batches(images: Array, batch: int) -> Iterator[Array]:
    return (images[first : first + batch] for first in range(0, len(images), batch))


def _check(
    schedule: Schedule, data: Images, predicts: str, var: str | Table, every: int, count: int | None, batch: int
) -> int:
    """The number of images; ValueError before any work."""
    if count is not None:
        check_int("count", count, 1, len(data))
    n = len(data) if count is None else count
    check_int("every", every, 1, n)
    check_int("batch", batch, 1)
    check_choice("predicts", predicts, PARAMETRISATIONS)
    if not (isinstance(var, str) and var == "learned"):
        reverse_variance(schedule, var)
    return n
