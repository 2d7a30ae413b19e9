"""Every CUDA kernel compiles for every card that the backend names, and costs what the kept table says.

DDPM_REF_CUDA_ARCHITECTURES=75,120 compiles for those alone.
"""

import os
import re
import shutil
from pathlib import Path

import pytest
from cuda_host import resources
from cuda_host.resources import ARCHITECTURES, files, nvcc
from cuda_host.source import KERNELS, kernel_text
from ddpm_ref_cupy.source import types

REWRITE = "if that is meant: PYTHONPATH=tests:backends python -m cuda_host.resources"
asked = os.environ.get("DDPM_REF_CUDA_ARCHITECTURES")
CARDS = tuple(asked.split(",")) if asked else ARCHITECTURES

needs_nvcc = pytest.mark.skipif(
    shutil.which("nvcc") is None, reason="no nvcc here, which compiles the kernels for GPUs"
)


@pytest.fixture(scope="session")
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where nvcc's findings are kept."""
    cache = getattr(request.config, "cache", None)
    return cache.mkdir("cuda_compile") if cache else tmp_path_factory.mktemp("cuda_compile")


@needs_nvcc
@pytest.mark.parametrize(("file", "real"), [(file, real) for file in files() for real in types(file)])
def test_every_kernel_compiles_for_every_card_and_costs_what_it_did(file: str, real: str, compiled: Path) -> None:
    kept, same_nvcc = resources.table(), resources.nvcc_version() == resources.table_version()
    wrong = []
    cards = [arch for arch in resources.CARDS[real] if arch in CARDS]
    for arch, found in resources.all_uses(file, real, cards, compiled).items():
        assert found, f"{file}.cu holds no kernel"
        for name, use in found.items():
            before = kept.get(f"{file}.{name} {real}", {}).get(arch)
            # Another nvcc may choose other registers; spills and shared memory are the kernel's doing.
            if before is None or (use != before if same_nvcc else use[1:] > before[1:]):
                wrong.append(f"{file}.{name} {real} sm_{arch}: {use}, in the table {before}")
    assert not wrong, "\n".join([*wrong, REWRITE])


@needs_nvcc
def test_the_table_has_no_kernel_that_is_gone() -> None:
    kernels = {name.split()[0] for name in resources.table()}
    gone = {name for name in kernels if not re.search(rf"\b{name.split('.')[1]}\b", _text(name.split(".")[0]))}
    assert not gone, f"{gone}; {REWRITE}"


def _text(file: str) -> str:
    return kernel_text(file) if file in files() else ""


@needs_nvcc
@pytest.mark.parametrize("arch", [CARDS[0], CARDS[-1]])
@pytest.mark.parametrize("real", ["float32", "float64"])
def test_no_random_number_is_made_with_a_fused_multiply_add(real: str, arch: str) -> None:
    fused = re.compile(r"\b(fma|mad)\.[a-z.]*f(32|64)")
    ptx, _ = nvcc(resources.full_text("noise"), real, arch, "-ptx")
    assert ".entry normal" in ptx and "mul.rn.f32" in ptx and not fused.search(ptx)
    careless = resources.full_text("noise").replace("add_rn(mul_rn(y, x), c)", "y * x + c")
    assert fused.search(nvcc(careless, real, arch, "-ptx")[0])


@needs_nvcc
def test_a_kernel_that_no_card_can_run_is_refused() -> None:
    text = resources.full_text("noise")
    with pytest.raises(RuntimeError, match=r"sm_75, real = float32:[\s\S]*undefined"):
        nvcc(text.replace("blocks_of(count)", "undefined_blocks(count)"), "float32", "75", "-cubin")
    too_much = 'extern "C" __global__ void much(int* y) { __shared__ float s[20000]; s[y[1]] = 1; y[0] = s[1]; }'
    with pytest.raises(RuntimeError, match="too much shared data"):
        nvcc(text + too_much, "float32", "90", "-cubin")


@pytest.mark.parametrize("path", sorted(KERNELS.iterdir()), ids=lambda path: path.name)
def test_a_kernel_file_stands_alone(path: Path) -> None:
    text = path.read_text()
    assert "#include" not in text  # CuPy's cache would not see a change of what it names
    assert max(map(len, text.splitlines())) <= 130
