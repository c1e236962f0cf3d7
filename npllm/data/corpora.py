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

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from npllm.data.documents import Document, StoredText, TextStore
from npllm.data.sources import Reading, ReadingOptions
from npllm.errors import ConfigError, DataError

LEAST_END = 20  # characters; a document whose end would be shorter is not cut
NEAR = (0.1, 2.0)  # times val_fraction: bounds of the share that whole documents hold out


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
    options: ReadingOptions | None = None,
    *,
    folder: Path | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Corpus:
    """Read one source or several and return the training and validation documents.

    source: `stdlib` (the Python standard library's own `.py` files), `pydoc` (the prose
    of the language reference, one document per topic), a file, a folder (every visible
    text file below it) or a glob pattern (`**` is recursive). A file found twice counts
    once. val_fraction: the share of documents held out, or of characters where
    documents are cut; each side gets at least one text. folder: on the disk that a
    large text is kept on, which needs room for it; None = the disk of temporary files.
    report: called with a line about what is being read.

    Raises ConfigError for a fraction outside (0, 1). Raises DataError when nothing is
    found; when a file that was named by itself is empty, binary or not UTF-8; when no
    file has the separator or the field; and for a .jsonl file without a field.
    """
    if not 0 < val_fraction < 1:
        raise ConfigError(f"data.val_fraction is {val_fraction}; give a number between 0 and 1, such as 0.05.")
    sources = [source] if isinstance(source, str) else list(source)
    store = TextStore(folder)
    reading = Reading(options or ReadingOptions(), store, report)
    documents = [document for name in sources for document in reading.documents(name)]
    store.seal()
    documents = reading.without_blank(documents)
    remarks = reading.remarks()
    if not documents:
        why = f" ({'; '.join(remarks)})" if remarks else ""
        named = ", ".join(sources) or "(empty)"
        raise DataError(f"data.source {named} holds no UTF-8 text{why}; name a file with text.")
    train, val, held_out = _split(documents, val_fraction)
    train_bytes, val_bytes = (sum(document.content.n_bytes for document in side) for side in (train, val))
    return Corpus(train, val, train_bytes, val_bytes, _digest(train, val), remarks, held_out)


def _split(documents: list[Document], val_fraction: float) -> tuple[list[Document], list[Document], str]:
    """Return (train, val, description of val).

    Whole documents are held out where they come near val_fraction; otherwise each
    document is cut.
    """
    held_out = _whole_documents(documents, val_fraction)
    lengths = [document.content.n_characters for document in documents]
    share = sum(documents[index].content.n_characters for index in held_out) / sum(lengths)
    borders = [_border(length, val_fraction, LEAST_END if held_out else 1) for length in lengths]
    can_cut = any(border < length for border, length in zip(borders, lengths, strict=True))
    if held_out and (NEAR[0] * val_fraction <= share <= NEAR[1] * val_fraction or not can_cut):
        train = [document for index, document in enumerate(documents) if index not in held_out]
        val = [documents[index] for index in sorted(held_out)]
        return train, val, f"{len(val):,} of {len(documents):,} documents, the first of them {val[0].name}"
    if not can_cut:
        raise DataError(f"{documents[0].name} has a single character, too few to train and validate on; give more.")
    parts = [_cut(document, border) for document, border in zip(documents, borders, strict=True)]
    val = [end for _, end in parts if end.content.n_bytes]
    more = f" and of {len(val) - 1:,} more" if len(val) > 1 else ""
    return [beginning for beginning, _ in parts], val, f"the end of {val[0].name}{more}"


def _cut(document: Document, border: int) -> tuple[Document, Document]:
    beginning, end = document.content.cut(border)
    n_lines = sum(chunk.count(b"\n") for chunk in beginning.chunks())
    return Document(document.name, beginning), Document(document.name, end, first_line=1 + n_lines)


def _whole_documents(documents: list[Document], val_fraction: float) -> set[int]:
    """Return the numbers of the documents that are held out as a whole.

    The set is empty when all documents have the same text.
    """
    places: dict[StoredText, float] = {}  # text -> its place; equal texts share the place of the first
    for document in documents:
        text = document.content
        places.setdefault(text, _place(text.sha256) if document.is_part else place_of(document.name))
    held_out = {text for text, place in places.items() if place < val_fraction}
    if not held_out:  # all of a few files can be on one side: move the one nearest to the border
        held_out = {min(places, key=places.__getitem__)}
    if len(held_out) == len(places):
        held_out.remove(max(places, key=places.__getitem__))
    return {index for index, document in enumerate(documents) if document.content in held_out}


def _border(length: int, val_fraction: float, least: int) -> int:
    """Where the held-out end of a text of `length` characters starts.

    It is `length` when the end would be shorter than `least` characters.
    """
    border = min(max(int(length * (1 - val_fraction)), 1), max(length - 1, 1))
    return border if length - border >= least else length


def place_of(name: str) -> float:
    """Return a number in [0, 1) that depends on the name only."""
    return _place(hashlib.sha256(_name_bytes(name)).digest())


def _place(digest: bytes) -> float:
    return int.from_bytes(digest[:6], "big") / 2**48  # 48 bits: exact in a float


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
            name = _name_bytes(document.name)
            digest.update(len(name).to_bytes(8, "little") + name + document.content.n_bytes.to_bytes(8, "little"))
            for chunk in document.content.chunks():
                digest.update(chunk)
    return digest.hexdigest()
