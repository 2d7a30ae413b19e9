"""`check_backend` holds what keeps the contract and finds what does not: each of these backends has one fault."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import ddpm_ref
from ddpm_ref.backend import OPERATIONS, Backend
from ddpm_ref.backend_cases import compared, placed
from ddpm_ref.backend_check import CASES, check_backend
from ddpm_ref.checks import Array

Both = tuple[Array, Callable[..., Any]]


def test_numpy_holds_and_the_report_says_how_well() -> None:
    report = ddpm_ref.check_backend(Backend())
    assert report.backend == Backend().describe()
    assert set(report.checks) == {*OPERATIONS, "to_device", "to_host"} and sum(report.checks.values()) > 500
    assert all(0 <= share < 0.2 for share in report.largest.values()), "far from the bounds, which mistakes pass by far"
    assert report.largest["dense"] > 0 and report.largest["group_norm"] > 0
    assert "conv3x3" in str(report) and str(report).endswith("numpy does what NumPy does")


# ---- one fault each


class WrongSign(Backend):
    """One adjoint's sign."""

    def dense(self, x: Array, W: Array, b: Array) -> Both:
        y, backward = super().dense(x, W, b)
        return y, lambda dy: (-(r := backward(dy))[0], r[1], r[2])


class Transposed(Backend):
    """dW with its channels swapped, where they are equally many."""

    def conv3x3(self, x: Array, W: Array, b: Array, *, stride: int = 1) -> Both:
        y, backward = super().conv3x3(x, W, b, stride=stride)
        if W.shape[2] != W.shape[3]:
            return y, backward
        return y, lambda dy: ((r := backward(dy))[0], r[1].swapaxes(2, 3).copy(), r[2])


class Overwrites(Backend):
    """The input is scratch."""

    def upsample(self, x: Array) -> Both:
        y, backward = super().upsample(x)
        x *= 2
        return y, backward


class OverwritesDy(Backend):
    """dy is scratch, in one of the gradients' places."""

    def group_norm(self, x: Array, gamma: Array, beta: Array, groups: int, *, silu: bool = False) -> Both:
        y, backward = super().group_norm(x, gamma, beta, groups, silu=silu)

        def adjoint(dy: Array) -> Any:
            results = backward(dy)
            dy[...] = results[0]
            return results

        return y, adjoint


class Downcasts(Backend):
    """float64 is computed in float32 and cast back."""

    def attention(self, q: Array, k: Array, v: Array) -> Both:
        y, backward = super().attention(*(a.astype(np.float32) for a in (q, k, v)))
        return y.astype(q.dtype), lambda dy: tuple(g.astype(q.dtype) for g in backward(dy.astype(np.float32)))


class ReturnsFloat64(Backend):
    """The right numbers, but not in the inputs' dtype."""

    def dropout(self, x: Array, uniform: Array, rate: float) -> Both:
        y, backward = super().dropout(x, uniform, rate)
        return y.astype(np.float64), backward


class WrongNormal(Backend):
    """A stream of NumPy's own."""

    def normal(
        self, seed: int, purpose: Any, step: int, samples: Array, shape: tuple[int, ...], *, layer: int = 0
    ) -> Array:
        return np.random.default_rng([seed, step]).standard_normal((len(samples), *shape), dtype=np.float32)


class LastBit(Backend):
    """One number of a thousand off in its last bit."""

    def uniform(
        self, seed: int, purpose: Any, step: int, samples: Array, shape: tuple[int, ...], *, layer: int = 0
    ) -> Array:
        u = super().uniform(seed, purpose, step, samples, shape, layer=layer)
        u.reshape(-1)[::1000] = np.nextafter(u.reshape(-1)[::1000], np.float32(2))
        return u


class SharesMemory(Backend):
    """Nothing to drop: x itself."""

    def dropout(self, x: Array, uniform: Array, rate: float) -> Both:
        return super().dropout(x, uniform, rate) if rate else (x, lambda dy: dy.copy())


class SharesMemoryBackwards(Backend):
    """Nothing to drop: dy itself."""

    def dropout(self, x: Array, uniform: Array, rate: float) -> Both:
        return super().dropout(x, uniform, rate) if rate else (x.copy(), lambda dy: dy)


