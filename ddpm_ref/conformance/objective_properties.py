"""What is trained: the loss and its weights, the draw of t, the averaged weights (§3.4; Eqs. 8, 12, 14)."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ddpm_ref.checks import Array
from ddpm_ref.conformance.adapter import to_numpy
from ddpm_ref.conformance.chance import FALSE_ALARM, chi_square_bounds, normal_bound
from ddpm_ref.conformance.forward_properties import target_of, training_target
from ddpm_ref.conformance.judge import Broken, Case, NotOffered
from ddpm_ref.conformance.property import Property
from ddpm_ref.conformance.tolerance import Formula
from ddpm_ref.objective import ERRORS
from ddpm_ref.reverse import PARAMETRISATIONS, mean_slope
from ddpm_ref.schedule import Schedule

BATCH = 4


def fixed_variance(s: Schedule, t: Array, var: Any) -> Array:
    """σ_t² at t > 1 of a fixed choice, "beta", "beta_tilde" or a table of T."""
    if isinstance(var, str):
        table: Array = s.beta if var == "beta" else s.beta_tilde
        return table[t]
    return np.concatenate([[0.0], var])[t]


def weight_of(case: Case, weight: Any = None, var: Any = None, predicts: str | None = None) -> Formula:
    """The factor on the error of what is predicted, at each t.

    "simple" 1      "bound" (dμ/d output)² / (2σ_t²)  (Eqs. 8, 12)      "eps" (dε/d output)²
    """
    weight = case.c.loss_weight if weight is None else weight
    var = case.c.var if var is None else var
    predicts = predicts or case.c.predicts

    def formula(s: Schedule, t: Array, *_: Array) -> Array:
        if not isinstance(weight, str):
            return np.concatenate([[0.0], weight])[t]
        if weight == "simple" or (weight == "eps" and predicts == "eps"):
            return np.ones(len(t))
        if weight == "bound":
            return mean_slope(s, t, predicts) ** 2 / (2 * fixed_variance(s, t, var))
        return (
            (mean_slope(s, t, predicts) / mean_slope(s, t, "eps")) ** 2
            if predicts == "mu"
            else _eps_slope(s, t, predicts)
        )

    if weight == "eps" and predicts == "mu":
        return lambda s, t, *_: mean_slope(s, t, "eps") ** -2
    return formula


def _eps_slope(s: Schedule, t: Array, predicts: str) -> Array:
    """(dε/d output)² at fixed x_t: ᾱ_t / (1 - ᾱ_t) for x_0, ᾱ_t for v."""
    abar = s.alpha_bar[t]
    return abar / (1 - abar) if predicts == "x_0" else abar


def _first_weighted(case: Case) -> int:
    """The first t whose weight the paper fixes: Eq. 12 leaves σ_1² open."""
    if case.c.loss_weight != "bound":
        return 1
    if case.c.learned:
        raise NotOffered("with learned variances Eq. 12's weights are not a table")
    return 2


def weights(case: Case) -> None:
    """The factors on the error at each t: those declared; Eq. 12's only for t > 1."""
    first = _first_weighted(case)
    t = np.arange(first, case.c.T + 1)
    t = t[case.process.alpha_bar[t] > 0]
    got = case.adapter.array("loss_weights", (case.c.T,), finite=False)[t - 1]
    bad = ~np.isfinite(got)
    if bad.any():
        raise Broken(float(got[bad][0]), "a finite number", t=int(t[bad][0]))
    case.judge(got, weight_of(case), t, mistakes=weight_mistakes(case))


