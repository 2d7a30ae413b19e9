"""The Numba backend: kernels and adjoints against NumPy in float64, overruns, threads, the random stream, training."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("numba", reason="the Numba backend is not installed here")

from ddpm_ref_numba import NumbaBackend, launch
from ddpm_ref_numba.simd import f32
from ddpm_ref_numba.winograd import filter_gradient

from ddpm_ref import random
from ddpm_ref.backend import Backend
from ddpm_ref.checks import Array
from ddpm_ref.discovery import get_backend
from ddpm_ref.nn import optim
from ddpm_ref.nn.plan import UNetConfig
from ddpm_ref.nn.unet import UNet
from ddpm_ref.objective import simple_loss
from ddpm_ref.random import Purpose
from ddpm_ref.sampling import generate_steps
from ddpm_ref.schedule import Schedule

EXACT = Backend()
sizes, widths, seeds = st.integers(1, 9), st.sampled_from([1, 3, 8, 16, 24, 32, 48]), st.integers(0, 2**32 - 1)
threads = st.integers(1, 3)


def results(call: Callable[..., Any], on: Backend, args: list[Array], dy: Array | None) -> tuple[list[Array], Array]:
    y, backward = call(on, *args)
    dy = np.random.default_rng(0).standard_normal(y.shape) if dy is None else dy
    gradients = backward(dy.astype(y.dtype))
    return [y, *(gradients if isinstance(gradients, tuple) else (gradients,))], dy


def hold(call: Callable[..., Any], shapes: list[tuple[int, ...]], n: int, seed: int, error: float) -> None:
    """Output and gradients in float32, between guard zones, within `error` of the largest exact one (or of 1)."""
    rng = np.random.default_rng(seed)
    args = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    copies = [a.copy() for a in args]
    exact, dy = results(call, EXACT, [a.astype(np.float64) for a in args], None)
    with launch.guard():
        found, _ = results(call, NumbaBackend(n), args, dy)
        again, _ = results(call, NumbaBackend(n), args, dy)
    for a, b, c in zip(found, exact, again, strict=True):
        assert a.dtype == np.float32 and a.shape == b.shape
        assert np.abs(a - b).max(initial=0) <= error * max(1, np.abs(b).max(initial=0))
        np.testing.assert_array_equal(a, c)
    for a, b in zip(args, copies, strict=True):
        np.testing.assert_array_equal(a, b)


# Winograd's F(4x4, 3x3) adds and subtracts multiples of up to 8 of numbers that cancel: some 100 roundings, 100 · 2⁻²⁴,
# of the largest output, here with a factor of 8 to spare.
@given(st.integers(1, 3), sizes, sizes, widths, widths, st.sampled_from([1, 2]), st.booleans(), threads, seeds)
def test_conv3x3_and_its_adjoints(
    n: int, h: int, w: int, c: int, d: int, stride: int, per_image: bool, count: int, seed: int
) -> None:
    b = (n, d) if per_image else (d,)
    hold(lambda on, *a: on.conv3x3(*a, stride=stride), [(n, h, w, c), (3, 3, c, d), b], count, seed, 5e-5)


@given(st.integers(1, 150), widths, widths, threads, seeds)
def test_dense_and_its_adjoints(rows: int, c: int, d: int, count: int, seed: int) -> None:
    hold(lambda on, *a: on.dense(*a), [(rows, c), (c, d), (d,)], count, seed, 5e-6)


@given(st.integers(1, 3), sizes, sizes, st.sampled_from([16, 32, 48, 96]), st.booleans(), threads, seeds)
def test_group_norm_with_and_without_silu_and_its_adjoints(
    n: int, h: int, w: int, c: int, silu: bool, count: int, seed: int
) -> None:
    hold(lambda on, *a: on.group_norm(*a, 8, silu=silu), [(n, h, w, c), (c,), (c,)], count, seed, 2e-5)


@given(st.integers(1, 3), st.sampled_from([1, 5, 16, 32, 80]), st.sampled_from([3, 16, 32]), threads, seeds)
def test_attention_and_its_adjoints(n: int, s: int, c: int, count: int, seed: int) -> None:
    hold(lambda on, *a: on.attention(*a), [(n, s, c)] * 3, count, seed, 2e-5)


@given(st.integers(1, 2), sizes, sizes, widths, threads, seeds)
def test_upsample_and_dropout_and_their_adjoints(n: int, h: int, w: int, c: int, count: int, seed: int) -> None:
    hold(lambda on, *a: on.upsample(*a), [(n, h, w, c)], count, seed, 1e-6)
    u = np.random.default_rng(seed).random((n, h, w, c), np.float32)
    hold(lambda on, x: on.dropout(x, u.astype(x.dtype), 0.25), [(n, h, w, c)], count, seed, 1e-6)


def test_convolution_and_its_adjoints_satisfy_the_adjoint_identity_on_the_backend_itself() -> None:
    rng, on = np.random.default_rng(0), NumbaBackend(2)
    x, v = (rng.standard_normal((2, 7, 6, 32)).astype(np.float32) for _ in range(2))
    W, U = (rng.standard_normal((3, 3, 32, 16)).astype(np.float32) for _ in range(2))
    zero = np.zeros(16, np.float32)
    y, backward = on.conv3x3(x, W, zero)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    dx, dW, _ = backward(dy)
    for forward, adjoint in (
        ((dy * on.conv3x3(v, W, zero)[0]).sum(dtype=np.float64), (dx * v).sum(dtype=np.float64)),
        ((dy * on.conv3x3(x, U, zero)[0]).sum(dtype=np.float64), (dW * U).sum(dtype=np.float64)),
    ):
        assert abs(forward - adjoint) < 1e-5 * np.linalg.norm(dy) * np.linalg.norm(y)


def test_float64_runs_the_bodies_of_numpy() -> None:
    rng = np.random.default_rng(0)
    args = [rng.standard_normal(s) for s in ((2, 5, 4, 16), (3, 3, 16, 32), (32,))]
    ours, numpys = (results(lambda on, *a: on.conv3x3(*a), b, args, None)[0] for b in (NumbaBackend(), EXACT))
    for found, exact in zip(ours, numpys, strict=True):
        np.testing.assert_allclose(found, exact, rtol=1e-12)


def test_non_contiguous_input_gives_what_a_copy_gives() -> None:
    rng, on = np.random.default_rng(0), NumbaBackend(2)
    wide = rng.standard_normal((2, 5, 4, 48)).astype(np.float32)
    part, W = wide[..., 8:40], rng.standard_normal((3, 3, 32, 16)).astype(np.float32)
    y, backward = on.conv3x3(part, W, np.zeros(16, np.float32))
    expected, expected_back = on.conv3x3(part.copy(), W, np.zeros(16, np.float32))
    np.testing.assert_array_equal(y, expected)
    dy = np.repeat(y, 2, axis=3)[..., ::2]
    for a, b in zip(backward(dy), expected_back(dy.copy()), strict=True):
        np.testing.assert_array_equal(a, b)


# ---- the random stream and the update


@given(seeds, st.integers(0, 2**32 - 1), st.lists(st.integers(0, 2**32 - 1), max_size=4), st.lists(sizes, max_size=3),
       st.integers(0, 2**24 - 1), threads)  # fmt: skip
def test_normals_and_uniforms_are_numpys_bit_for_bit(
    seed: int, step: int, samples: list[int], shape: list[int], layer: int, count: int
) -> None:
    for name in ("normal", "uniform"):
        draw = (seed << 32 | seed, Purpose.EPS, step, samples, tuple(shape))
        with launch.guard():
            found = getattr(NumbaBackend(count), name)(*draw, layer=layer)
        expected = getattr(random, name)(*draw, layer=layer)
        np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_a_million_normals_have_the_bits_of_numpy_so_nothing_was_fused() -> None:
    draw = (3, Purpose.Z, 7, np.arange(100), (10_000,))  # fusing a·b + c changes 1 % of them
    np.testing.assert_array_equal(NumbaBackend(2).normal(*draw), random.normal(*draw))


@given(st.integers(1, 70), st.integers(1, 3), st.sampled_from([None, 0.01, 1e9]), threads, seeds)
def test_the_update_is_numpys(count: int, step: int, clip_norm: float | None, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ours = [np.abs(rng.standard_normal(count)).astype(np.float32) for _ in range(5)]
    theirs = [a.copy() for a in ours]
    how: dict[str, Any] = {"step": step, "settings": optim.AdamSettings(warmup=2, clip_norm=clip_norm)}
    with launch.guard():
        norm = NumbaBackend(n).update(*ours, **how)
    np.testing.assert_allclose(norm, optim.update(*theirs, **how), rtol=1e-14)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=3e-7, atol=1e-12)


def test_an_update_with_an_infinite_gradient_changes_nothing() -> None:
    vectors = [np.ones(20, np.float32) for _ in range(5)]
    vectors[1][7] = np.inf
    assert not np.isfinite(NumbaBackend(2).update(*vectors, 1, optim.AdamSettings()))
    assert all((a == 1).all() for a in (vectors[0], *vectors[2:]))


# ---- what a kernel may not do, and what it may not keep


def test_the_guard_finds_a_kernel_that_runs_over_the_end() -> None:
    dU = np.ones(36 * 16 * 16, np.float32)
    dW = np.zeros(9 * 16 * 16 - 16, np.float32)  # one vector too short
    with launch.guard(), pytest.raises(AssertionError, match="wrote outside"):
        filter_gradient(1, dU, dW, 16, 16)


def test_a_cache_folder_that_cannot_be_written_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch._Storage, "_locator_classes", ())
    kernel = launch.Kernel(launch_probe)
    out = np.zeros(1, np.float32)
    kernel(1, out)
    assert out[0] == 3


def launch_probe(thread, threads, args):  # type: ignore[no-untyped-def]
    f32(args, 0)[0] = 3


def test_threads_are_checked() -> None:
    for bad in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="threads: wanted an integer >= 1"):
            NumbaBackend(bad)  # type: ignore[arg-type]


# ---- the whole


CONFIG = UNetConfig(1, 16, (1, 2), 1, (1,), groups=8, dropout=0.1, image_size=8)


def train(backend: Backend, steps: int) -> tuple[list[float], Array]:
    """Losses and final parameters of a small network that learns ε of fixed noisy images."""
    net, rng = UNet(CONFIG), np.random.default_rng(0)
    params = net.init(0)
    m, v, ema = (np.zeros_like(params.vector) for _ in range(3))
    settings, losses = optim.AdamSettings(lr=1e-3, warmup=10), []
    x_0 = rng.uniform(-1, 1, (16, 8, 8, 1)).astype(np.float32)
    for step in range(1, steps + 1):
        eps = backend.normal(0, Purpose.EPS, step, np.arange(16), (8, 8, 1))

        def dropout(layer: int, shape: tuple[int, ...], step: int = step) -> Array:
            return backend.uniform(0, Purpose.DROPOUT, step, np.arange(16), shape[1:], layer=layer)

        output, backward = net(
            params, np.float32(0.6) * x_0 + np.float32(0.8) * eps, 1 + step % 50, backend, dropout=dropout
        )
        loss, d_output = simple_loss(output, eps)
        backend.update(params.vector, backward(d_output)[1].vector, m, v, ema, step, settings)
        losses.append(float(loss))
    return losses, params.vector


def test_two_hundred_training_steps_end_where_numpys_do() -> None:
    ours, theirs = (train(on, 200) for on in (NumbaBackend(2), EXACT))
    assert theirs[0][-1] < 0.5 * theirs[0][0]
    np.testing.assert_allclose(ours[0], theirs[0], rtol=0, atol=1e-4)
    assert np.linalg.norm(ours[1] - theirs[1]) < 1e-3 * np.linalg.norm(theirs[1])
    again = train(NumbaBackend(2), 5), train(NumbaBackend(2), 5)
    np.testing.assert_array_equal(again[0][1], again[1][1])


def test_the_backend_is_had_by_its_name() -> None:
    assert type(get_backend("numba")) is NumbaBackend


def test_one_seed_draws_one_picture_on_both_backends() -> None:
    net, schedule = UNet(CONFIG), Schedule.linear(250, beta_1=4e-4, beta_T=0.08)
    trained = net.init(0).like(train(NumbaBackend(2), 60)[1])
    ours, theirs = (
        [
            x
            for _, x, _ in generate_steps(
                net, trained, schedule, np.arange(4), (8, 8, 1), seed=3, backend=on, every=1000
            )
        ]
        for on in (NumbaBackend(2), EXACT)
    )
    assert np.abs(ours[-1]).max() > 0.1
    assert np.abs(ours[-1] - theirs[-1]).max() < 2 / 255


def test_a_full_disk_costs_the_compiling_and_not_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(launch.FunctionCache, "save_overload", full)
    monkeypatch.setattr(launch.FunctionCache, "load_overload", full)
    out = np.zeros(1, np.float32)
    launch.Kernel(launch_probe)(1, out)
    assert out[0] == 3


def test_a_terminal_is_told_once_that_kernels_are_compiled(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(launch._Storage, "_locator_classes", ())
    monkeypatch.setattr(launch, "_announced", False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    for _ in range(2):
        launch.Kernel(launch_probe)(1, np.zeros(1, np.float32))
    assert capsys.readouterr().err.count("compiling kernels") == 1


def in_a_process(code: str, **environment: str) -> str:
    """What a Python of its own prints; standard error is part of it."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment, check=False
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("sys.modules['numba'] = None", 'the numba backend needs Numba: pip install "ddpm-ref[numba]"'),
        ("import numba; numba.__version__ = '0.50.1'", "needs Numba 0.62 or newer, here is 0.50.1"),
    ],
)
def test_a_missing_or_old_numba_is_one_line_and_numpy_is_taken(change: str, said: str) -> None:
    code = f"import sys; {change}\nfrom ddpm_ref.discovery import get_backend\nprint(get_backend().name)\n"
    out = in_a_process(code + "try: get_backend('numba')\nexcept ValueError as error: print(error)")
    assert out.startswith("numpy\n") and said in out and "Traceback" not in out


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("NUMBA_DISABLE_JIT", "1", "NUMBA_DISABLE_JIT is set"),
        ("NUMBA_THREADING_LAYER", "abacus", "NUMBA_THREADING_LAYER=abacus cannot be had here: "),
        ("DDPM_REF_SIMD_WIDTH", "32", "DDPM_REF_SIMD_WIDTH: wanted 8 or 16, got '32'"),
        ("DDPM_REF_SIMD_WIDTH", "wide", "DDPM_REF_SIMD_WIDTH: wanted 8 or 16, got 'wide'"),
    ],
)
def test_an_environment_in_which_no_kernel_runs_is_one_line_and_numpy_is_taken(
    variable: str, value: str, said: str
) -> None:
    code = "from ddpm_ref.discovery import get_backend\nprint(get_backend(threads=2).name)\n"
    out = in_a_process(
        code + "try: get_backend('numba', 2)\nexcept ValueError as error: print(error)", **{variable: value}
    )
    assert out.startswith(f"numpy\nbackend: cannot load 'numba': {said}") and "Traceback" not in out


