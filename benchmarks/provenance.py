"""Where, with what and from which commit a file of results was made."""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ddpm_ref.blas import cores

LIBRARIES = (
    "numpy", "numba", "llvmlite", "scipy", "torch", "triton", "jax", "jaxlib", "cupy-cuda12x", "cupy-cuda13x",
    "threadpoolctl", "psutil",
)  # fmt: skip
ROOT = Path(__file__).resolve().parents[1]


def provenance(command: str, threads: int, level: str, gpu: bool) -> dict[str, Any]:
    """The head of a result file."""
    return {
        "machine": machine(gpu),
        "versions": versions(),
        "commit": _git("rev-parse", "HEAD"),
        **changes(),
        "command": command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "threads": threads,
        "level": level,
    }


_NOT_CODE = (":!benchmarks/results", ":!benchmarks/RESULTS.md")


def changes() -> dict[str, Any]:
    """dirty: whether files differ from the commit, null without git.  code: if they do or may, a hash of what runs."""
    known = _ran("git", "-C", str(ROOT), "status", "--porcelain", "-uno", "--", ".", *_NOT_CODE)
    dirty = None if known is None else bool(known)
    return {"dirty": dirty, "code": None if dirty is False else code_hash(ROOT)}


def code_hash(root: Path) -> str:
    """SHA-256 of every .py, .cu and .cuh file of the packages and the benchmarks, names and bytes."""
    found = hashlib.sha256()
    folders = [root / name for name in ("ddpm_ref", "backends", "benchmarks")]
    for path in sorted(
        path for folder in folders for path in folder.rglob("*") if path.suffix in (".py", ".cu", ".cuh")
    ):
        found.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


def load_average() -> float | None:
    """Processes that ran or waited in the last minute; null where the system does not tell."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def machine(with_gpu: bool) -> dict[str, Any]:
    """What is known of this machine; null where the system does not tell."""
    count, card = cores(), gpu() if with_gpu else None
    cpu, kind = _cpu_model(), _llvm_name()
    short = cpu.replace("(R)", "").replace("(TM)", "").strip()
    name = f"{count}x {short}" + (f" ({kind})" if kind else "")
    return {
        "name": card["name"] if card else name,
        "cpu": cpu,
        "cpu_kind": kind,
        "cores": count,
        "memory_gib": memory_gib(),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "clock_mhz": _clock(),
        "gpu": card,
        "os": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Python, every library that may be timed, and what NumPy multiplies matrices with."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    try:
        import numpy as np  # noqa: F401  (loads the BLAS that is asked about)
        import threadpoolctl
    except ImportError:
        return found
    blas = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
    if blas:
        one = blas[0]
        found["blas"] = " ".join(str(one[key]) for key in ("internal_api", "version", "architecture") if one.get(key))
    return found


def _cpu_model() -> str:
    text = _read("/proc/cpuinfo") or ""
    names = [line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _llvm_name() -> str | None:
    """The kind of processor as LLVM calls it, such as znver5, where Numba is installed."""
    try:
        from llvmlite import binding
    except ImportError:
        return None
    return str(binding.get_host_cpu_name())


def memory_gib() -> float | None:
    """Of this machine."""
    try:
        import psutil
    except ImportError:
        try:
            return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
        except (AttributeError, ValueError, OSError):
            return None
    return round(psutil.virtual_memory().total / 2**30, 1)


def _clock() -> float | None:
    try:
        import psutil

        clock = psutil.cpu_freq()
    except (ImportError, OSError, AttributeError, NotImplementedError):
        return None
    return round(clock.current) if clock and clock.current else None


def gpu() -> dict[str, Any] | None:
    """The card as nvidia-smi tells it: name, memory, driver, and the clocks it may run at."""
    fields = "name,memory.total,driver_version,clocks.max.sm,clocks.max.mem,power.limit"
    line = _run("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits").splitlines()[:1]
    if not line:
        return None
    name, memory, driver, clock, memory_clock, power = (part.strip() for part in line[0].split(","))
    return {
        "name": name, "memory_mib": memory, "driver": driver, "clock_mhz": clock, "memory_clock_mhz": memory_clock,
        "power_watts": power,
    }  # fmt: skip


def _git(*words: str) -> str:
    return _run("git", "-C", str(ROOT), *words)


def _run(*words: str) -> str:
    """What a command prints; nothing if it is not there or fails."""
    return _ran(*words) or ""


def _ran(*words: str) -> str | None:
    """What a command prints; None if it is not there or fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None