class KeepsItsOutput(Backend):
    """The adjoint reads y, which the caller may have written into."""

    def group_norm(self, x: Array, gamma: Array, beta: Array, groups: int, *, silu: bool = False) -> Both:
        y, backward = super().group_norm(x, gamma, beta, groups, silu=silu)
        return y, lambda dy: ((r := backward(dy))[0], r[1], r[2] + 0.001 * (y.ravel()[0] > 16))


class Forgetful(Backend):
    """Other bits at the second call."""

    calls = 0

    def concat(self, a: Array, b: Array) -> Both:
        self.calls += 1
        y, backward = super().concat(a, b)
        return y * y.dtype.type(1 + 1e-15 * self.calls + 1e-7 * (self.calls % 2)), backward


class NoBorder(Backend):
    """The last row of a convolution is that of the row before."""

    def conv3x3(self, x: Array, W: Array, b: Array, *, stride: int = 1) -> Both:
        y, backward = super().conv3x3(x, W, b, stride=stride)
        if y.shape[1] % 4 == 3:
            y[:, -1] = y[:, -2]
        return y, backward


class OnlyContiguous(Backend):
    """The memory of an array is read as if it were contiguous."""

    def dense(self, x: Array, W: Array, b: Array) -> Both:
        return super().dense(np.lib.stride_tricks.as_strided(x, x.shape, placed(self, x).strides), W, b)


class NoClipping(Backend):
    """The gradient's norm is returned and not used."""

    def update(self, params: Any, grads: Any, m: Any, v: Any, ema: Any, step: int, settings: Any) -> float:
        return super().update(params, grads, m, v, ema, step, replace(settings, clip_norm=None))


class UpdatesWithNan(Backend):
    """m is changed before the norm is known."""

    def update(self, params: Any, grads: Any, m: Any, v: Any, ema: Any, step: int, settings: Any) -> float:
        norm = super().update(params, grads, m, v, ema, step, settings)
        if not np.isfinite(norm):
            m *= 0.9
        return norm


class OtherNoise(Backend):
    """z of the step before."""

    def p_sample(self, schedule: Any, x_t: Any, t: int, output: Any, seed: int, samples: Any, *, predicts: str = "eps",
                 var: Any = "beta", clip: bool = False, temperature: float = 1.0) -> Any:  # fmt: skip
        how: Any = dict(predicts=predicts, var=var, clip=clip, temperature=temperature)
        return super().p_sample(schedule, x_t, t, output, seed + (t == 2), samples, **how)


class NoiseTwice(Backend):
    """ε is not what made x_t."""

    def q_sample(self, schedule: Any, x_0: Any, t: Any, seed: int, step: int, samples: Any) -> Any:
        x_t, _ = super().q_sample(schedule, x_0, t, seed, step, samples)
        return x_t, super().q_sample(schedule, x_0, t, seed, step + 1, samples)[1]


class Signature(Backend):
    """An option is missing."""

    def conv3x3(self, x: Array, W: Array, b: Array, stride: int = 1) -> Both:  # type: ignore[override]
        return super().conv3x3(x, W, b, stride=stride)


class Raises(Backend):
    """One shape is too much for it."""

    def attention(self, q: Array, k: Array, v: Array) -> Both:
        if q.shape[1] == 25:
            raise RuntimeError("25 is no multiple of 8")
        return super().attention(q, k, v)


class Truncates(Backend):
    """The device has no float64."""

    def to_device(self, x: Array) -> Array:
        return np.asarray(x, np.float32)


