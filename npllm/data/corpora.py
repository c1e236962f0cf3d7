"""Raw text: where it comes from, and which part of it the model never trains on.

A validation loss means something only if its text stays unseen for good. So the split is a property of the file, not
of the run: a file is held out when the SHA-256 of its relative path, read as a fraction of 2^256, is below
`val_fraction`. The order of the files, the machine and the files added later change nothing for a file that is already
there, while a shuffled list would move old validation files into training as soon as one file joins. Whole files are
held out, because two halves of one file share names and phrases and would flatter the loss. A corpus of a single
document has no other place to cut than its inside: the beginning trains, the end validates.
"""

import glob
import hashlib
import importlib
import itertools
import os
import sysconfig
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from npllm.errors import ConfigError, DataError

# Folders of the standard library that hold tests or other people's packages, and two that would spoil the split:
# `encodings` is a hundred code page tables, near copies of one another, and `pydoc_data` is the source `pydoc` again.
NOT_LIBRARY_SOURCE = {
    "test", "tests", "idle_test", "site-packages", "dist-packages", "ensurepip", "_vendor", "encodings", "pydoc_data",
}  # fmt: skip
GENERATED_PREFIXES = ("config-", "_sysconfigdata")  # written when Python was built on this machine
GLOB_CHARACTERS = set("*?[")


@dataclass(frozen=True)
class Document:
    """One text with the name that decides its side of the split: a path relative to its source, or a topic."""

    name: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """Documents to train on and documents held out.

    train_bytes and val_bytes count UTF-8 bytes, the denominator of bits per byte. sha256 covers the names, the bytes
    and the side of every document, in order. skipped lists the files that a folder, a pattern or the standard library
    offered and that are empty, unreadable or not UTF-8 text.
    """

    train: list[Document]
    val: list[Document]
    train_bytes: int
    val_bytes: int
    sha256: str
    skipped: list[str]


def load_corpus(source: str | list[str] | tuple[str, ...], val_fraction: float = 0.05) -> Corpus:
    """Read one source or several into training and validation documents.

    source: `stdlib` (the Python standard library's own `.py` files), `pydoc` (the prose of the language reference, one
    document a topic), a file, a folder (every visible text file below it) or a glob pattern (`**` is recursive). A
    file reached twice counts once. val_fraction: the share of files held out, or of characters when there is only one
    document; at least one document falls on each side.

    Raises ConfigError for a fraction outside (0, 1); DataError when nothing is found, or when a file named by itself
    is empty, binary or not UTF-8.
    """
    if not 0 < val_fraction < 1:
        raise ConfigError(f"data.val_fraction is {val_fraction}: give a number between 0 and 1, such as 0.05.")
    sources = [source] if isinstance(source, str) else list(source)
    documents, skipped = _read_sources(sources)
    if not documents:
        raise DataError(f"data.source {', '.join(sources) or '(empty)'} holds no UTF-8 text: name a file with text.")
    train, val = _split(documents, val_fraction)
    train_bytes, val_bytes = (sum(len(document.text.encode()) for document in side) for side in (train, val))
    return Corpus(train, val, train_bytes, val_bytes, _digest(train, val), skipped)


def _read_sources(sources: list[str]) -> tuple[list[Document], list[str]]:
    documents, skipped, seen = [], [], set()
    for source in sources:
        if source == "pydoc":
            documents += _pydoc_topics()
            continue
        for name, path in _find_files(source):
            real = path.resolve()
            if real in seen:  # the same file under two names could land on both sides of the split
                continue
            seen.add(real)
            try:
                documents.append(Document(name, read_text(path)))
            except DataError:
                if path == Path(source).expanduser():  # asked for by name, not met on the way
                    raise
                skipped.append(str(path))
    return documents, skipped


