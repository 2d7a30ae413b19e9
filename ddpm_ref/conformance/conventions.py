"""What an implementation may choose, declared once: the conventions of an adapter, with the paper's as defaults."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from ddpm_ref.checks import Array, check_choice, check_int
from ddpm_ref.schedule import SCHEDULES

CHOICES: dict[str, tuple[str, ...]] = {
    "predicts": ("eps", "x_0", "mu", "v"),
    "var": ("beta", "beta_tilde", "learned_log", "learned_range", "learned_var"),
    "loss_reduction": ("mean", "sum", "total"),
    "error": ("squared", "l1", "huber"),
    "loss_weight": ("simple", "bound", "eps"),
    "units": ("nats", "bits"),
    "decoder_cdf": ("exact", "tanh"),
    "embedding_order": ("sin_cos", "cos_sin", "interleaved"),
    "embedding_spacing": ("half-1", "half"),
    "interpolation_noise": ("independent", "shared"),
    "precision": ("float32", "float64"),
}

ELSEWHERE = {
    "fixedlarge": "beta", "fixedlargelog": "beta", "fixedsmall": "beta_tilde", "fixedsmalllog": "beta_tilde",
    "posterior": "beta_tilde", "learned": "learned_log", "epsilon": "eps", "noise": "eps", "prednoise": "eps",
    "sample": "x_0", "x0": "x_0", "xstart": "x_0", "startx": "x_0", "predx0": "x_0", "vprediction": "v", "predv": "v",
    "xprev": "mu", "previousx": "mu", "mse": "squared", "l2": "squared", "smoothl1": "huber",
}  # fmt: skip
"""What others call these choices, without its punctuation."""

_OR_TABLE = ("var", "loss_weight")
_BOUNDS = ("beta_min", "beta_max")


def _says(text: str, default: Any) -> Any:
    return field(default=default, metadata={"says": text})


@dataclass(frozen=True)
class Conventions:
    """The declared choices; every field is a key of the adapter's `conventions` dict, and its default the paper's."""

    name: str = _says("how the report calls it (the file or object)", "")
    T: int = _says("number of steps", 1000)
    t_first: int = _says("their number of the paper's t = 1: 1 or 0", 1)
    schedule: str | Sequence[float] | None = _says(
        f"{', '.join(SCHEDULES)}, a list of T betas, or None: any will do", "linear"
    )
    schedule_args: Mapping[str, float] = field(
        default_factory=dict,
        metadata={
            "says": "its keywords: beta_1, beta_T, s, beta …; for each schedule also beta_min, beta_max, which clip β"
        },
    )
    predicts: str = _says('what the network puts out: "eps", "x_0", "mu" (mean of x_{t-1}), "v"', "eps")
    var: str | Sequence[float] = _says(
        'σ_t²: "beta", "beta_tilde", a list of T variances, or learned: "learned_log" (the network gives log σ²), '
        '"learned_var" (σ²), "learned_range" (v in [-1, 1] between log β̃ and log β)',
        "beta",
    )
    clip: bool = _says(
        "whether the reverse step clips x̂_0 to data_range; its mean is then Eq. 7 at the clipped x̂_0", False
    )
    data_range: tuple[float, float] = _says("what grey levels are scaled to", (-1.0, 1.0))
    levels: int = _says("number of grey levels", 256)
    shape: tuple[int, ...] = _says("shape of one image, in their layout; small is fast", (3, 8, 8))
    loss_reduction: str = _says('"mean" of all elements, "sum" over an image then mean of images, "total" sum', "mean")
    error: str = _says('"squared", "l1", "huber" (smooth L1, δ = 1)', "squared")
    loss_weight: str | Sequence[float] = _says(
        'factor on the error of what is predicted: "simple" (1), "bound" (Eqs. 8, 12), "eps" (what makes it the error '
        "of ε), or a list of T",
        "simple",
    )
    units: str = _says(
        'of decoder, prior_kl, bound_term: "nats" or "bits" (where they differ, the adapter converts)', "nats"
    )
    decoder_cdf: str = _says('Φ of the decoder: "exact", or "tanh", the approximation of the released code', "exact")
    embedding_order: str = _says('"sin_cos", "cos_sin" or "interleaved" (sin, cos, sin, cos …)', "sin_cos")
    embedding_spacing: str = _says('frequencies run over i / (half - 1) ("half-1") or i / half ("half")', "half-1")
    embedding_max_period: float = _says("the longest wavelength over 2π", 10000.0)
    embedding_counts_from: int = _says("the number that is embedded for the paper's t = 1", 0)
    ema_warmup: bool = _says("whether the decay rises to its value in the first steps", False)
    interpolation_noise: str = _says('noise of the two images: "independent" or "shared"', "independent")
    precision: str = _says('of tables and arithmetic: "float32" or "float64"; arrays come in it', "float32")

    def __post_init__(self) -> None:
        check_int("T", self.T, 2)
        check_int("t_first", self.t_first, 0, 1)
        check_int("levels", self.levels, 2)
        check_int("embedding_counts_from", self.embedding_counts_from, 0)
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if name in _OR_TABLE and not isinstance(value, str):
                object.__setattr__(self, name, tuple(_table(name, value, self.T)))
            else:
                check_choice(name, value, choices)
        for name in ("clip", "ema_warmup"):
            if not isinstance(getattr(self, name), (bool, np.bool_)):
                raise ValueError(f"{name}: wanted True or False, got {getattr(self, name)!r}")
        object.__setattr__(self, "data_range", _range(self.data_range))
        object.__setattr__(self, "shape", _shape(self.shape))
        if self.schedule is not None and not isinstance(self.schedule, str):
            object.__setattr__(self, "schedule", tuple(_table("schedule", self.schedule, self.T)))
        self.declared_beta()

    def declared_beta(self) -> Array | None:
        """β_1 … β_T as declared, (T,) float64, or None where no schedule is declared."""
        if self.schedule is None:
            return None
        args = dict(self.schedule_args)
        low, high = args.pop("beta_min", 0.0), args.get("beta_max", 1.0)
        if isinstance(self.schedule, str):
            check_choice("schedule", self.schedule, SCHEDULES)
            beta = named_beta(self.schedule, self.T, **args)
        else:
            beta = np.asarray(self.schedule, dtype=np.float64)
        return np.clip(beta, low, high)

    @property
    def learned(self) -> bool:
        """Whether the network also gives σ_t²."""
        return isinstance(self.var, str) and self.var.startswith("learned")

    @property
    def dtype(self) -> type[np.floating[Any]]:
        """What arrays are handed over in."""
        return np.float32 if self.precision == "float32" else np.float64

    def theirs(self, t: Array) -> Array:
        """The paper's t in their numbering, int64."""
        return np.asarray(t, dtype=np.int64) - 1 + self.t_first