def weight_mistakes(case: Case) -> dict[str, Formula]:
    """Weights that are often met in place of the declared ones."""
    right = weight_of(case)
    wrong: dict[str, Formula] = {}
    for name in ("simple", "bound", "eps"):
        if name != case.c.loss_weight and not (name == "bound" and case.c.learned):
            wrong[f'the weights "{name}": declare loss_weight="{name}" if they are meant'] = weight_of(case, name)
    if case.c.loss_weight == "bound":
        for var in ("beta", "beta_tilde"):
            wrong[f'Eq. 12 with σ_t² of var="{var}": declare it if it is meant'] = weight_of(case, "bound", var)
        wrong["½√ᾱ_t / (2 - ᾱ_t): parentheses are missing, and it is no weight of the bound (Eqs. 7, 8)"] = (
            lambda s, t: 0.5 * np.sqrt(s.alpha_bar[t]) / (2 - s.alpha_bar[t])
        )
        wrong["α_t is missing under β_t²"] = lambda s, t: right(s, t) * s.alpha[t]
        wrong["β_t where β_t² is meant"] = lambda s, t: right(s, t) / s.beta[t]
        wrong["ᾱ_t for 1 - ᾱ_t"] = lambda s, t: right(s, t) * (1 - s.alpha_bar[t]) / s.alpha_bar[t]
    return wrong


def loss_of(
    case: Case,
    error: str | None = None,
    reduction: str | None = None,
    weight: Any = None,
    predicts: str | None = None,
    change: Callable[[Array], Array] = lambda x: x,
    own: Array | None = None,
) -> Formula:
    """The loss of each batch of 4 images that share a t, of (x_0, ε, output), as declared unless told otherwise."""
    error, reduction = error or case.c.error, reduction or case.c.loss_reduction
    target, factor = target_of(predicts or case.c.predicts), weight_of(case, weight)

    def formula(s: Schedule, t: Array, x_0: Array, eps: Array, output: Array) -> Array:
        aim = target(s, t, x_0, eps) if own is None else own
        per_image = ERRORS[error](output, aim).per_image * factor(s, t)
        if reduction != "mean":
            per_image = per_image * int(np.prod(case.c.shape))
        batches = per_image.reshape(-1, BATCH)
        return change(batches.sum(axis=1) if reduction == "total" else batches.mean(axis=1))

    return formula


def loss(case: Case) -> None:
    """The loss of a batch: the error between output and target, weighted and reduced as declared."""
    T, first = case.c.T, _first_weighted(case)
    steps = np.unique(np.clip([first, 2, 3, 5, 10, *np.linspace(first, T, 10).astype(int)], first, T))
    steps = steps[case.process.alpha_bar[steps] > 0]
    t, rng = np.repeat(steps, BATCH), case.rng()
    x_0, eps = case.images(rng, t), case.normal(rng, t)
    off = rng.choice([-1, 1], x_0.shape) * rng.uniform(0.2, 1.8, x_0.shape)
    output = case.rounded(target_of(case.c.predicts)(case.process, t, x_0, eps) + off)
    got = np.array([_one_loss(case, slice(i, i + BATCH), t, x_0, eps, output) for i in range(0, len(t), BATCH)])
    wanted, tol = case.tolerance(loss_of(case), t, x_0, eps, output)
    tol = tol + 4 * case.eps * np.sqrt(BATCH * x_0[0].size) * np.abs(wanted)
    inputs = (x_0, eps, output)
    if not (np.abs(got - wanted) <= tol).all() and _is_own_loss(case, got, tol, t, x_0, eps, output):
        case.follows(("target", training_target), ("loss-weights", weights))

    case.compare(got, wanted, tol, steps, lambda: case.explain(got, loss_of(case), t, inputs, tol, loss_mistakes(case)))


def _is_own_loss(case: Case, got: Array, tol: Array, t: Array, x_0: Array, eps: Array, output: Array) -> bool:
    """Whether this is the loss with their own target and loss_weights."""
    table, target = None, None
    if "loss_weights" in case.adapter:
        table = tuple(case.adapter.array("loss_weights", (case.c.T,), finite=False))
    if "target" in case.adapter:
        target = case.ask("target", t, x_0, None, eps)
    own = loss_of(case, weight=table, own=target)(case.process, t, x_0, eps, output)
    return bool((np.abs(got - own) <= tol + 1e-4 * np.abs(own)).all())


