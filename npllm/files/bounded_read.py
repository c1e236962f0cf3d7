"""Reading a whole file that may come from anywhere."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from npllm.errors import DataError


class RefusedFile(DataError):
    """A file that is not read. kind: the words that such files are counted under, as in "2 binary"."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


def read_bounded(path: Path, largest: int) -> bytes:
    """The content of an ordinary file of at most `largest` bytes. Raises RefusedFile for any other."""
    with open_bounded(path, largest) as (file, n_bytes):
        return file.read(n_bytes)


@contextmanager
def open_bounded(path: Path, largest: int) -> Iterator[tuple[BinaryIO, int]]:
    """(an ordinary file, open to be read, its size). Raises RefusedFile for one of more than `largest` bytes, which
    would fill the memory, for a pipe or device, at which whoever reads waits for ever, and where reading fails."""
    try:
        # A pipe that nobody writes to would make a plain open wait; a device may answer it with anything.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise RefusedFile("no ordinary files", f"{path} is no ordinary file; check the path.")
        with path.open("rb") as file:
            n_bytes = os.fstat(file.fileno()).st_size
            if n_bytes > largest:
                what = f"{path} is larger than {largest >> 20} MB, which no such file is; check the path."
                raise RefusedFile("too large", what)
            yield file, n_bytes
    except OSError as error:
        raise RefusedFile("unreadable", f"{path} cannot be read ({error.strerror}); check the path.") from error