def named_beta(name: str, T: int, **args: float) -> Array:
    """β_1 … β_T of a named schedule; ValueError for a keyword it does not take."""
    import warnings

    if name in ("linear", "quadratic", "constant", "warmup10", "warmup50", "jsd"):
        args.pop("beta_max", None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # a schedule that leaves x_T far from N(0, I) is another matter
            return SCHEDULES[name](T, **args).beta[1:].copy()
    except TypeError as error:
        raise ValueError(f"schedule_args: {error}") from None


def from_dict(given: object, name: str) -> Conventions:
    """Conventions from the adapter's dict; ValueError for an unknown key, with the one that was meant."""
    if not isinstance(given, Mapping):
        raise ValueError(f"conventions: wanted a dict, got {type(given).__name__}")
    known = [f.name for f in fields(Conventions)]
    for key in given:
        if key not in known:
            raise ValueError(f"conventions: unknown key {key!r}{did_you_mean(str(key), known)}")
    try:
        return Conventions(**{"name": name, **given})
    except ValueError as error:
        key = str(error).partition(":")[0]
        meant = ELSEWHERE.get(re.sub("[^a-z0-9]", "", str(given.get(key, "")).lower()))
        hint = f"; did you mean {meant!r}?" if meant in CHOICES.get(key, ()) else ""
        raise ValueError(f"conventions: {error}{hint}") from None


def did_you_mean(word: str, known: Sequence[str], cutoff: float = 0.6) -> str:
    """The hint to append to an error about an unknown word."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=cutoff)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"


def _table(name: str, value: object, T: int) -> Array:
    try:
        table = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        table = np.empty(())
    if table.shape != (T,) or not np.isfinite(table).all() or (table < 0).any():
        raise ValueError(f"{name}: wanted a name or T = {T} finite numbers >= 0, got {value!r:.60}")
    return table


def _range(value: object) -> tuple[float, float]:
    try:
        low, high = (float(v) for v in value)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise ValueError(f"data_range: wanted (low, high), got {value!r}") from None
    if not low < high:
        raise ValueError(f"data_range: wanted low < high, got {value!r}")
    return low, high


def _shape(value: object) -> tuple[int, ...]:
    try:
        shape = tuple(int(v) for v in value)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        shape = ()
    if not shape or min(shape) < 1:
        raise ValueError(f"shape: wanted the positive sizes of one image, got {value!r}")
    return shape
