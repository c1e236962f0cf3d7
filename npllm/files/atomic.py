"""Writing files so that a crash, a full disk or a power cut never leaves half of one.

Under its name a file is either absent, the old one or the new one: the bytes go to a temporary file in the same
folder, reach the disk (fsync), and only then take over the name, which POSIX does in one step (rename). The last fsync
makes the new name itself survive a power cut. A file that grows (a log) is appended to and then synchronised.

Nothing is written into a folder that has taken the name of one that this process holds (locks.py).

Everything goes through os.open, os.write, os.fsync, os.replace and os.unlink: one call, one thing that a disk does.
"""

import contextlib
import os
from pathlib import Path

from npllm.errors import ResourceError
from npllm.files.locks import check_held


def write_atomically(path: str | Path, data: bytes | memoryview) -> None:
    """Replace `path` by `data`. A failure leaves the old file, no temporary file, and raises ResourceError."""
    path = Path(path)
    check_held(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _write(temporary, os.O_CREAT | os.O_TRUNC, data)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        check_held(path)  # what was taken away has no full disk
        raise ResourceError(
            f"{path} cannot be written ({error.strerror}): free disk space there or choose another folder."
        ) from error
    finally:
        with contextlib.suppress(FileNotFoundError):  # after a success the name is gone already
            os.unlink(temporary)


def append(path: Path, data: bytes, *, durably: bool = False) -> None:
    """Add `data` at the end of a file, made if need be. durably: on the disk when this returns, else when the system
    finds the time or `sync` is called. Raises ResourceError."""
    check_held(path)
    try:
        is_new = not path.exists()
        _write(path, os.O_CREAT | os.O_APPEND, data, durably=durably)
        if is_new and durably:
            _sync(path.parent)
    except OSError as error:
        check_held(path)
        raise ResourceError(f"{path} cannot be written ({error.strerror}); free disk space, then resume.") from error


def remove_temporary_files(folder: Path) -> None:
    """Delete what a killed process left of its writing."""
    for path in folder.glob(".*.tmp"):
        os.unlink(path)


def sync(path: Path) -> None:
    """Until the content of a file, or the names in a folder, would survive a power cut. Raises ResourceError."""
    try:
        _sync(path)
    except OSError as error:
        check_held(path)
        raise ResourceError(f"{path} cannot be written ({error.strerror}); free disk space, then resume.") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(path: Path, flags: int, data: bytes | memoryview, *, durably: bool = True) -> None:
    descriptor = os.open(path, os.O_WRONLY | flags, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        if durably:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
