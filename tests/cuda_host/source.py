"""Kernel files as text: which kernels they hold, with which parameters, and how g++ compiles them for the CPU."""

import ctypes
import functools
import hashlib
import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ddpm_ref_cupy.device import real_of
from ddpm_ref_cupy.source import OPTIONS

HERE = Path(__file__).parent
KERNELS = Path(__file__).parents[2] / "backends" / "ddpm_ref_cupy" / "kernels"

FLAGS = ["-std=c++17", "-O1", "-w", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing", "-fsanitize=alignment,bounds"]
"""No fused multiply-add, as NumPy; accesses that a GPU refuses and indices past arrays call `cu::stop`."""

TYPES: dict[str, Any] = {
    "float": np.float32, "double": np.float64, "int": np.int32, "unsigned": np.uint32, "unsigned int": np.uint32,
    "unsigned short": np.uint16, "unsigned char": np.uint8, "unsigned long long": np.uint64, "long long": np.int64,
    "u32": np.uint32, "u64": np.uint64, "i64": np.int64, "bf16": np.uint16,
}  # fmt: skip
"""What a kernel's parameters, and what they point to, may be; and `real` and `stored`."""


_USES = re.compile(r"^// uses: (\w+)\.cuh$", re.MULTILINE)


class Parameter(NamedTuple):
    """ctype: its type in the kernel's text.  dtype: of the number or of the array's elements."""

    name: str
    ctype: str
    dtype: Any
    is_array: bool
    is_const: bool


def kernel_text(file: str, folder: Path = KERNELS) -> str:
    """`kernels/file.cu`, with the headers that its lines "// uses: header.cuh" name in their place."""
    text = (folder / f"{file}.cu").read_text()
    return _USES.sub(lambda line: (KERNELS / f"{line[1]}.cuh").read_text(), text)


def parameters(declaration: str, real: Any) -> list[Parameter]:
    """The parameters between a kernel's parentheses."""
    found = []
    for text in declaration.split(","):
        words = text.replace("__restrict__", " ").replace("*", " * ").split()
        is_array, is_const = "*" in words, "const" in words
        *kind, name = (word for word in words if word not in ("*", "const"))
        base = " ".join(kind)
        types = TYPES | {"real": real_of(real), "stored": real}
        if base not in types:
            raise ValueError(f"{name}: a kernel's parameter cannot be {text.strip()!r}")
        dtype = np.dtype(types[base])
        found.append(Parameter(name, f"{'const ' * is_const}{base}*" if is_array else base, dtype, is_array, is_const))
    return found


_KERNEL = re.compile(
    r'extern\s+"C"\s+__global__\s+(?:void\s+)?(?:__launch_bounds__\s*\(([^(){}]*)\)\s*)?(?:void\s+)?(\w+)\s*\(([^)]*)\)'
)
_DYNAMIC = re.compile(
    r"extern\s+__shared__\s+(?:(?:__align__|alignas)\s*\(\s*\d+\s*\)\s*)?([\w ]+?)\s*(\w+)\s*\[\s*\]\s*;"
)


def signatures(text: str, real: Any) -> dict[str, tuple[str, list[Parameter]]]:
    """The kernels of a preprocessed text: name -> (launch bounds or "", parameters)."""
    return {name: (bounds or "", parameters(args, real)) for bounds, name, args in _KERNEL.findall(text)}


def _cplusplus(*args: str, text: str | None = None) -> str:
    done = subprocess.run(["g++", *args], input=text, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"g++ {' '.join(args)}\n{done.stderr[:4000]}")
    return done.stdout


def _trampoline(name: str, bounds: str, params: list[Parameter]) -> str:
    """What a shared library offers of a kernel: its bounds, and a launch with an array of pointers to the arguments."""
    args = ", ".join(f"({p.ctype})args[{i}]" if p.is_array else f"*({p.ctype}*)args[{i}]" for i, p in enumerate(params))
    first = bounds.split(",")[0].strip() or "1024"
    return (
        f'extern "C" const int bounds_{name} = {first};\n'
        f'extern "C" const char* run_{name}(const cu::Launch* how, void** args) {{\n'
        f"    return cu::launch(*how, [](void** args) {{ {name}({args}); }}, args);\n}}\n"
    )


class Program:
    """A kernel file compiled for one `Launch.real`: `kernels[name]` are the parameters, `library` has `run_name`."""

    def __init__(self, prelude: str, file: str, text: str, real: Any, folder: Path) -> None:
        define = OPTIONS[np.dtype(real).name]
        plain = _cplusplus("-E", "-P", "-x", "c++", "-std=c++17", *define, "-", text=prelude + text)
        self.kernels = {}
        tail = ""
        for name, (bounds, params) in signatures(plain, real).items():
            self.kernels[name] = params
            tail += _trampoline(name, bounds, params)
        source = (
            f'#include "intrinsics.h"\nnamespace {{\n#line 1 "prelude.cuh"\n{prelude}\n'
            f'#line 1 "{file}.cu"\n{_DYNAMIC.sub(_dynamic, text)}\n}}\n{tail}'
        )
        self.library = ctypes.CDLL(str(_compiled(source, define, folder)))
        for name in self.kernels:
            getattr(self.library, f"run_{name}").restype = ctypes.c_char_p

    def bounds(self, name: str) -> int:
        """The most threads of a block of this kernel."""
        return int(ctypes.c_int.in_dll(self.library, f"bounds_{name}").value)


def _dynamic(match: re.Match[str]) -> str:
    kind, name = match.groups()
    return f"{kind}* const {name} = ({kind}*)cu::dynamic_shared;"


def _compiled(source: str, define: tuple[str, ...], folder: Path) -> Path:
    """The shared library of a text, compiled once for each content of it and of the files it includes."""
    everything = "\0".join(
        [source, *define, *FLAGS, *(path.read_text() for path in sorted(HERE.glob("*.h"))), version()]
    )
    stem = folder / hashlib.sha256(everything.encode()).hexdigest()[:32]
    library = stem.with_suffix(".so")
    if not library.exists():
        made = stem.with_suffix(f".{id(source)}.o")
        _cplusplus("-c", "-x", "c++", *define, f"-I{HERE}", *FLAGS, "-", "-o", str(made), text=source)
        # Linked without -fsanitize: its two handlers are our own.
        _cplusplus("-shared", str(made), "-o", str(made.with_suffix(".so")))
        made.with_suffix(".so").rename(library)
        made.unlink()
    return library


@functools.cache
def version() -> str:
    """g++'s own name for itself."""
    return _cplusplus("--version")
