"""The text of the kernels, put together: CuPy's cache and NVRTC see one string and no includes."""

import re
from functools import cache
from importlib.resources import files

_USES = re.compile(r"^// uses: (\w+)\.cuh$", re.MULTILINE)


@cache
def source(file: str) -> str:
    """`kernels/file.cu` behind the prelude and the headers it names by lines such as "// uses: philox.cuh"."""
    folder = files("ddpm_ref_cupy") / "kernels"
    text = (folder / f"{file}.cu").read_text(encoding="utf-8")
    headers = ["prelude", *_USES.findall(text)]
    return "\n".join([*((folder / f"{name}.cuh").read_text(encoding="utf-8") for name in headers), text])
