"""What an operation must keep beside its numbers: what it touches, what its calls share, and where a NaN goes.

All of these compare bits: of a call with itself, alone or among others.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ddpm_ref.backend import Backend
from ddpm_ref.backend_bounds import outcome
from ddpm_ref.checks import Array

if TYPE_CHECKING:
    from ddpm_ref.backend_cases import Case


def unchanged(label: str, backend: Backend, args: Sequence[Array], values: Sequence[Array]) -> None:
    """Inputs are read-only to an operation, in its forward and in its adjoint; dy is the last of them."""
    for i, (a, value) in enumerate(zip(args, values, strict=True), 1):
        what = f"argument {i}" if i < len(args) else "dy"
        assert np.array_equal(backend.to_host(a), value), f"{label}: {what} was changed by the operation"


def repeats(label: str, backend: Backend, case: "Case", args: Sequence[Array], found: Sequence[Array]) -> None:
    """The same call gives the same bits."""
    again = outcome(case.call, backend, args[:-1], args[-1])
    assert _same(backend, again, found), f"{label}: the same call gave other bits"


def owned(
    label: str, backend: Backend, case: "Case", args: Sequence[Array], values: Sequence[Array], found: Sequence[Array]
) -> None:
    """A result is the caller's to write into: neither an input, nor what the adjoint needs, is that memory."""
    y, backward = case.call(backend, *args[:-1])
    y[...] = 17
    gradients = _several(backward(args[-1]))
    assert _same(backend, gradients, found[1:]), f"{label}: the gradients change with what a caller writes into y"
    if case.name not in ("concat", "add"):  # whose adjoints may return dy or views of it
        for gradient in gradients:
            gradient[...] = 17
    unchanged(f"{label}: after writing into the results", backend, args, values)


def apart(
    label: str, backend: Backend, case: "Case", args: Sequence[Array], others: Sequence[Array], found: Sequence[Array]
) -> None:
    """Two calls alive at once, the second with other values, know nothing of each other; an adjoint may run twice."""
    y, backward = case.call(backend, *args[:-1])
    _, backward_of_others = case.call(backend, *others[:-1])
    assert _same(backend, [y], found[:1]), f"{label}: y was changed by the operation's next call"
    gradients = _several(backward(args[-1]))
    assert _same(backend, gradients, found[1:]), f"{label}: other gradients after the operation's next call"
    backward_of_others(others[-1])
    assert _same(backend, gradients, found[1:]), f"{label}: the gradients were changed by the next adjoint"
    again = _several(backward(args[-1]))
    assert _same(backend, again, found[1:]), f"{label}: the adjoint gave other bits when it was called again"


def check_together(backend: Backend, cases: Sequence["Case"], dtype: Any = np.float32) -> float:
    """All cases at once, as in a network: forwards in order, adjoints in reverse; the bits of each call alone."""
    given = []
    for i, case in enumerate(cases):
        args = [backend.to_device(a.astype(dtype)) for a in case.args]
        y, backward = case.call(backend, *args)
        rng = np.random.RandomState(i)
        given.append((case, args, y, backward, backend.to_device(rng.standard_normal(y.shape).astype(dtype))))
    found = [[y, *_several(backward(dy))] for _, _, y, backward, dy in reversed(given)][::-1]
    for (case, args, _, _, dy), results in zip(given, found, strict=True):
        alone = [backend.to_host(a) for a in outcome(case.call, backend, args, dy)]
        label = case.label(dtype, "")
        assert _same(backend, results, alone), f"together: {label}: other bits than alone when other calls come between"
    return 0.0


def check_nan(backend: Backend, case: "Case", dtype: Any = np.float32) -> float:
    """A NaN in one image shows wherever it does in NumPy's results, and in no other image's.

    The case's images are as many as no other axis that comes first.
    """
    n = len(case.args[0])
    values = [a.astype(dtype) for a in case.args]
    values.append(np.random.RandomState(0).standard_normal(case.call(Backend(), *values)[0].shape).astype(dtype))
    for k, value in enumerate(values):
        if len(value) != n:
            continue
        spoilt = [a.copy() for a in values]
        spoilt[k].reshape(n, -1)[n // 2, value[0].size // 2] = np.nan
        with np.errstate(all="ignore"):
            exact = outcome(case.call, Backend(), spoilt[:-1], spoilt[-1])
            *args, dy = map(backend.to_device, spoilt)
            found = [backend.to_host(a) for a in outcome(case.call, backend, args, dy)]
        where = f"argument {k + 1}" if k < len(args) else "dy"
        for i, (got, wanted) in enumerate(zip(found, exact, strict=True)):
            what = f"{case.label(dtype, '')}: NaN in {where}: {f'gradient {i}' if i else 'y'}"
            assert np.isnan(got[np.isnan(wanted)]).all(), f"{what}: a number where NumPy has NaN"
            if len(got) == n:
                others = np.delete(got, n // 2, axis=0)
                assert np.isfinite(others).all(), f"{what}: NaN in another image"
    return 0.0


def _several(gradients: Any) -> tuple[Array, ...]:
    return gradients if isinstance(gradients, tuple) else (gradients,)


def _same(backend: Backend, found: Sequence[Array], wanted: Sequence[Array]) -> bool:
    """Equal bits; wanted: the host's."""
    return all(backend.to_host(a).tobytes() == b.tobytes() for a, b in zip(found, wanted, strict=True))
