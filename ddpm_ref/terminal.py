"""What every command says and asks of the terminal and of the folder it writes to."""

import argparse
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ddpm_ref.extras import import_extra
from ddpm_ref.files.run import open_folder


def say(text: str) -> None:
    """A line for the user."""
    print(text, flush=True)


@contextmanager
def bar(total: int, what: str, unit: str, done: int = 0) -> Iterator[Any]:
    """A progress bar with the time left; silent when standard error is no terminal."""
    tqdm = import_extra("tqdm", "a progress bar").tqdm
    with tqdm(total=total, initial=done, desc=what, unit=unit, disable=None, dynamic_ncols=True, smoothing=0.05) as one:
        yield one


def quote(path: str | Path) -> str:
    """A path as it can be pasted into a shell."""
    return shlex.quote(str(path))


def need(*modules: str) -> None:
    """Import what a command will use at its end before it begins, so that no work is lost for want of it."""
    for module in modules:
        import_extra(module, "this command")


def new_folder(default: str | Path) -> Path:
    """The first of default, default-2, … that is not yet there."""
    folder, number = Path(default), 1
    while folder.exists():
        number += 1
        folder = Path(f"{default}-{number}")
    return folder


def out_folder(args: argparse.Namespace, default: str | Path) -> Path:
    """The folder that --out names, or a new one called like `default`: made, and proved to be one to write to."""
    return open_folder(Path(args.out) if args.out else new_folder(default))


def wrote(paths: Iterable[Path]) -> None:
    """A line for each file."""
    for path in paths:
        say(f"wrote {path}")
