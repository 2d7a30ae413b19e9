"""Makers of files that lie: bombs, forged headers, pictures that promise too much."""

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

PEAK = 4 * 2**20  # bytes a refusal may take: a few chunks of 1 MiB
GIB = 2**30
ZEROS = np.zeros((2, 4, 4), np.uint8)
Chunks = Sequence[tuple[bytes, bytes]]


class WritesAFile:
    """Unpickling this creates a file: the test looks for it afterwards."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("unpickled",)


def npy_bytes(array: Any, version: tuple[int, int] = (1, 0)) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(array), version=version)
    return stream.getvalue()


def npy_with_header(shape: str, descr: str = "'|u1'", body: bytes = bytes(32)) -> bytes:
    return npy_with_text(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}", body)


def npy_with_text(text: str, body: bytes = bytes(32)) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode("latin1") + body


def zip_bytes(*members: tuple[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return stream.getvalue()


def npz_with_labels(labels: bytes) -> bytes:
    return zip_bytes(("x.npy", npy_bytes(ZEROS)), ("y.npy", labels))


def deflated_gibibyte(start: bytes) -> bytes:
    """start and then 1 GiB of zeros as a raw deflate stream of about 1 MB, made from one repeated block."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = deflate.compress(start) + deflate.flush(zlib.Z_FULL_FLUSH)
    block = deflate.compress(bytes(2**20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    return first + block * 1024 + deflate.flush()


def gzip_bomb(start: bytes) -> bytes:
    return b"\x1f\x8b\x08" + bytes(7) + deflated_gibibyte(start) + bytes(8)


def zip_bomb(start: bytes, claimed: int, method: int = 8, name: bytes = b"images.npy") -> bytes:
    """One member that expands to 1 GiB, whatever size its headers claim."""
    body = deflated_gibibyte(start)
    common = struct.pack("<HHHHHIIIHH", 20, 0, method, 0, 33, 0, len(body), claimed, len(name), 0)
    local = b"PK\3\4" + common + name
    central = b"PK\1\2" + struct.pack("<H", 20) + common + bytes(14) + name
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local) + len(body), 0)
    return local + body + central + end


def zip_with_a_large_directory(entries: int = 40_000) -> bytes:
    one = b"PK\1\2" + struct.pack("<6H3I5H2I", 20, 20, 0, 0, 0, 33, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    size = entries * len(one)
    return b"PK\3\4" + one * entries + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, size, 4, 0)


def idx_bytes(shape: tuple[int, ...], body: bytes | None = None, kind: int = 8) -> bytes:
    body = bytes(int(np.prod(shape))) if body is None else body
    return struct.pack(f">HBB{len(shape)}I", 0, kind, len(shape), *shape) + body


def png_bytes(width: int, height: int, depth: int = 8, chunks: Chunks = (), rows: bytes | None = None) -> bytes:
    """A PNG with any header; its rows, if none are given, are one row of zeros."""
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    rows = zlib.compress(bytes(width + 1)) if rows is None else rows
    parts = [(b"IHDR", header), *chunks, (b"IDAT", rows), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def square_png(side: int = 4) -> bytes:
    return png_bytes(side, side, rows=zlib.compress(bytes(side * (side + 1))))


def flipped(data: bytes, at: int, mask: int = 0xFF) -> bytes:
    changed = bytearray(data)
    changed[at] ^= mask
    return bytes(changed)
