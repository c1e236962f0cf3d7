"""Raw text: where it comes from, and which part of it is held out for validation.

A validation loss means something only if its text is never trained on. So the split is
a property of the file, not of the run: a file is held out when the SHA-256 of its
relative path, read as a fraction of 2^256, is below `val_fraction`. Neither the order
of the files, nor the machine, nor files that are added later move a file to the other
side. (A shuffled list would move old validation files into training as soon as one file
is added.) Whole files are held out, because two halves of one file share names and
phrases, which would make the loss too low. Files with the same text are on the same
side. Where one file holds several documents, each document counts as a file does, and
the hash of its text decides.

With a few files of different sizes, whole documents may not come near `val_fraction`.
Then each document is cut: its beginning trains, its end validates.
"""

import glob
import hashlib
import importlib
import itertools
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from npllm.data.counted import counted
from npllm.data.records import scan, string_field
from npllm.data.text_files import Folder, files_below, read_text
from npllm.errors import ConfigError, DataError
from npllm.files.bounded_read import RefusedFile
from npllm.files.user_path import user_path

# Folders of the standard library that hold tests or other people's packages, and two
# that would spoil the split: `encodings` holds a hundred code page tables, which are
# nearly copies of one another, and `pydoc_data` is the text of the source `pydoc`.
NOT_LIBRARY_SOURCE = {
    "test", "tests", "idle_test", "site-packages", "dist-packages", "ensurepip", "_vendor", "encodings", "pydoc_data",
}  # fmt: skip
GENERATED_PREFIXES = ("config-", "_sysconfigdata")  # written when Python was built on this machine
GLOB_CHARACTERS = set("*?[")
JSON_LINES = (".jsonl", ".ndjson")
LEAST_END = 20  # characters; a document whose end would be shorter is not cut
NEAR = (0.1, 2.0)  # times val_fraction: bounds of the share that whole documents hold out


@dataclass(frozen=True)
class Document:
    """One text with its name: a path relative to its source, or a topic.

    key: hashed instead of the name to choose the side of the split; "" = the name.
    first_line: the line of the file that the text starts in, where it is the end of a
    file that was cut.
    """

    name: str
    text: str
    key: str = ""
    first_line: int = 1


@dataclass(frozen=True)
class Corpus:
    """Documents to train on and documents held out.

    train_bytes and val_bytes count UTF-8 bytes, the denominator of bits per byte.
    sha256 covers the name, the bytes and the side of every document, in order. remarks:
    lines about what was left out. held_out: a short description of val.
    """

    train: list[Document]
    val: list[Document]
    train_bytes: int
    val_bytes: int
    sha256: str
    remarks: list[str]
    held_out: str = ""


def load_corpus(
    source: str | list[str] | tuple[str, ...],
    val_fraction: float = 0.05,
    *,
    separator: str | None = None,
    field: str | None = None,
) -> Corpus:
    """Read one source or several and return the training and validation documents.

    source: `stdlib` (the Python standard library's own `.py` files), `pydoc` (the prose
    of the language reference, one document per topic), a file, a folder (every visible
    text file below it) or a glob pattern (`**` is recursive). A file found twice counts
    once. val_fraction: the share of documents held out, or of characters where
    documents are cut; each side gets at least one text. separator: the string between
    two documents of a text file, which belongs to neither. field: the field of each
    line of a .jsonl file that holds the text of a document.

    Raises ConfigError for a fraction outside (0, 1). Raises DataError when nothing is
    found; when a file that was named by itself is empty, binary or not UTF-8; when no
    file has the separator or the field; and for a .jsonl file without a field.
    """
    if not 0 < val_fraction < 1:
        raise ConfigError(f"data.val_fraction is {val_fraction}; give a number between 0 and 1, such as 0.05.")
    sources = [source] if isinstance(source, str) else list(source)
    reading = _Reading(separator, field)
    documents = [document for name in sources for document in reading.documents(name)]
    remarks = reading.remarks()
    if not documents:
        why = f" ({'; '.join(remarks)})" if remarks else ""
        named = ", ".join(sources) or "(empty)"
        raise DataError(f"data.source {named} holds no UTF-8 text{why}; name a file with text.")
    train, val, held_out = _split(documents, val_fraction)
    del documents  # frees their text: the two sides may hold copies of it
    train_bytes, val_bytes = (sum(len(document.text.encode()) for document in side) for side in (train, val))
    return Corpus(train, val, train_bytes, val_bytes, _digest(train, val), remarks, held_out)