@pytest.mark.parametrize(("given", "threads"), [("3", 3), ("²", 5), ("0", 5), ("-1", 5), ("", 5), ("many", 5)])
def test_threads_are_those_of_the_environment_where_it_says_a_number(
    monkeypatch: pytest.MonkeyPatch, given: str, threads: int
) -> None:
    monkeypatch.setenv("NUMBA_NUM_THREADS", given)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert NumbaBackend().threads == threads


def test_vectors_of_eight_lanes_compute_the_same() -> None:
    out = in_a_process(
        "import numpy as np; from ddpm_ref import check_backend; from ddpm_ref_numba import NumbaBackend, simd\n"
        "assert simd.WIDTH == 8; print(check_backend(NumbaBackend(2)))",
        DDPM_REF_SIMD_WIDTH="8",
    )
    assert "numba does what NumPy does" in out


def test_kernels_find_arrays_where_the_interpreter_keeps_no_pointer_at_a_known_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The way round for interpreters whose array objects look otherwise gives the same bits."""
    a, b = (np.random.default_rng(k).standard_normal((2, 9, 7, 32), dtype=np.float32) for k in (0, 1))
    first = NumbaBackend(2).concat(a, b)[0]
    monkeypatch.setattr(launch, "_values", launch._values_elsewhere)
    assert NumbaBackend(2).concat(a, b)[0].tobytes() == first.tobytes() == np.concatenate([a, b], -1).tobytes()
