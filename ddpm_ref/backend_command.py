"""`ddpm-ref backends`, and the line by which the other commands say what they run on."""

import argparse
import textwrap

from ddpm_ref.backend import Backend, Description
from ddpm_ref.checks import check_int
from ddpm_ref.discovery import FASTEST, get_backend, survey, why_not


def taken(backend: Backend, args: argparse.Namespace) -> str:
    """Which backend a command took; where nobody asked for one and the fastest is missing, also why."""
    line = f"backend: {backend.describe()}"
    if args.backend is None and backend.name != FASTEST and (reason := why_not(FASTEST)):
        line += f"; {FASTEST} is faster, but {reason}"
    return line


def backends_command(args: argparse.Namespace) -> int:
    """List every backend, or check one."""
    if args.threads is not None:
        check_int("--threads", args.threads, 1)
    if args.check is not None:
        return _check(get_backend(args.check, args.threads))
    for name, what in survey(args.threads).items():
        if isinstance(what, Description):
            print(f"{name:11s} {what.version}; threads: {what.threads}; device: {what.device}")
            lists = {"its own": ", ".join(what.own), "NumPy's": ", ".join(what.inherited), "note": what.note}
            if not what.own:
                lists["NumPy's"] = "all operations"
            for title, text in lists.items():
                if text:
                    print(textwrap.fill(f"{title + ':':9s} {text}", 120, initial_indent=_IN, subsequent_indent=_DEEP))
        else:
            print(textwrap.fill(f"not available: {what}", 120, initial_indent=f"{name:12s}", subsequent_indent=_IN))
    print(f"\nTaken unless --backend says otherwise: {get_backend().name}")
    return 0


_IN, _DEEP = " " * 12, " " * 22


def _check(backend: Backend) -> int:
    """Run `check_backend` and say what it found: exit status 0 or 1."""
    from ddpm_ref.backend_check import check_backend

    print(f"checking {backend.describe()}")
    try:
        report = check_backend(backend)
    except AssertionError as error:
        print(error)
        return 1
    print(report)
    return 0
