"""SHA256SUMS: the hashes of a folder's files, in the format of `sha256sum --check`."""

import hashlib
import re
from pathlib import Path

from npllm.data.rows import LARGEST_FILE
from npllm.errors import DataError
from npllm.files.atomic import write_atomically
from npllm.files.bounded_read import read_bounded

NAME = "SHA256SUMS"
LARGEST_LIST = 1 << 20  # bytes


def write_checksums(folder: Path) -> None:
    """Write SHA256SUMS with the hashes of all files of the folder."""
    files = sorted(path for path in folder.iterdir() if path.name != NAME)
    write_atomically(folder / NAME, "".join(f"{_sha256(path)}  {path.name}\n" for path in files).encode())


def check_list(path: Path) -> None:
    """Raise DataError unless a SHA256SUMS is one, and all files that it names exist."""
    for number, line in enumerate(_lines(path), 1):
        if not re.fullmatch("[0-9a-f]{64}  .+", line):
            raise DataError(f"{path}, line {number}, is not a hash and a name; put back the file of the run.")
        if not (path.parent / line[66:]).is_file():
            raise DataError(f"{path} names {line[66:]!r:.80}, which is missing; put back the file of the run.")


def checked(path: Path) -> Path:
    """The given path. Raises DataError unless the file has its hash in SHA256SUMS."""
    if f"{_sha256(path)}  {path.name}" not in _lines(path.parent / NAME):
        raise DataError(f"{path} does not have the hash in {NAME} beside it; put back the file of the run.")
    return path


def _lines(path: Path) -> list[str]:
    """The lines of a SHA256SUMS: 64 digits, two spaces and a name each."""
    return read_bounded(path, LARGEST_LIST).decode("utf-8", errors="replace").splitlines()


def _sha256(path: Path) -> str:
    return hashlib.sha256(read_bounded(path, LARGEST_FILE)).hexdigest()
