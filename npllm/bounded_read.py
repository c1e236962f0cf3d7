"""Reading a whole file that may come from anywhere."""

import os
from pathlib import Path

from npllm.errors import DataError


def read_bounded(path: Path, largest: int) -> bytes:
    """The content of an ordinary file of at most `largest` bytes. Raises DataError for any other: one that fills the
    memory, or a pipe or device, at which whoever reads waits for ever."""
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is no ordinary file; check the path.")
    try:
        with path.open("rb") as file:
            n_bytes = os.fstat(file.fileno()).st_size
            if n_bytes > largest:
                raise DataError(f"{path} is larger than {largest >> 20} MB, which no such file is; check the path.")
            return file.read(n_bytes)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the path.") from error
