"""What nvcc makes of every kernel on every card: registers, shared memory and spills, kept in `resources.json`.

After a change of a kernel, look at what it costs and write the table anew:

    PYTHONPATH=tests:backends python -m cuda_host.resources
"""

import functools
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from ddpm_ref_cupy.source import OPTIONS as TYPE_OPTIONS
from ddpm_ref_cupy.source import types

from cuda_host.source import KERNELS, kernel_text

ARCHITECTURES = ("75", "80", "86", "89", "90", "90a", "100", "120")
CARDS = {"float32": ARCHITECTURES, "float64": ("75", "90", "120"), "uint16": ARCHITECTURES[1:]}
"""What each type is compiled for: float64 serves the gradients' checks alone, so three cards do; uint16, that is
bfloat16, is for cards with tensor cores for it."""

TABLE = Path(__file__).with_name("resources.json")
OPTIONS = ("-std=c++17", "-ftz=true", "-Werror", "all-warnings")  # -ftz=true: CuPy says so for every kernel


class Use(NamedTuple):
    """Of one kernel on one card: registers a thread; bytes of static shared memory a block; bytes spilled to memory and
    bytes of the stack frame a thread."""

    registers: int
    shared: int
    spilled: int
    stack: int


Uses = dict[str, Use]


def files() -> list[str]:
    """The kernel files' names."""
    return sorted(path.stem for path in KERNELS.glob("*.cu"))


@functools.cache
def nvcc_version() -> str:
    """As "13.0.88"."""
    found = re.search(r"V(\d+\.\d+\.\d+)", subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout)
    assert found
    return found[1]


def full_text(file: str) -> str:
    """What is compiled for a GPU: the prelude and the file."""
    return (KERNELS / "prelude.cuh").read_text() + kernel_text(file)


def nvcc(text: str, real: str, arch: str, *options: str) -> tuple[str, str]:
    """nvcc's output file (as text, if it is PTX) and what it said. RuntimeError with that if it refused."""
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder, "kernel.cu"), Path(folder, "made")
        source.write_text(text)
        command = ["nvcc", f"-arch=sm_{arch}", *TYPE_OPTIONS[real], *OPTIONS, *options, "-o", str(made), str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"sm_{arch}, real = {real}:\n{(done.stdout + done.stderr)[:4000]}")
        return made.read_bytes().decode(errors="replace"), done.stdout + done.stderr


_USE = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers(?:[^\n]*?(?P<shared>\d+) bytes smem)?",
    re.DOTALL,
)


def uses(file: str, real: str, arch: str, cache: Path | None = None) -> Uses:
    """What each kernel of a file needs on one card; remembered in the folder `cache` by everything it depends on."""
    text = full_text(file)
    key = "\0".join([nvcc_version(), *OPTIONS, real, arch, text])
    kept = cache / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json" if cache else None
    if kept and kept.exists():
        return {name: Use(*use) for name, use in json.loads(kept.read_text()).items()}
    _, said = nvcc(text, real, arch, "-cubin", "-Xptxas=-v")
    found = {}
    for match in _USE.finditer(said):
        spilled = int(match["stores"]) + int(match["loads"])
        found[match["name"]] = Use(int(match["registers"]), int(match["shared"] or 0), spilled, int(match["stack"]))
    if kept:
        kept.write_text(json.dumps(found))
    return found


def all_uses(file: str, real: str, cards: Sequence[str], cache: Path | None = None) -> dict[str, Uses]:
    """`uses` for several cards, two compilers at a time."""
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda arch: uses(file, real, arch, cache), cards)
        return dict(zip(cards, found, strict=True))


def table() -> dict[str, dict[str, Use]]:
    """The kept table: "file.kernel real" -> card -> `Use`; and the nvcc that it is of under "nvcc"."""
    kept = json.loads(TABLE.read_text())
    return {kernel: {arch: Use(*use) for arch, use in cards.items()} for kernel, cards in kept["kernels"].items()}


def table_version() -> str:
    """The nvcc that the table was made with."""
    return str(json.loads(TABLE.read_text())["nvcc"])


def write_table() -> None:
    """Compile everything and write `resources.json`: a line for each kernel."""
    lines = []
    for file in files():
        for real in types(file):
            cards = CARDS[real]
            print(file, real, file=sys.stderr)
            found = all_uses(file, real, cards)
            for name in sorted(found[cards[0]]):
                use = json.dumps({arch: found[arch][name] for arch in cards})
                lines.append(f"{json.dumps(f'{file}.{name} {real}')}: {use}")
    head = f'"nvcc": "{nvcc_version()}", "columns": {json.dumps(Use._fields)}'
    kernels = ",\n".join(lines)
    TABLE.write_text(f'{{{head}, "kernels": {{\n{kernels}\n}}}}\n')


if __name__ == "__main__":
    write_table()
