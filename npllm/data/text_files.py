"""Text files: which of them a folder holds, and their content."""

import codecs
import fnmatch
import itertools
import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from npllm.data.html_text import text_of_html
from npllm.errors import DataError
from npllm.files.bounded_read import RefusedFile, open_bounded
from npllm.files.text_format import BYTE_ORDER_MARK, SIGNATURE_BYTES, NotUtf8, refuse_other_formats
from npllm.files.unpacking import SUFFIXES, unpacked

LARGEST_TEXT = 1 << 34  # bytes; a text is read piece by piece
LARGEST_IN_MEMORY = 1 << 30  # bytes, of a text that is read as a whole
LARGEST_PAGE = 64 << 20  # characters, of an HTML page
LONGEST_LINE = 64 << 20  # characters
CHUNK = 1 << 20  # bytes
HTML = (".html", ".htm", ".xhtml")
# Names, and paths below the source, that `data.ignore` leaves out by default: what
# programs have made. Hidden files, such as .git, are always left out.
IGNORED = ("__pycache__", "node_modules", "site-packages", "*.egg-info", "*.min.js", "*.min.css", "*.lock")


class Folder(NamedTuple):
    """The files below a folder, and (kind, path) of each that is left out."""

    files: list[Path]
    left_out: list[tuple[str, str]]


def files_below(folder: Path, ignore: Collection[str] = (), *, follow: bool = True) -> Folder:
    """Return the ordinary files below a folder.

    Hidden files are left out, and so is what a pattern of `ignore` fits: the name of a
    file or folder, or its path below `folder`. follow: enter folders behind symbolic
    links too, each folder once; a folder that also lies below `folder` itself keeps its
    own name. Raises DataError for a folder that cannot be read.
    """
    found, entered, linked = Folder([], []), set(), [folder]
    for top in linked:  # grows during the loop
        for parent, folders, names in os.walk(top, onerror=_refuse):
            status = os.stat(parent)
            if (status.st_dev, status.st_ino) in entered:
                folders.clear()
                continue
            entered.add((status.st_dev, status.st_ino))
            below = os.path.relpath(parent, folder)
            kinds = {name: _unwanted(below, name, ignore) for name in (*folders, *names)}
            found.left_out.extend((kinds[name], os.path.join(parent, name)) for name in sorted(kinds) if kinds[name])
            folders[:] = [name for name in sorted(folders) if not kinds[name]]  # os.walk enters those that are no links
            linked += [path for name in folders if follow and (path := Path(parent, name)).is_symlink()]
            for path in (Path(parent, name) for name in sorted(names) if not kinds[name]):
                if path.is_file():
                    found.files.append(path)
                else:  # reading a pipe could wait forever
                    kind = "broken links" if path.is_symlink() and not path.exists() else "no ordinary files"
                    found.left_out.append((kind, str(path)))
    return found


def _unwanted(parent: str, name: str, ignore: Collection[str]) -> str | None:
    """Why a file or folder is left out, or None."""
    if name.startswith("."):
        return "hidden"
    return "ignored" if fits(os.path.normpath(os.path.join(parent, name)), ignore) else None


def fits(path: str, patterns: Collection[str]) -> bool:
    """Whether a pattern fits a path or its last name."""
    return any(fnmatch.fnmatchcase(text, pattern) for text in (path, os.path.basename(path)) for pattern in patterns)


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read ({error.strerror}); make it readable or move it away.")


def suffix_of(path: Path) -> str:
    """The suffix of a file name in lower case, without that of a compressed file."""
    name = path.name.lower()
    return Path(next((name.removesuffix(end) for end in SUFFIXES if name.endswith(end)), name)).suffix


def read_text(path: Path) -> str:
    """Return the text of a file, as `text_pieces` does."""
    pieces, n_characters = [], 0
    for piece in text_pieces(path):
        pieces.append(piece)
        n_characters += len(piece)
        if n_characters > LARGEST_IN_MEMORY:
            raise RefusedFile("too large", f"{path} has more than {LARGEST_IN_MEMORY >> 20} MB of text; split it.")
    return "".join(pieces)


def text_pieces(path: Path, encoding: str = "utf-8") -> Iterator[str]:
    """Yield the text of a file in pieces.

    A file compressed by gzip, xz or zstd is unpacked, and an HTML page gives its
    visible text. Line ends stay as they are, so that byte counts are the file's, but
    for a byte order mark, which is no part of the text.

    A binary file is read only up to its first zero byte. Raises RefusedFile for a file
    that is not text, and NotUtf8, which is one, for text in another encoding.
    """
    with open_bounded(path, LARGEST_TEXT) as (file, n_bytes):
        if not n_bytes:
            raise RefusedFile("empty", f"{path} is empty; name a file with text.")
        start = file.read(CHUNK)
        chunks = unpacked(path, file, n_bytes, start)
        if chunks is None:
            chunks = itertools.chain([start], iter(lambda: file.read(CHUNK), b""))
        pieces = decoded(path, _bounded(path, chunks), encoding)
        yield from [_page(path, pieces)] if suffix_of(path) in HTML else pieces


def _bounded(path: Path, chunks: Iterable[bytes]) -> Iterator[bytes]:
    n_bytes = 0
    for chunk in chunks:
        n_bytes += len(chunk)
        if n_bytes > LARGEST_TEXT:
            raise RefusedFile("too large", f"{path} has more than {LARGEST_TEXT >> 20} MB of text; split it.")
        yield chunk


def decoded(path: Path, chunks: Iterator[bytes], encoding: str) -> Iterator[str]:
    """Decode the bytes of a file piece by piece."""
    decoder = codecs.getincrementaldecoder(encoding)()
    wide = codecs.lookup(encoding).name.startswith(("utf-16", "utf-32"))  # has zero bytes in every text
    offset, n_lines, n_characters = 0, 0, 0  # decoded so far
    for chunk in itertools.chain(chunks, [b""]):
        if not offset and not wide:
            refuse_other_formats(path, chunk[:SIGNATURE_BYTES])
        if not wide and (zero := chunk.find(0)) >= 0:
            message = f"{path} is binary (a zero byte at offset {offset + zero}); name a file with UTF-8 text."
            raise RefusedFile("binary", message)
        waiting = len(decoder.getstate()[0])
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            line = n_lines + error.object.count(b"\n", 0, error.start) + 1
            place = offset - waiting + error.start
            raise NotUtf8.at(path, encoding, error.object[error.start], line, place) from error
        offset, n_lines = offset + len(chunk), n_lines + text.count("\n")
        text, n_characters = text if n_characters else text.removeprefix(BYTE_ORDER_MARK), n_characters + len(text)
        if text:
            yield text


def _page(path: Path, pieces: Iterator[str]) -> str:
    page = ""
    for piece in pieces:
        page += piece
        if len(page) > LARGEST_PAGE:
            raise RefusedFile("too large", f"{path} is an HTML page of more than {LARGEST_PAGE >> 20} MB; split it.")
    return text_of_html(page)


def lines_of(path: Path, pieces: Iterable[str]) -> Iterator[str]:
    """The lines of a text with their line feeds. Raises RefusedFile for a line of more
    than LONGEST_LINE characters."""
    waiting: list[str] = []
    for piece in pieces:
        *lines, rest = re.split(r"(?<=\n)", piece)
        for line in lines:
            yield "".join([*waiting, line])
            waiting = []
        waiting.append(rest)
        if sum(map(len, waiting)) > LONGEST_LINE:
            raise RefusedFile("with too long lines", f"{path} has a line of more than {LONGEST_LINE >> 20} MB; cut it.")
    if any(waiting):
        yield "".join(waiting)
