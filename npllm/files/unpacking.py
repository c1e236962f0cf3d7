"""Unpacks compressed files piece by piece.

A small file can unpack to terabytes, or ask for gigabytes of memory to be unpacked. So
the ratio of both sizes and the memory are bounded.
"""

import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import BinaryIO

from npllm.files.bounded_read import RefusedFile

CHUNK = 1 << 20  # bytes
LARGEST_RATIO = 200  # of unpacked to packed bytes; ordinary text has 3 to 10
ALWAYS_UNPACKED = 64 << 20  # bytes, whatever the ratio
LARGEST_WINDOW = 1 << 27  # bytes; more than the best level of xz and zstd uses
SUFFIXES = (".gz", ".xz", ".zst")


def unpacked(path: Path, file: BinaryIO, n_bytes: int, start: bytes) -> Iterator[bytes] | None:
    """Return the content of a compressed file in pieces, or None for any other file.

    n_bytes: its size. start: its first bytes.

    Raises RefusedFile for a file that is damaged, that unpacks to far more than its
    size, or that needs a package that is not installed.
    """
    for signature, (name, open_pieces) in KINDS.items():
        if start.startswith(signature):
            return _bounded(path, name, open_pieces(path, file), max(ALWAYS_UNPACKED, LARGEST_RATIO * n_bytes))
    return None


def _bounded(path: Path, name: str, pieces: Iterator[bytes], most: int) -> Iterator[bytes]:
    n_bytes = 0
    try:
        for piece in pieces:
            n_bytes += len(piece)
            if n_bytes > most:
                raise RefusedFile(
                    "too large unpacked",
                    f"{path} unpacks to more than {LARGEST_RATIO} times its size, which text does not; if you trust "
                    "it, unpack it yourself.",
                )
            yield piece
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError, ZstdError) as error:
        raise RefusedFile("damaged", f"{path} is {name}, but damaged ({error}); get the file again.") from error


class ZstdError(Exception):
    """The reason why a zstd file cannot be unpacked."""


def _gzip(path: Path, file: BinaryIO) -> Iterator[bytes]:
    file.seek(0)
    with gzip.GzipFile(fileobj=file) as stream:
        while piece := stream.read(CHUNK):
            yield piece


def _xz(path: Path, file: BinaryIO) -> Iterator[bytes]:
    """LZMAFile does the same, but has no limit for its memory."""
    file.seek(0)
    packed = file.read(CHUNK)
    while packed:
        stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=LARGEST_WINDOW)
        while not stream.eof:
            if not packed and stream.needs_input and not (packed := file.read(CHUNK)):
                raise EOFError("it ends too early")
            yield stream.decompress(packed, CHUNK)
            packed = b""
        packed = (stream.unused_data or file.read(CHUNK)).lstrip(b"\0")  # zeros may follow a stream


def _zstd(path: Path, file: BinaryIO) -> Iterator[bytes]:
    try:
        zstandard = import_module("zstandard")
    except ModuleNotFoundError:
        raise RefusedFile(
            "zst without the package zstandard",
            f"{path} is compressed by zstd, which needs the package zstandard; install it (pip install 'npllm[zst]'), "
            "or unpack the file with zstd -d.",
        ) from None
    file.seek(0)
    unpacker = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW)
    try:
        with unpacker.stream_reader(file, read_across_frames=True, closefd=False) as stream:
            while piece := stream.read(CHUNK):
                yield piece
    except zstandard.ZstdError as error:
        raise ZstdError(str(error)) from error


Open = Callable[[Path, BinaryIO], Iterator[bytes]]
KINDS: dict[bytes, tuple[str, Open]] = {
    b"\x1f\x8b": ("compressed by gzip", _gzip),
    b"\xfd7zXZ\x00": ("compressed by xz", _xz),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", _zstd),
}