class _Reading:
    """Reads several sources and keeps what was seen and what was left out."""

    def __init__(self, separator: str | None, field: str | None):
        self.separator, self.field = separator, field
        self.seen: set[Path] = set()
        self.left_out: list[tuple[str, str]] = []  # (kind, path)
        self.separated = self.with_field = False

    def documents(self, source: str) -> Iterator[Document]:
        """The documents of one source."""
        if source == "pydoc":
            yield from _pydoc_topics()
            return
        root, folder = _find_files(source)
        self.left_out += folder.left_out
        for name, path in sorted((found.relative_to(root).as_posix(), found) for found in folder.files):
            real = path.resolve()
            if real in self.seen:  # under two names the same file could be on both sides of the split
                continue
            self.seen.add(real)
            try:
                yield from self._documents_of(name, path)
            except RefusedFile as error:
                if path == user_path(source):  # named by the user, not found in a folder
                    raise
                self.left_out.append((error.kind, str(path)))

    def _documents_of(self, name: str, path: Path) -> list[Document]:
        if path.suffix.lower() in JSON_LINES:
            texts = self._texts_in_lines(path)
        else:
            text = read_text(path)
            if self.separator is None or self.separator not in text:
                return [Document(name, text)]
            self.separated = True
            texts = [(f"part {number}", part) for number, part in enumerate(text.split(self.separator), 1)]
        self.left_out += [("empty documents", f"{path} {place}") for place, text in texts if not text.strip()]
        return [Document(f"{name} {place}", text, key=text) for place, text in texts if text.strip()]

    def _texts_in_lines(self, path: Path) -> list[tuple[str, str]]:
        if self.field is None:
            raise RefusedFile(
                "jsonl without --data.field",
                f"{path} holds records; name the field with the text, as in --data.field text, or rename the file to "
                "learn it as it is.",
            )
        file = scan(path, lambda fields: string_field(fields, self.field))
        self.with_field = True
        return list(zip(file.places, file.checked(), strict=False))

    def remarks(self) -> list[str]:
        """One line about what was left out, or none.

        Raises DataError when an option had no effect.
        """
        for name, value, used, where in (
            ("separator", self.separator, self.separated, "text file has it"),
            ("field", self.field, self.with_field, "file is .jsonl"),
        ):
            if value is not None and not used:
                raise DataError(f"data.{name} is {value!r:.80}, but no {where}; correct it, or leave it out.")
        return [f"left out: {counted(self.left_out)}"] if self.left_out else []


def _find_files(source: str) -> tuple[Path, Folder]:
    """Return the folder that file names are relative to, and the files of a source."""
    path = user_path(source)
    if source == "stdlib":
        return Path(sysconfig.get_path("stdlib")), Folder(list(_standard_library()), [])
    if source and os.path.isdir(path):  # Path("") would be the current folder
        return path, files_below(path)
    if source and os.path.exists(path):
        return path.parent, Folder([path], [])
    root = Path(*itertools.takewhile(lambda part: not GLOB_CHARACTERS & set(part), path.parts))
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True)) if not os.path.isdir(match)]
    if not matches:
        raise DataError(
            f"data.source {source!r} is not a file, a folder, a pattern that matches a file, stdlib or pydoc; check "
            "the path."
        )
    return root, Folder(matches, [])


