"""The discretised decoder (§3.3; Eq. 13)."""

import math

import numpy as np

from ddpm_ref.checks import Array
from ddpm_ref.conformance.judge import Broken, Case
from ddpm_ref.conformance.property import Property
from ddpm_ref.decoder import discretized_gaussian_log_likelihood
from ddpm_ref.gaussian import log_normal_cdf

# Below this probability implementations clamp (1e-12 in the released code), and Φ differences lose their digits.
SMALLEST = 1e-10


def unit(case: Case) -> float:
    """Nats in the declared unit of likelihoods."""
    return 1 / math.log(2) if case.c.units == "bits" else 1.0


def _scaled(case: Case, x: Array) -> Array:
    """From data_range to [-1, 1]."""
    low, high = case.c.data_range
    return (x - (low + high) / 2) / ((high - low) / 2)


def tanh_cdf(x: Array) -> Array:
    """The approximation of Φ of the released code: ½ (1 + tanh(√(2/π) (x + 0.044715 x³)))."""
    return 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def log_probability(case: Case, x_0: Array, mean: Array, var: Array, cdf: str | None = None) -> tuple[Array, Array]:
    """log p_θ(x_0 | x_1) of each element in nats, exactly or with the tanh, and its tolerance (∞ where P is tiny).

    An error of ε in x_0 or the mean moves an edge by ε/σ, which moves P by that times the density there.
    """
    low, high = case.c.data_range
    x, m, v = _scaled(case, x_0), _scaled(case, mean), var / ((high - low) / 2) ** 2
    half, sigma = 1 / (case.c.levels - 1), np.sqrt(v)
    a = np.where(x < -1 + half, -np.inf, (x - half - m) / sigma)
    b = np.where(x > 1 - half, np.inf, (x + half - m) / sigma)
    if (cdf or case.c.decoder_cdf) == "exact":
        log_p = discretized_gaussian_log_likelihood(x, m, v, case.c.levels)[0]
    else:
        upper, lower = (np.where(np.isinf(e), (e > 0) * 1.0, tanh_cdf(np.where(np.isinf(e), 0, e))) for e in (b, a))
        with np.errstate(all="ignore"):
            log_p = np.log(upper - lower)
    shift = case.eps * (4 * (np.abs(x) + np.abs(m) + half) / sigma)
    moved = np.zeros_like(x)
    for edge in (a, b):
        e = np.where(np.isinf(edge), 40.0, edge)
        moved += np.exp(-0.5 * np.maximum(np.abs(e) - 0.1, 0) ** 2) * 0.4 * (shift + 16 * case.eps * np.abs(e))
    p = np.exp(log_p)
    with np.errstate(all="ignore"):
        tol = 2 * (moved + 4 * case.eps) / p + 8 * case.eps * np.abs(log_p)
    return log_p, np.where((p > SMALLEST) & (tol < 0.1), tol, np.inf)


