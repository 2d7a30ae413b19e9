"""Files that are there whole or not at all."""

import contextlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path` to write to; afterwards it is flushed to disk and renamed to `path`.

    If the block or the disk fails, the temporary file is removed and what `path` held before is still there.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def leftovers(folder: str | os.PathLike[str]) -> list[Path]:
    """The temporary files that a process which was killed while it wrote has left in a folder."""
    return [path for path in Path(folder).glob(".*.tmp") if re.fullmatch(r"\..+\.\d+\.tmp", path.name)]


def sweep(folder: str | os.PathLike[str]) -> None:
    """Remove the leftovers of a folder that no other process is writing to."""
    for path in leftovers(folder):
        path.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> Path:
    """A file of these bytes, replaced as a whole; returns its path."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return Path(path)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """A text file, replaced as a whole."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _flush_folder(folder: Path) -> None:
    """Make the rename itself last through a power cut, where the system can (Windows cannot open folders)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