def _standard_library() -> Iterator[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in files_below(root, NOT_LIBRARY_SOURCE, follow=False).files:
        generated = path.relative_to(root).parts[0].startswith(GENERATED_PREFIXES)
        if path.suffix == ".py" and not generated and path.stat().st_size > 0:  # a package's __init__.py may be empty
            yield path


def _pydoc_topics() -> list[Document]:
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise DataError("data.source pydoc needs pydoc_data, which this Python lacks; name another source.") from error
    return [Document(name, topics[name]) for name in sorted(topics)]


def _split(documents: list[Document], val_fraction: float) -> tuple[list[Document], list[Document], str]:
    """Return (train, val, description of val).

    Whole documents are held out where they come near val_fraction; otherwise each
    document is cut.
    """
    held_out = _whole_documents(documents, val_fraction)
    share = sum(len(documents[index].text) for index in held_out) / sum(len(document.text) for document in documents)
    borders = [_border(document.text, val_fraction, LEAST_END if held_out else 1) for document in documents]
    can_cut = any(border < len(document.text) for document, border in zip(documents, borders, strict=True))
    if held_out and (NEAR[0] * val_fraction <= share <= NEAR[1] * val_fraction or not can_cut):
        train = [document for index, document in enumerate(documents) if index not in held_out]
        val = [documents[index] for index in sorted(held_out)]
        return train, val, f"{len(val):,} of {len(documents):,} documents, the first of them {val[0].name}"
    if not can_cut:
        raise DataError(f"{documents[0].name} has a single character, too few to train and validate on; give more.")
    parts = [
        (
            Document(document.name, document.text[:border]),
            Document(document.name, document.text[border:], first_line=1 + document.text.count("\n", 0, border)),
        )
        for document, border in zip(documents, borders, strict=True)
    ]
    val = [end for _, end in parts if end.text]
    more = f" and of {len(val) - 1:,} more" if len(val) > 1 else ""
    return [beginning for beginning, _ in parts], val, f"the end of {val[0].name}{more}"


def _whole_documents(documents: list[Document], val_fraction: float) -> set[int]:
    """Return the numbers of the documents that are held out as a whole.

    The set is empty when all documents have the same text.
    """
    places: dict[str, float] = {}  # text -> its place; equal texts share the place of the first
    for document in documents:
        places.setdefault(document.text, place_of(document.key or document.name))
    held_out = {text for text, place in places.items() if place < val_fraction}
    if not held_out:  # all of a few files can be on one side: move the one nearest to the border
        held_out = {min(places, key=places.__getitem__)}
    if len(held_out) == len(places):
        held_out.remove(max(places, key=places.__getitem__))
    return {index for index, document in enumerate(documents) if document.text in held_out}


def _border(text: str, val_fraction: float, least: int) -> int:
    """Where the held-out end of a text starts.

    It is len(text) when the end would be shorter than `least` characters.
    """
    border = min(max(int(len(text) * (1 - val_fraction)), 1), max(len(text) - 1, 1))
    return border if len(text) - border >= least else len(text)


def place_of(name: str) -> float:
    """Return a number in [0, 1) that depends on the name only."""
    return int.from_bytes(hashlib.sha256(_name_bytes(name)).digest()[:6], "big") / 2**48  # 48 bits: exact in a float


def _name_bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")  # file names may hold bytes that are not UTF-8


def _digest(train: list[Document], val: list[Document]) -> str:
    """SHA-256 over both sides.

    The length of each field precedes it, so no two corpora hash the same bytes.
    """
    digest = hashlib.sha256()
    for side in (train, val):
        digest.update(len(side).to_bytes(8, "little"))
        for document in side:
            for field in (_name_bytes(document.name), document.text.encode()):
                digest.update(len(field).to_bytes(8, "little"))
                digest.update(field)
    return digest.hexdigest()
