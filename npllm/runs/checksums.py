"""SHA256SUMS: the hashes of the files of a folder, one a line, as `sha256sum --check SHA256SUMS` reads them."""

import hashlib
from pathlib import Path

from npllm.data.records import LARGEST_FILE
from npllm.errors import DataError
from npllm.files.atomic import write_atomically
from npllm.files.bounded_read import read_bounded

NAME = "SHA256SUMS"
LARGEST_LIST = 1 << 20  # bytes


def write_checksums(folder: Path) -> None:
    """Write down the hashes of all files of the folder."""
    files = sorted(path for path in folder.iterdir() if path.name != NAME)
    write_atomically(folder / NAME, "".join(f"{_sha256(path)}  {path.name}\n" for path in files).encode())


def check_list(path: Path) -> None:
    """Raise DataError unless all files that a SHA256SUMS names are there."""
    for line in _lines(path):
        if not (path.parent / line[66:]).is_file():
            raise DataError(f"{path} names {line[66:]!r:.80}, which is not there; put back the file of the run.")


def checked(path: Path) -> Path:
    """The path of a file that is as it was when its folder's hashes were written. Raises DataError for any other."""
    if f"{_sha256(path)}  {path.name}" not in _lines(path.parent / NAME):
        raise DataError(f"{path} is not what {NAME} beside it says; put back the file that belongs to the run.")
    return path


def _lines(path: Path) -> list[str]:
    """64 digits, two spaces and a name each."""
    return read_bounded(path, LARGEST_LIST).decode("utf-8", errors="replace").splitlines()


def _sha256(path: Path) -> str:
    return hashlib.sha256(read_bounded(path, LARGEST_FILE)).hexdigest()
