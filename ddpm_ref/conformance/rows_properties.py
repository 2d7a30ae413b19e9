"""Each image of a batch goes by its own t and by nothing of the other images (Eqs. 2, 4, 15; Algorithm 2)."""

from collections.abc import Callable

import numpy as np

from ddpm_ref.checks import Array
from ddpm_ref.conformance.forward_properties import Draws, draws
from ddpm_ref.conformance.judge import Broken, Case
from ddpm_ref.conformance.property import Property
from ddpm_ref.conformance.reverse_properties import variance_output

INDEPENDENT: dict[str, Callable[[Draws], tuple[Array | None, ...]]] = {
    "q_step": lambda d: (d.x_0, None, d.eps),
    "q_sample": lambda d: (d.x_0, None, d.eps),
    "predict_x_0": lambda d: (d.x_t, None, d.output),
    "predict_eps": lambda d: (d.x_t, None, d.x_0),
    "target": lambda d: (d.x_0, None, d.eps),
}


ROWS = (*INDEPENDENT, "p_mean_var", "reverse_step")


def rows_alone(case: Case) -> None:
    """Each image is treated by its own t: a batch in another order, and images alone, give the same rows."""
    d = draws(case)
    pick = np.unique(np.linspace(0, len(d.t) - 1, 12).astype(int))
    d = Draws(*(x[pick] for x in (d.t, d.x_0, d.eps, d.x_t, d.output)))
    v = variance_output(case, d.t)
    inputs = {name: of(d) for name, of in INDEPENDENT.items()}
    inputs |= {"p_mean_var": (d.x_t, None, d.output, *v), "reverse_step": (d.x_t, None, d.output, d.eps, *v)}
    for name in filter(case.adapter.__contains__, inputs):

        def ask(rows: Array, name: str = name, args: tuple[Array | None, ...] = inputs[name]) -> Array:
            pick = 0 if name == "p_mean_var" else None
            return case.ask(name, d.t[rows], *(None if x is None else x[rows] for x in args), pick=pick)

        everything, some = np.arange(len(d.t)), np.array([0, len(d.t) // 2, len(d.t) - 1])
        try:
            batch = ask(everything)
        except Broken:  # not finite: its own property says so
            continue
        tol = 32 * case.eps * (np.abs(batch) + np.abs(batch).mean())
        for what, got, rows in (
            ("another order of the batch", ask(everything[::-1])[::-1], everything),
            ("another order of the batch", np.roll(ask(np.roll(everything, 5)), -5, axis=0), everything),
            ("an image alone", np.concatenate([ask(some[i : i + 1]) for i in range(3)]), some),
        ):
            words = f"{name}: {what} changes the result"
            case.compare(got, batch[rows], tol[rows], d.t[rows], lambda words=words: (words, None))  # type: ignore[misc]


PROPERTIES = (Property("rows", "Eqs. 2, 4, 15", "each image goes by its own t", ("|".join(ROWS),), rows_alone),)