def _one_loss(case: Case, rows: slice, t: Array, x_0: Array, eps: Array, output: Array) -> float:
    """Their loss of one batch, reduced as declared if it comes per image or per element."""
    dtype = case.c.dtype
    args = (x_0[rows].astype(dtype), case.c.theirs(t[rows]), eps[rows].astype(dtype), output[rows].astype(dtype))
    value = to_numpy("loss", case.adapter("loss", *args))
    if value.size == 1:
        value = value.reshape(())
    elif value.shape != (BATCH,):
        value = case.adapter.read("loss", value, x_0[rows].shape)
        value = (
            value.reshape(BATCH, -1).mean(axis=1)
            if case.c.loss_reduction == "mean"
            else value.reshape(BATCH, -1).sum(axis=1)
        )
    if value.ndim:
        value = value.sum() if case.c.loss_reduction == "total" else value.mean()
    if not np.isfinite(value):
        raise Broken(float(value), "a finite number", t=int(t[rows][0]))
    return float(value)


def loss_mistakes(case: Case) -> dict[str, Formula]:
    """Losses that are often met in place of the declared one."""
    wrong: dict[str, Formula] = {}
    for name in ("mean", "sum", "total"):
        if name != case.c.loss_reduction:
            wrong[f'reduced by "{name}": declare loss_reduction="{name}" if that is meant'] = loss_of(
                case, reduction=name
            )
    for name in ERRORS:
        if name != case.c.error:
            wrong[f'the error "{name}": declare error="{name}" if it is meant'] = loss_of(case, error=name)
    for name in ("simple", "bound", "eps"):
        if name != case.c.loss_weight and not (name == "bound" and case.c.learned):
            text = "the weight of t is forgotten" if name == "simple" else f'weighted by "{name}"'
            wrong[f'{text}: declare loss_weight="{name}" if that is meant'] = loss_of(case, weight=name)
    for name in PARAMETRISATIONS:
        if name != case.c.predicts:
            wrong[f'the target is that of {name}: declare predicts="{name}" if it is'] = loss_of(case, predicts=name)
    wrong["half of it"] = loss_of(case, change=lambda x: x / 2)
    target = target_of(case.c.predicts)
    wrong["the sign of the target"] = lambda s, t, x_0, eps, y: loss_of(case)(
        s, t, x_0, eps, y + 2 * target(s, t, x_0, eps)
    )
    wrong["its root"] = loss_of(case, change=np.sqrt)
    return wrong


DRAWS = 400  # of each step: half the weight at one end is seen


def drawn_steps(case: Case) -> None:
    """Training draws t uniformly from all T steps: none outside, none left out, even counts.

    Of 400 T draws: Pearson's χ², and the counts of both ends, against their bounds, false alarm below 1e-9; that a step
    is missed by chance, T e^-400.
    """
    T, times, words = case.c.T, DRAWS, ""
    drawn = case.adapter.array("draw_t", (times * T,), times * T)
    if T > 2 and (drawn == drawn[0]).all():  # one t for the whole batch: then of many batches
        times, words = 30, "; a whole batch is given one t"
        drawn = np.concatenate([case.adapter.array("draw_t", (1,), 1) for _ in range(times * T)])
    t = drawn - case.c.t_first + 1
    whole = np.rint(t)
    if (t != whole).any() or whole.min() < 1 or whole.max() > T:
        odd = drawn[(t != whole) | (whole < 1) | (whole > T)][0]
        low, high = (int(case.c.theirs(np.array(i))) for i in (1, T))
        raise Broken(float(odd), f"whole numbers {low}..{high}", f"a step that does not exist (or t_first){words}")
    counts = np.bincount(whole.astype(int), minlength=T + 1)[1:]
    never, wanted = np.flatnonzero(counts == 0) + 1, f"{times} of {times} T draws on average"
    if len(never):
        ends = {1: "the first step is never trained", T: "the last step is never trained"}
        which = "t is not drawn uniformly" if len(never) > 1 else ends.get(int(never[0]), "")
        raise Broken(0, wanted, which + words, t=int(never[0]))
    off = np.abs(counts - times) / np.sqrt(times)
    # Pearson's statistic and counts have heavier tails than χ² and the normal: hence a thousandth of the rate.
    uneven = float((off**2).sum()) > chi_square_bounds(T - 1, FALSE_ALARM / 1000)[1]
    at_ends = max(off[0], off[-1]) > normal_bound(FALSE_ALARM / 1000)
    if uneven or at_ends:
        worst = int(np.argmax(off)) if uneven else int(off[-1] > off[0]) * (T - 1)
        raise Broken(int(counts[worst]), wanted, f"t is not drawn uniformly{words}", t=worst + 1)
    if words:
        case.notes.append(words[2:])


