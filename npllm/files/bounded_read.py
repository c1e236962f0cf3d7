"""Reads a whole file that may come from an untrusted source."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from npllm.errors import DataError


class RefusedFile(DataError):
    """A file that is refused.

    kind: the words under which such files are counted, as in "2 binary".
    """

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


def read_bounded(path: Path, largest: int) -> bytes:
    """Return the content of an ordinary file of at most `largest` bytes.

    Raises RefusedFile for any other.
    """
    with open_bounded(path, largest) as (file, n_bytes):
        return file.read(n_bytes)


@contextmanager
def open_bounded(path: Path, largest: int) -> Iterator[tuple[BinaryIO, int]]:
    """Yield an ordinary file, open for reading, and its size.

    Raises RefusedFile for a file of more than `largest` bytes, which would fill the
    memory; for a pipe or device, where reading may wait forever; and where reading
    fails.
    """
    try:
        # Opening a pipe that nobody writes to waits forever; a device may do anything.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise RefusedFile("no ordinary files", f"{path} is no ordinary file; check the path.")
        with path.open("rb") as file:
            n_bytes = os.fstat(file.fileno()).st_size
            if n_bytes > largest:
                what = f"{path} is larger than {largest >> 20} MB, the largest size that is read; check the path."
                raise RefusedFile("too large", what)
            yield file, n_bytes
    except OSError as error:
        raise RefusedFile("unreadable", f"{path} cannot be read ({error.strerror}); check the path.") from error