FAULTS: dict[type[Backend], str] = {
    WrongSign: r"^dense 3x5 5x7 7 float64: gradient 1 of 3: off by [\d.]+ where [\d.e-]+ is allowed",
    Transposed: r"^conv3x3 2x16x16x32 3x3x32x32 2x32 stride 1 float32: gradient 2 of 3: off by",
    Overwrites: r"^upsample 2x3x5x6 float64: (argument 1 was changed|y: off by)",
    OverwritesDy: r"^group_norm 2x8x8x64 64 64 groups 32, silu float32: dy was changed",
    Downcasts: r"^attention 2x64x32 2x64x32 2x64x32 float64: y: off by",
    ReturnsFloat64: r"^dropout 2x3x5x6 rate 0.1 float32: y: wanted dtype float32, got float64",
    WrongNormal: r"^normal of 4 images of shape \(3, 5\), layer 0: 100.00% of the numbers differ",
    LastBit: r"^uniform of 9 images of shape \(32, 32, 3\), layer 0: 0\.10% of the numbers differ",
    SharesMemory: r"^dropout 2x3x4x8 rate 0.0 float32: after writing into the results: argument 1 was changed",
    SharesMemoryBackwards: r"^dropout 2x3x4x8 rate 0.0 float32: after writing into the results: dy was changed",
    KeepsItsOutput: r"^group_norm .*: the gradients change with what a caller writes into y",
    Forgetful: r"^concat .*: the same call gave other bits",
    NoBorder: r"^conv3x3 .*: y: off by",
    OnlyContiguous: r"^dense 2x3x5x16 16x24 24 float32 strided: y: off by",
    NoClipping: r"^update of 200003 numbers, step 12, float32, clip_norm 0\.5: params: off by",
    UpdatesWithNan: r"^update with nan in the gradient, float64: m was changed",
    OtherNoise: r"^p_sample of \(5, 3, 5, 3\) float32, t = 2, .*: x_\(t-1\): off by",
    NoiseTwice: r"^q_sample of \(5, 3, 5, 3\) float32: ε: off by",
    Signature: r"^conv3x3: wanted the parameters \(x: .*\*, stride: int = 1\).*, got \(x: .*, stride: int = 1\)",
    Raises: r"^attention: raised RuntimeError: 25 is no multiple of 8 \(attention",
    Truncates: r"^to_host: to_device and back made .*dtype=float32",
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("faulty", FAULTS)
def test_a_fault_is_found_and_named_with_operation_shape_dtype_and_size(
    faulty: type[Backend], monkeypatch: pytest.MonkeyPatch
) -> None:
    named = FAULTS[faulty].lstrip("^").split()[0].strip(":")
    monkeypatch.setattr("ddpm_ref.backend_check.CASES", [case for case in CASES if case.name == named])
    with pytest.raises(AssertionError, match=rf"\A{faulty.name}: \d+ of \d+ checks do not hold\n") as caught:
        check_backend(faulty())
    lines = str(caught.value).splitlines()[1:]
    assert any(re.search(FAULTS[faulty], line) for line in lines), "\n".join(lines[:20])
    others = {line.split()[0].strip(":") for line in lines} - {named}
    assert others <= {"WrongNormal": {"q_sample", "p_sample"}, "Truncates": {"q_sample", "p_sample", "update"}}.get(
        faulty.__name__, set()
    ), "and nothing else is called wrong"


def test_an_error_is_a_share_of_what_is_allowed_and_nan_is_an_error() -> None:
    one = np.ones((2, 3), np.float32)
    assert compared("it", one + np.float32(0.25), one.astype(float), 0.5 * one, np.float32) == 0.5
    assert compared("it", one, one.astype(float), 0 * one, np.float32) == 0
    assert compared("nothing", one[:0], one[:0].astype(float), one[:0], np.float32) == 0
    with pytest.raises(AssertionError, match=r"it: off by nan where 1 is allowed, at \(0, 0\)"):
        compared("it", one * np.nan, one.astype(float), one, np.float32)
    with pytest.raises(AssertionError, match=r"it: wanted shape \(2, 3\), got \(3, 2\)"):
        compared("it", one.T, one.astype(float), one, np.float32)


def test_the_layouts_hold_the_same_values_and_a_strided_array_is_contiguous_nowhere() -> None:
    x = np.arange(24.0).reshape(2, 3, 4)
    contiguous, strided = placed(Backend(), x), placed(Backend(), x, "strided")
    assert np.array_equal(contiguous, x) and np.array_equal(strided, x) and not np.shares_memory(contiguous, x)
    assert contiguous.flags.c_contiguous and not (strided.flags.c_contiguous or strided.flags.f_contiguous)