def moving_average(case: Case) -> None:
    """average ← decay · average + (1 - decay) · value; the first step may copy, as in the released code.

    With ema_warmup the decay may be smaller, but within [0, decay] and never falling from one step to the next.
    """
    rng, c = case.rng(), case.c
    average, value = case.rounded(rng.standard_normal(64)), case.rounded(rng.standard_normal(64))
    for decay in (0.9, 0.999):
        before = 0.0
        for step in (1, 2, 3, 10, 100, 10_000, 1_000_000):
            got = case.adapter.array("ema", (64,), average.astype(c.dtype), value.astype(c.dtype), decay, step)
            wanted = decay * average + (1 - decay) * value
            tol = 8 * case.eps * (np.abs(average) + np.abs(value))
            if step == 1 and (np.abs(got - value) <= tol).all():
                continue
            if c.ema_warmup:
                gap = average - value
                used = float(np.vdot(got - value, gap) / np.vdot(gap, gap))
                on_line = (np.abs(got - (used * average + (1 - used) * value)) <= 4 * tol).all()
                if not (on_line and -1e-6 <= used <= decay + 1e-6 and used >= before - 1e-6):
                    raise Broken(used, f"a decay in [{before:.6g}, {decay}]", f"at step {step}")
                before = used
            elif not (np.abs(got - wanted) <= tol).all():
                at = int(np.argmax(np.abs(got - wanted) / tol))
                raise Broken(float(got[at]), float(wanted[at]), _ema_mistake(got, average, value, decay, step))


def _ema_mistake(got: Array, average: Array, value: Array, decay: float, step: int) -> str:
    where = f"decay {decay}, step {step}"
    steady = decay * average + (1 - decay) * value
    for text, wrong in (
        ("decay is applied twice", decay**2 * average + (1 - decay**2) * value),
        ("divided by 1 - decay^step, as Adam's averages are", steady / (1 - decay**step)),
        ("decay and 1 - decay are swapped", (1 - decay) * average + decay * value),
        ("the average does not move", average),
        ("the average is the last value", value),
        ("the two are added without weights", average + value),
        ("value is added whole", decay * average + value),
    ):
        if np.allclose(got, wrong, rtol=1e-5, atol=1e-6):
            return f"{text} ({where})"
    gap = average - value
    used = float(np.vdot(got - value, gap) / np.vdot(gap, gap))
    if np.allclose(got, used * average + (1 - used) * value, atol=1e-5) and 0 <= used < decay:
        return f"the decay used is {used:.6g}: declare ema_warmup=True if it is to rise in the first steps ({where})"
    return where


PROPERTIES = (
    Property("draw-t", "Alg. 1, line 3", "training draws t uniformly from all steps", ("draw_t",), drawn_steps),
    Property("loss", "Eq. 14", "the loss of a batch", ("loss",), loss),
    Property("loss-weights", "Eqs. 12, 14", "the weight of each t in the loss", ("loss_weights",), weights),
    Property("ema", "App. B", "the moving average of the weights", ("ema",), moving_average),
)
