"""Text files: which of them a folder holds, and their content."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from npllm.errors import DataError
from npllm.files.bounded_read import RefusedFile, open_bounded
from npllm.files.text_format import SIGNATURE_BYTES, decode, refuse_other_formats

LARGEST_TEXT = 1 << 30  # bytes; preparing a text takes several times its size in memory
CHUNK = 1 << 20  # bytes


class Folder(NamedTuple):
    """The files below a folder, and (kind, path) of each that is left out."""

    files: list[Path]
    left_out: list[tuple[str, str]]


def files_below(folder: Path, unwanted: Collection[str] = (), *, follow: bool = True) -> Folder:
    """Return the ordinary files below a folder.

    Hidden files and those in folders called `unwanted` are left out. follow: enter
    folders behind symbolic links too, each folder once; a folder that also lies below
    `folder` itself keeps its own name. Raises DataError for a folder that cannot be
    read.
    """
    found, entered, linked = Folder([], []), set(), [folder]
    for top in linked:  # grows during the loop
        for parent, folders, names in os.walk(top, onerror=_refuse):
            status = os.stat(parent)
            if (status.st_dev, status.st_ino) in entered:
                folders.clear()
                continue
            entered.add((status.st_dev, status.st_ino))
            found.left_out.extend(
                ("hidden", os.path.join(parent, name)) for name in sorted([*folders, *names]) if name.startswith(".")
            )
            visible = [name for name in sorted(folders) if not name.startswith(".") and name not in unwanted]
            folders[:] = visible  # os.walk enters those that are not links
            linked += [path for name in visible if follow and (path := Path(parent, name)).is_symlink()]
            for path in (Path(parent, name) for name in sorted(names) if not name.startswith(".")):
                if path.is_file():
                    found.files.append(path)
                else:  # reading a pipe could wait forever
                    kind = "broken links" if path.is_symlink() and not path.exists() else "no ordinary files"
                    found.left_out.append((kind, str(path)))
    return found


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read ({error.strerror}); make it readable or move it away.")


def read_text(path: Path) -> str:
    """Return the text of a file.

    Line ends stay as they are, so that byte counts are the file's, but for a byte order
    mark, which is no part of the text.

    A binary file is read only up to its first zero byte. Raises RefusedFile for a file
    that is not text.
    """
    with open_bounded(path, LARGEST_TEXT) as (file, n_bytes):
        if not n_bytes:
            raise RefusedFile("empty", f"{path} is empty; name a file with text.")
        content = bytearray()
        while part := file.read(min(CHUNK, n_bytes - len(content))):
            if not content:
                refuse_other_formats(path, part[:SIGNATURE_BYTES])
            if (zero := part.find(0)) >= 0:
                offset = len(content) + zero
                message = f"{path} is binary (a zero byte at offset {offset}); name a file with UTF-8 text."
                raise RefusedFile("binary", message)
            content += part
    return decode(path, content)
