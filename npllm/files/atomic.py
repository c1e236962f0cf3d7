"""Writes files so that a crash, a full disk or a power cut never leaves half of one.

At any time the file of a name is absent, the old one or the new one. The bytes are
written to a temporary file in the same folder and synchronised to the disk (fsync).
Only then does the file get its name, which POSIX does in one step (rename). A last
fsync makes the new name itself survive a power cut. A file that grows (a log) is
appended to and then synchronised.

When the folder that this process holds was replaced by another one of the same name,
nothing is written into it (locks.py).

All writing uses os.open, os.write, os.fsync, os.replace and os.unlink. So each
operation of the disk is one call, which a test can make fail.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from npllm.files.locks import check_held
from npllm.files.unwritable import unwritable


def write_atomically(path: str | Path, data: bytes | memoryview | Iterator[bytes]) -> None:
    """Replace the content of `path` by `data`, which may come in parts.

    A failure keeps the old file, leaves no temporary file, and raises ResourceError.
    """
    path = Path(path)
    check_held(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _write(temporary, os.O_CREAT | os.O_TRUNC, data)
        os.replace(temporary, path)
        _sync(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):  # why the write failed is what the user must know
            os.unlink(temporary)
        if not isinstance(error, OSError):
            raise
        check_held(path)  # a folder that was replaced is the real reason
        raise unwritable(path, error) from error


def append(path: Path, data: bytes, *, durably: bool = False) -> None:
    """Add `data` at the end of a file, which is created if necessary.

    durably: the data is on the disk when this returns; otherwise it is when the system
    writes it or `sync` is called. Raises ResourceError.
    """
    check_held(path)
    try:
        is_new = not path.exists()
        _write(path, os.O_CREAT | os.O_APPEND, data, durably=durably)
        if is_new and durably:
            _sync(path.parent)
    except OSError as error:
        check_held(path)
        raise unwritable(path, error) from error


def remove_temporary_files(folder: Path) -> None:
    """Delete the temporary files of a process that was killed while writing.

    Raises ResourceError.
    """
    try:
        for path in folder.glob(".*.tmp"):
            os.unlink(path)
    except OSError as error:
        raise unwritable(folder, error) from error


def sync(path: Path) -> None:
    """Make the content of a file, or the names in a folder, survive a power cut.

    Raises ResourceError.
    """
    try:
        _sync(path)
    except OSError as error:
        check_held(path)
        raise unwritable(path, error) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(path: Path, flags: int, data: bytes | memoryview | Iterator[bytes], *, durably: bool = True) -> None:
    descriptor = os.open(path, os.O_WRONLY | flags, 0o666)
    try:
        for part in data if isinstance(data, Iterator) else (data,):
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        if durably:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
