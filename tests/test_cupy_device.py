"""What of the CUDA device can be told without one: errors, the products' arguments, kernels' text, memory advice."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ddpm_ref_cupy import cublas
from ddpm_ref_cupy.device import Device
from ddpm_ref_cupy.fit import explained
from ddpm_ref_cupy.source import source
from hypothesis import given
from hypothesis import strategies as st

from ddpm_ref.discovery import get_backend, survey
from ddpm_ref.files import run

sizes = st.integers(1, 6)


def test_a_machine_without_cupy_or_gpu_is_told_in_one_sentence_what_is_missing() -> None:
    said = str(survey()["cupy"])
    if "NVIDIA" not in said and "CuPy" not in said:
        pytest.skip(f"there is a GPU here: {said}")
    assert "\n" not in said and said.startswith("the cupy backend")
    with pytest.raises(ValueError, match=f"cannot load 'cupy': {said[:20]}"):
        get_backend("cupy", precision="tf32")


def test_without_cupy_both_extras_are_named(tmp_path: Path) -> None:
    (tmp_path / "cupy.py").write_text("raise ImportError('not here')\n")
    code = "from ddpm_ref.discovery import survey; print(survey()['cupy'])"
    paths = [str(tmp_path), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths}; {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (
        done.stdout == 'the cupy backend needs CuPy: pip install "ddpm-ref[cuda13]" (or cuda12, as the driver allows)\n'
    )


def test_importing_the_backend_imports_no_cupy() -> None:
    code = f"import sys; sys.path[:0] = {sys.path}; import ddpm_ref_cupy; print('cupy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


class Library:
    """Stands where libcublas stands, and computes from the memory that its arguments name, column by column."""

    def __init__(self) -> None:
        self.status = 0

    def __getattr__(self, name: str) -> Any:
        return lambda *args: self.status

    def cublasGemmStridedBatchedEx(self, _handle: Any, *args: Any) -> int:
        (trans_a, trans_b), (m, n, k) = args[:2], (a.value for a in args[2:5])
        alpha, (A, B), beta, C = args[5]._obj.value, (args[6:10], args[10:14]), args[14]._obj.value, args[15:19]
        count = args[19].value
        for i in range(count):
            a, b = (_columns(*X, i, transposed) for X, transposed in ((A, trans_a), (B, trans_b)))
            c = _columns(*C, i, 0)
            assert a.shape[0] >= m and b.shape[1] >= n and a.shape[1] >= k
            c[:m, :n] = alpha * (a[:m, :k] @ b[:k, :n]) + beta * c[:m, :n]
        return self.status


def _columns(address: Any, kind: int, ld: Any, stride: Any, i: int, transposed: int) -> np.ndarray:
    """The i-th matrix at an address as cuBLAS sees it, with as many columns as the test's array has."""
    x = MEMORY[address.value]
    dtype = x.dtype
    assert kind == cublas.KINDS[dtype] and x.flags.c_contiguous
    flat = x.reshape(-1)[i * stride.value :]
    columns = stride.value // ld.value
    matrix = flat[: columns * ld.value].reshape(columns, ld.value).T
    return matrix.T if transposed else matrix


MEMORY: dict[int, np.ndarray] = {}


@given(sizes, sizes, sizes, st.integers(1, 3), st.booleans(), st.booleans(), st.booleans(), st.sampled_from("fd"))
def test_cublas_is_asked_for_the_product_of_the_rows(
    m: int, n: int, k: int, count: int, trans_a: bool, trans_b: bool, add: bool, kind: str
) -> None:
    """Against a reading of cuBLAS's own convention, column by column with leading dimensions and strides."""
    rng = np.random.default_rng(0)
    a, b, out = (
        rng.standard_normal((count, *shape)).astype(kind)
        for shape in ((k, m) if trans_a else (m, k), (n, k) if trans_b else (k, n), (m, n))
    )
    wanted = (a.swapaxes(1, 2) if trans_a else a) @ (b.swapaxes(1, 2) if trans_b else b) + (out if add else 0)
    MEMORY.clear()
    operands = []
    for x in (a, b, out):
        MEMORY[x.ctypes.data] = x
        operands.append(cublas.Operand(x.ctypes.data, *x.shape[1:], x.shape[1] * x.shape[2], cublas.KINDS[x.dtype]))
    assert cublas.checked(a.shape, b.shape, out.shape, trans_a, trans_b) == (count, m, n, k)
    compute = cublas.compute_type(cublas.KINDS[a.dtype], "fp32")
    cublas.Cublas(Library(), 1, 2).product(*operands, count, trans_a, trans_b, add, compute)
    assert np.allclose(out, wanted, rtol=1e-5, atol=1e-5)


def test_a_call_that_cublas_refuses_says_which_and_why() -> None:
    library = Library()
    one = cublas.Cublas(library, 1, 2)
    library.status = 13
    with pytest.raises(cublas.CublasError, match=r"cublasGetVersion_v2: execution failed \(status 13\)"):
        one.version()


@pytest.mark.parametrize(
    "shapes", [((2, 3), (2, 3), (2, 3)), ((2, 3), (3, 4), (4, 2)), ((2, 2, 3), (1, 3, 4), (2, 2, 4))]
)
def test_products_of_shapes_that_do_not_fit_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match="matmul: "):
        cublas.checked(*shapes, False, False)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_doubles_and_bfloat16_are_computed_alike_in_every_precision(precision: str) -> None:
    assert cublas.compute_type(cublas.R_64F, precision) == cublas.COMPUTE_64F
    assert cublas.compute_type(cublas.R_16BF, precision) == cublas.COMPUTE_32F
    assert (cublas.compute_type(cublas.R_32F, precision) == cublas.COMPUTE_32F) == (precision == "fp32")


def test_the_text_of_a_kernel_file_is_the_prelude_and_the_file() -> None:
    text = source("step")
    assert text.index("typedef REAL real;") < text.index("step_images") and "#include" not in text


class Card(Device):
    name = "a card"

    def memory(self) -> tuple[int, int]:
        return 10 * 2**30, 16 * 2**30


def test_a_full_memory_says_what_was_needed_and_how_many_images_fit() -> None:
    error = explained(MemoryError(), Card(), 64, lambda n: (2 + n) * 2**29)
    assert str(error) == (
        "64 images at a time need 33.00 GiB, free are 10.00 GiB of 16.00 GiB on a card; 18 at a time would fit"
    )

    def never(n: int) -> int:
        raise MemoryError

    assert str(explained(MemoryError(), Card(), 64, never)) == (
        "not even 2 images at a time fit into 10.00 GiB free of 16.00 GiB on a card"
    )


def test_a_run_is_told_how_many_steps_nothing_will_interrupt() -> None:
    settings = run.RunSettings(steps=25, log_every=10, save_every=6)
    assert [run._undisturbed(step, settings) for step in (0, 5, 6, 10, 12, 24)] == [6, 1, 4, 2, 6, 1]