def _find_files(source: str) -> list[tuple[str, Path]]:
    """(name, path) of every file of a source, in the order of the names (code points, the same on every machine)."""
    path = Path(source).expanduser()
    if source == "stdlib":
        root, paths = Path(sysconfig.get_path("stdlib")), _standard_library()
    elif source and os.path.isdir(path):  # Path("") would be the current folder
        root, paths = path, _visible_files(path)
    elif os.path.isfile(path):
        root, paths = path.parent, [path]
    else:
        root = Path(*itertools.takewhile(lambda part: not GLOB_CHARACTERS & set(part), path.parts))
        paths = [Path(match) for match in glob.glob(str(path), recursive=True) if os.path.isfile(match)]
        if not paths:
            raise DataError(
                f"data.source {source!r} is no file, no folder, no pattern that matches a file and neither stdlib nor "
                "pydoc: check the path."
            )
    return sorted((found.relative_to(root).as_posix(), found) for found in paths)


def _visible_files(folder: Path, unwanted: Collection[str] = ()) -> Iterator[Path]:
    """Regular files below a folder, without hidden ones and without the folders called `unwanted`."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}): make it readable or move it away.")

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in unwanted]
        visible = [Path(parent, name) for name in names if not name.startswith(".")]
        yield from (path for path in visible if path.is_file())  # reading a pipe could block for ever


def _standard_library() -> Iterator[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in _visible_files(root, NOT_LIBRARY_SOURCE):
        generated = path.relative_to(root).parts[0].startswith(GENERATED_PREFIXES)
        if path.suffix == ".py" and not generated and path.stat().st_size > 0:  # a package's __init__.py may be empty
            yield path


def _pydoc_topics() -> list[Document]:
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise DataError("data.source pydoc needs pydoc_data, which this Python lacks: name another source.") from error
    return [Document(name, topics[name]) for name in sorted(topics)]


def read_text(path: Path) -> str:
    """The text of a file, line ends as they are: the bytes counted must be the bytes of the file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): name a readable text file.") from error
    if not data:
        raise DataError(f"{path} is empty: name a file with text.")
    if (zero := data.find(0)) >= 0:
        raise DataError(f"{path} is binary (a zero byte at offset {zero}): name a file with UTF-8 text.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 (invalid byte 0x{data[error.start]:02x} at offset {error.start}): "
            "convert it to UTF-8, for example with iconv."
        ) from error


def _split(documents: list[Document], val_fraction: float) -> tuple[list[Document], list[Document]]:
    if len(documents) == 1:
        return _split_inside(documents[0], val_fraction)
    places = [place_of(document.name) for document in documents]
    held_out = {index for index, place in enumerate(places) if place < val_fraction}
    if not held_out:  # a handful of files can all fall on one side: move the one nearest to the border
        held_out = {places.index(min(places))}
    elif len(held_out) == len(documents):
        held_out.remove(places.index(max(places)))
    train = [document for index, document in enumerate(documents) if index not in held_out]
    return train, [documents[index] for index in sorted(held_out)]


def _split_inside(document: Document, val_fraction: float) -> tuple[list[Document], list[Document]]:
    text = document.text
    if len(text) < 2:
        raise DataError(f"{document.name} has a single character, too few to train and validate on: give more text.")
    border = min(max(int(len(text) * (1 - val_fraction)), 1), len(text) - 1)
    return [Document(document.name, text[:border])], [Document(document.name, text[border:])]


def place_of(name: str) -> float:
    """A point in [0, 1) fixed by the name alone."""
    return int.from_bytes(hashlib.sha256(_name_bytes(name)).digest()[:6], "big") / 2**48  # 48 bits: exact in a float


def _name_bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")  # file names may hold bytes that are not UTF-8


def _digest(train: list[Document], val: list[Document]) -> str:
    """SHA-256 over both sides. Each field is preceded by its length, so no two corpora give the same stream."""
    digest = hashlib.sha256()
    for side in (train, val):
        digest.update(len(side).to_bytes(8, "little"))
        for document in side:
            for field in (_name_bytes(document.name), document.text.encode()):
                digest.update(len(field).to_bytes(8, "little"))
                digest.update(field)
    return digest.hexdigest()
