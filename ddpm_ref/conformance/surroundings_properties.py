"""What surrounds the equations: scaling of images, the embedding of t, interpolation (§3.3, §4.4, App. B)."""

from typing import Any

import numpy as np

from ddpm_ref.checks import Array
from ddpm_ref.conformance.adapter import AdapterError, NotThere, Stop
from ddpm_ref.conformance.chance import FALSE_ALARM, chi_square_bounds, normal_bound
from ddpm_ref.conformance.forward_properties import noising
from ddpm_ref.conformance.freshness import alike
from ddpm_ref.conformance.judge import Broken, Case, Explanation, NotOffered
from ddpm_ref.conformance.property import Property
from ddpm_ref.conformance.reverse_properties import mean_formula, step_noise, variance_formula
from ddpm_ref.conformance.sampling_properties import NO_NOISE, silent
from ddpm_ref.conformance.watched import Watched, chain_of

# --- §3.3 ------------------------------------------------------------------------------------------------------------


def _all_bytes(case: Case) -> Array:
    size = int(np.prod(case.c.shape))
    count = -(-256 // size)
    return np.resize(np.arange(256), count * size).astype(np.uint8).reshape(count, *case.c.shape)


def scaled(case: Case) -> None:
    """0 … 255 goes linearly to data_range, both ends included."""
    x, (low, high) = _all_bytes(case), case.c.data_range
    got = case.adapter.array("scale", x.shape, x)
    wanted = low + (high - low) * x.astype(np.float64) / 255
    tol = 8 * case.eps * max(abs(low), abs(high))
    if (np.abs(got - wanted) <= tol).all():
        return
    at = np.unravel_index(int(np.argmax(np.abs(got - wanted))), x.shape)
    words = f"grey level {x[at]}"
    if (np.abs(got - wanted) <= 1e-6 * max(abs(low), abs(high))).all():
        raise Broken(float(got[at]), float(wanted[at]), f"{words}: as precise as float32")
    for text, wrong in (
        ("[0, 1]: declare data_range=(0, 1) if that is meant", x / 255),
        ("[-1, 1]: declare data_range=(-1, 1) if that is meant", x / 127.5 - 1),
        ("divided by 256: 255 does not reach the end", low + (high - low) * x / 256),
        ("divided by 128", x / 128 - 1),
        ("[-½, ½]: declare data_range=(-0.5, 0.5) if that is meant", x / 255 - 0.5),
        ("not scaled", x * 1.0),
    ):
        if np.allclose(got, wrong, atol=1e-5):
            words = f"{words}: {text}"
            break
    raise Broken(float(got[at]), float(wanted[at]), words)


def unscaled(case: Case) -> None:
    """data_range goes back to 0 … 255: each grey level to itself, and what lies beyond to the ends."""
    x, (low, high) = _all_bytes(case), case.c.data_range
    data = low + (high - low) * x.astype(np.float64) / 255
    got = case.adapter.array("unscale", x.shape, data.astype(case.c.dtype))
    if (got != x).any():
        at = np.unravel_index(int(np.argmax(np.abs(got - x))), x.shape)
        words = "truncated, not rounded" if (got <= x).all() and (x - got).max() == 1 else ""
        raise Broken(float(got[at]), float(x[at]), words)
    half = (high - low) / 2
    beyond = np.where(x < 128, low - 0.2 * half, high + 0.2 * half)
    got = case.adapter.array("unscale", x.shape, beyond.astype(case.c.dtype))
    wanted = np.where(x < 128, 0, 255)
    if (got != wanted).any():
        at = np.unravel_index(int(np.argmax(got != wanted)), x.shape)
        raise Broken(float(got[at]), float(wanted[at]), f"a value of {beyond[at]:.3g} is not clipped but wraps around")


# --- App. B ----------------------------------------------------------------------------------------------------------


def _embedding(case: Case, t: Array, dim: int, order: str, spacing: str, counts_from: int) -> tuple[Array, Array]:
    """The sinusoids of t, and their tolerance: ω is an exponential of up to 9.2, and the angle is up to T."""
    half = dim // 2
    omega = case.c.embedding_max_period ** (-np.arange(half) / (half - 1 if spacing == "half-1" else half))
    angle = (t - 1.0 + counts_from)[:, None] * omega
    off = angle * case.eps * 2 * (4 + np.log(case.c.embedding_max_period)) + 4 * case.eps
    parts = [np.sin(angle), np.cos(angle)]
    if order == "interleaved":
        return np.stack(parts, -1).reshape(len(t), dim), np.repeat(off, 2, axis=1)
    return np.concatenate(parts if order == "sin_cos" else parts[::-1], 1), np.concatenate([off, off], 1)


def embedding(case: Case) -> None:
    """[sin(t ω_i), cos(t ω_i)], ω_i = 10000^{-i/(half-1)}, of t counted from 0, or as declared; 32 and 128 wide."""
    c, t = case.c, np.arange(1, case.c.T + 1)
    for dim in (32, 128):
        got = case.adapter.array("time_embedding", (c.T, dim), c.theirs(t), dim)
        wanted, tol = _embedding(case, t, dim, c.embedding_order, c.embedding_spacing, c.embedding_counts_from)

        def why(got: Array = got, tol: Array = tol, dim: int = dim) -> Explanation:
            for order in ("sin_cos", "cos_sin", "interleaved"):
                for spacing in ("half-1", "half"):
                    for counts in (0, 1):
                        other = _embedding(case, t, dim, order, spacing, counts)[0]
                        if (np.abs(got - other) <= 4 * tol + 1e-6).all():
                            return (
                                f'this is embedding_order="{order}", embedding_spacing="{spacing}", '
                                f"embedding_counts_from={counts}: declare what differs if it is meant",
                                None,
                            )
            return f"dim = {dim}", None

        case.compare(got, wanted, tol, t, why)


# --- §4.4 ------------------------------------------------------------------------------------------------------------

LARGE = 1000.0  # images are made this large, so that the mix shows its coefficients through the noise


class _First(Watched):
    """A model that stops the loop when it was asked about the whole batch."""

    def __call__(self, x: Any, t: Any) -> Any:
        said = super().__call__(x, t)
        if sum(len(x) for x in self.x) >= self.n:
            raise Stop
        return said


def _first_call(case: Case, a: Array, b: Array, t: int, lam: float) -> tuple[Array, Array]:
    """The first x and t (theirs) that the network is asked about."""
    seen = _First(case, len(a))
    try:
        case.adapter(
            "interpolate", seen, a.astype(case.c.dtype), b.astype(case.c.dtype), int(case.c.theirs(np.array(t))), lam
        )
    except Stop:
        return np.concatenate(seen.x), np.unique(np.concatenate(seen.t))
    raise AdapterError("interpolate never called the model")


def mixture(case: Case) -> None:
    """The chain begins at (1-λ) x_t + λ x_t', both noised to the very t at which the network is asked first.

    The images are made 1000 times as large, so that √ᾱ_t (1-λ) and √ᾱ_t λ can be read off the mix to 5 digits. What is
    left is the noise: variance (1 - ᾱ_t)((1-λ)² + λ²), or 1 - ᾱ_t if shared; false alarm below 1e-9.
    """
    c, rng = case.c, case.rng()
    size = int(np.prod(c.shape))
    n = max(1, -(-1536 // size))
    a, b = (case.rounded(LARGE * rng.choice([-1.0, 1.0], (n, *c.shape))) for _ in range(2))
    t = _offered_step(case, a, b, max(2, c.T // 2))
    root, spread = _own_noising(case, t)
    for lam in (0.3, 0.0, 1.0):
        x, asked = _first_call(case, a, b, t, lam)
        if x.shape != a.shape:
            raise AdapterError(f"interpolate gave the model x of shape {x.shape}, wanted {a.shape}")
        basis = np.stack([a.reshape(-1), b.reshape(-1)], axis=1)
        found = np.linalg.lstsq(basis, x.reshape(-1), rcond=None)[0]
        wanted = root * np.array([1 - lam, lam])
        paper = asked - c.t_first + 1
        words = _mixed(case, found, lam, root)
        if len(paper) != 1 or abs(paper[0] - t) > 1e-3:
            raise Broken(
                f"t = {', '.join(f'{p:g}' for p in paper)}", f"t = {t}", f"λ = {lam}: asked at that t first{words}", t=t
            )
        # Rounding of numbers of size 1000, and chance: each coefficient's error is N(0, (1-ᾱ)/(1000² · count)).
        tol = 16 * case.eps + 1.5 * normal_bound(FALSE_ALARM / 20) / (LARGE * np.sqrt(a.size))
        tol = tol + (t + 1) * case.eps * root
        if not (np.abs(found - wanted) <= tol).all():
            at = int(np.argmax(np.abs(found - wanted)))
            swapped = np.abs(found[::-1] - wanted).max() <= tol
            words = " λ and 1 - λ are swapped" if swapped else words
            raise Broken(float(found[at]), float(wanted[at]), f"factor of image {'ab'[at]} at λ = {lam}:{words}", t=t)
        noise = x.reshape(-1) - basis @ found
        _judge_noise(case, noise, lam, t, spread)
        if shared := alike(noise.reshape(1, *x.shape), threshold=0.9):
            raise Broken(shared.got, shared.wanted, shared.words, t=t)


def _offered_step(case: Case, a: Array, b: Array, t: int) -> int:
    """This t, or T for an implementation that only mixes there."""
    try:
        _first_call(case, a, b, t, 0.5)
    except NotThere:
        return case.c.T
    return t


def _own_noising(case: Case, t: int) -> tuple[float, float]:
    """√ᾱ_t and 1 - ᾱ_t, as their own q_sample has them if it is wrong and says so elsewhere."""
    root, spread = float(np.sqrt(case.process.alpha_bar[t])), float(1 - case.process.alpha_bar[t])
    if "q_sample" in case.adapter and case.broken(noising) is not None:
        one, zero, at = np.ones((1, *case.c.shape)), np.zeros((1, *case.c.shape)), np.array([t])
        root = float(case.ask("q_sample", at, one, None, zero).mean())
        spread = float(case.ask("q_sample", at, zero, None, one).mean()) ** 2
        case.notes.append("by its own q_sample")
    return root, spread


def _mixed(case: Case, found: Array, lam: float, root: float) -> str:
    """What the factors of the two images say was mixed, in words: noised to another t, or mixed otherwise."""
    roots, tol = np.sqrt(case.process.alpha_bar), 2e-3
    total = float(found.sum())
    step = int(np.argmin(np.abs(roots - total)))
    if np.abs(found - roots[step] * np.array([1 - lam, lam])).max() < tol:
        return f" (the mix is that of t = {step})"
    if 0 < lam < 1:
        for text, a, b in (
            ("x_0' is mixed in, as §4.4 is printed, where x_t' is meant", (1 - lam) * root, lam),
            ("√(1 - λ) and √λ", np.sqrt(1 - lam) * root, np.sqrt(lam) * root),
            ("√(1 - λ²) and λ", np.sqrt(1 - lam**2) * root, lam * root),
            ("√λ and √(1 - λ)", np.sqrt(lam) * root, np.sqrt(1 - lam) * root),
            ("images that were not noised", 1 - lam, lam),
        ):
            if np.abs(found - [a, b]).max() < tol:
                return f" {text}"
    return ""


def _judge_noise(case: Case, rest: Array, lam: float, t: int, spread: float) -> None:
    shared = case.c.interpolation_noise == "shared"
    share = 1.0 if shared else (1 - lam) ** 2 + lam**2
    variance = spread * share
    low, high = chi_square_bounds(rest.size - 2, FALSE_ALARM / 10)
    slack = (32 * case.eps * LARGE) ** 2 * rest.size
    total = float((rest**2).sum())
    if not low * variance - slack <= total <= high * variance + slack:
        other = 'declare interpolation_noise="independent"' if shared else 'declare interpolation_noise="shared"'
        fits = abs(total / rest.size / spread / (((1 - lam) ** 2 + lam**2) if shared else 1) - 1)
        words = (
            f"{other} if that is meant" if fits < 0.2 and lam not in (0, 1) else f"variance of the noise at λ = {lam}"
        )
        raise Broken(total / rest.size, float(variance), words, t=t)


def chain(case: Case) -> None:
    """From the t it begins at the chain runs down as in Algorithm 2: t, t-1, …, 1, once each, and with noise.

    Whether it begins at the t of the mix is another property's.
    """
    c, rng = case.c, case.rng()
    a, b = (case.images(rng, np.zeros(2)) for _ in range(2))
    t = _offered_step(case, a, b, min(20, c.T))
    a, b = a.astype(c.dtype), b.astype(c.dtype)
    seen = Watched(case, 2)
    case.adapter.array("interpolate", a.shape, seen, a, b, int(c.theirs(np.array(t))), 0.5)
    if not seen.x:
        raise AdapterError("interpolate never called the model")
    seen = seen.put_together()
    steps = seen.told()
    wanted = np.arange(np.clip(np.nan_to_num(np.rint(steps[0])), t - 1, t + 1), 0, -1)
    if len(steps) != len(wanted) or not (np.abs(steps - wanted) <= 1e-3).all():
        got = ", ".join(f"{x:g}" for x in steps[:3]) + (f" … {steps[-1]:g}" if len(steps) > 3 else "")
        raise Broken(f"steps {got}", f"steps {t}, {t - 1}, {t - 2} … 1", t=t)
    try:
        links = chain_of(seen)
    except NotOffered:  # too short
        return
    with np.errstate(all="ignore"):
        z = (links.after - links.mean(mean_formula(case, clip=c.clip))) / links.sigma(variance_formula(case))
    words = silent(links, z)
    if words == NO_NOISE and not case.broken(step_noise):
        raise Broken("no noise", "σ_t z", words, t=int(links.t.min()))


PROPERTIES = (
    Property("scale", "§3.3", "0 … 255 scaled to data_range", ("scale",), scaled),
    Property("unscale", "§3.3", "data_range scaled back to 0 … 255", ("unscale",), unscaled),
    Property("time-embedding", "App. B", "the sinusoidal embedding of t", ("time_embedding",), embedding),
    Property("interpolation-mix", "§4.4", "mixes x_t and x_t' at the t it decodes from", ("interpolate",), mixture),
    Property("interpolation-chain", "§4.4", "decodes from t down to 1", ("interpolate",), chain),
)