def _grid(case: Case) -> tuple[Array, Array, Array, int]:
    """Every grey level under several (mean, σ): x_0, mean, var as images, and images per pair."""
    c = case.c
    low, high = c.data_range
    middle, half = (low + high) / 2, (high - low) / 2
    size = int(np.prod(c.shape))
    images = -(-c.levels // size)
    grey = np.resize(low + (high - low) * np.arange(c.levels) / (c.levels - 1), images * size)
    pairs = [(m, s) for s in (0.0078, 0.02, 0.1, 0.6) for m in (0.0, 0.31, -0.97, 1.05)]
    x_0 = np.concatenate([grey.reshape(images, *c.shape)] * len(pairs))
    mean, var = np.empty_like(x_0), np.empty_like(x_0)
    for i, (m, s) in enumerate(pairs):
        rows = slice(i * images, (i + 1) * images)
        mean[rows], var[rows] = middle + half * m, (half * s) ** 2
    return case.rounded(x_0), case.rounded(mean), case.rounded(var), images


def _ask_decoder(case: Case) -> tuple[Array, Array, Array, Array, int]:
    x_0, mean, var, images = _grid(case)
    args = (x.astype(case.c.dtype) for x in (x_0, mean, var))
    got = case.adapter.array("decoder", x_0.shape, *args, finite=False)
    if np.isnan(got).any():
        raise Broken(float("nan"), "a log-likelihood", "")
    return got / unit(case), x_0, mean, var, images


def decoder(case: Case) -> None:
    """log ∫ N(x; mean, var) over the grey level's bin, ±∞ at the ends, where P > 1e-10, for each level.

    Means inside and outside the data's range, σ from 0.0078 to 0.6. With decoder_cdf="tanh" against that approximation.
    """
    got, x_0, mean, var, _ = _ask_decoder(case)
    wanted, tol = log_probability(case, x_0, mean, var)
    bad = ~(np.abs(got - wanted) <= tol)
    bad &= np.isfinite(tol)
    if not bad.any():
        return
    at = tuple(np.argwhere(bad)[np.argmax(np.abs(got - wanted)[bad])])
    raise Broken(
        float(got[at] * unit(case)),
        float(wanted[at] * unit(case)),
        f"{_decoder_mistake(case, got, x_0, mean, var, wanted, tol)} (x_0 = {x_0[at]:.4g}, mean = {mean[at]:.4g}, "
        f"σ = {math.sqrt(var[at]):.4g})".lstrip(),
    )


def _decoder_mistake(case: Case, got: Array, x_0: Array, mean: Array, var: Array, wanted: Array, tol: Array) -> str:
    low, high = case.c.data_range
    bin_width, ends = (high - low) / (case.c.levels - 1), (x_0 <= low) | (x_0 >= high)
    density = -0.5 * ((x_0 - mean) ** 2 / var + np.log(2 * np.pi * var))
    tries = {
        "in bits: declare units": wanted / math.log(2),
        "in nats: declare units": wanted * math.log(2),
        "not its logarithm": np.exp(wanted),
        "the sign": -wanted,
        "the density at x_0, not the bin's integral": density,
        "density times bin width, not the integral": density + math.log(bin_width),
        "bins shifted by half": log_probability(case, x_0, mean - bin_width / 2, var)[0],
        "bins shifted by half, the other way": log_probability(case, x_0, mean + bin_width / 2, var)[0],
        "bins twice as wide": _other_bins(case, x_0, mean, var, 2.0),
        "bins half as wide": _other_bins(case, x_0, mean, var, 0.5),
        "bins of width (high - low) / levels, not / (levels - 1)": _other_bins(
            case, x_0, mean, var, 1 - 1 / case.c.levels
        ),
        "var is taken for σ": log_probability(case, x_0, mean, var**2)[0],
        "σ² = √var: the root is taken twice": log_probability(case, x_0, mean, np.sqrt(var))[0],
    }
    for cdf in ("exact", "tanh"):
        if cdf != case.c.decoder_cdf:
            tries[f'Φ is {cdf}: declare decoder_cdf="{cdf}" if that is meant'] = log_probability(
                case, x_0, mean, var, cdf
            )[0]
    ok = np.isfinite(tol) & (wanted > math.log(1e-3))
    inner = ok & ~ends
    if not (np.abs(got - wanted) > tol)[inner].any():
        return "the bins at the ends do not reach to ±∞"
    for text, other in tries.items():
        if (
            np.quantile(np.abs(got - np.maximum(other, got.min()))[ok], 0.9)
            <= 1e-3 + np.where(np.isfinite(tol), tol, 0)[ok].max()
        ):
            return text
    return ""


def _other_bins(case: Case, x_0: Array, mean: Array, var: Array, width: float) -> Array:
    """log p with inner bins of another width, in those of this one: the end bins reach from there to ±∞."""
    low, high = case.c.data_range
    half, sigma = width * (high - low) / (case.c.levels - 1) / 2, np.sqrt(var)
    b = np.where(x_0 >= high - half / 8, 40.0, (x_0 + half - mean) / sigma)
    a = np.where(x_0 <= low + half / 8, -40.0, (x_0 - half - mean) / sigma)
    flip = a > 0  # in the lower tail, where differences keep their digits
    a, b = np.where(flip, -b, a), np.where(flip, -a, b)
    with np.errstate(all="ignore"):
        log_p: Array = np.log(np.exp(log_normal_cdf(b)) - np.exp(log_normal_cdf(a)))
    return log_p


def decoder_total(case: Case) -> None:
    """The probabilities of all grey levels sum to one, for several means and variances."""
    got, x_0, mean, var, images = _ask_decoder(case)
    levels = case.c.levels
    _, tol = log_probability(case, x_0, mean, var, "exact")
    error = np.where(np.isfinite(tol), np.minimum(tol, 1) * np.exp(np.minimum(got, 0)), 1e-9) + 4 * case.eps
    for i in range(0, len(x_0), images):
        rows = slice(i, i + images)
        p, slack = (a[rows].reshape(-1)[:levels] for a in (np.exp(got), error))
        if not abs(p.sum() - 1) <= slack.sum():
            text = f"mean = {mean[i].flat[0]:.4g}, σ = {math.sqrt(var[i].flat[0]):.4g}"
            raise Broken(float(p.sum()), 1.0, text)


PROPERTIES = (
    Property("decoder", "Eq. 13", "the discretised decoder, level by level", ("decoder",), decoder),
    Property("decoder-sum", "Eq. 13", "its probabilities sum to one", ("decoder",), decoder_total),
)
