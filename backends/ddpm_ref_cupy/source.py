"""The text of the kernels, put together: CuPy's cache and NVRTC see one string and no includes."""

import re
from functools import cache
from importlib.resources import files

OPTIONS = {"float32": ("-DREAL=float",), "float64": ("-DREAL=double",), "uint16": ("-DREAL=float", "-DSTORED=bf16")}
"""How a compiler is told what `real` and `stored` are, by the names of `Launch.real`."""

_USES = re.compile(r"^// uses: (\w+)\.cuh$", re.MULTILINE)


@cache
def source(file: str) -> str:
    """`kernels/file.cu` behind the prelude and the headers it names by lines such as "// uses: philox.cuh"."""
    text = _read(f"{file}.cu")
    return "\n".join([_read("prelude.cuh"), *(_read(f"{name}.cuh") for name in _USES.findall(text)), text])


@cache
def types(file: str) -> tuple[str, ...]:
    """What a kernel file is compiled for, of `OPTIONS`: what its text tells apart."""
    text = source(file).removeprefix(_read("prelude.cuh"))
    stored, real = (re.search(rf"\b{word}\b", text) for word in ("stored", "real"))
    return tuple(name for name, tells in (("float32", True), ("float64", real), ("uint16", stored)) if tells)


def _read(name: str) -> str:
    return (files("ddpm_ref_cupy") / "kernels" / name).read_text(encoding="utf-8")
