"""The documents of a corpus.

Their texts lie one after another, as UTF-8, in one store. A large corpus is thus on the
disk, and who uses a text takes it piece by piece.
"""

import codecs
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import regex

from npllm.files.spool import Spool

PIECE = 1 << 18  # bytes
# No piece of a tokenizer (pretokenize.SPLITS) has a blank after another sign, or a
# newline after a letter or digit. So a text cut there has the same tokens. Searched
# from the end.
_CUT = regex.compile(r"(?r)(?<=\S) |(?<=[\p{L}\p{N}])\n")


class TextStore:
    """Texts, one after another. folder: for their file, when they are many."""

    def __init__(self, folder: Path | None = None):
        self._spool = Spool(folder)
        self._start = self.end = self._n_characters = 0  # the text that is being written

    def add(self, text: str) -> None:
        """Add to the text that is being written."""
        self._n_characters += len(text)
        self.end += self._spool.write(text.encode())

    def finish(self) -> "StoredText":
        """End a text, and return it."""
        text = StoredText(self, self._start, self.end - self._start, self._n_characters)
        self._start, self._n_characters = self.end, 0
        return text

    def put(self, pieces: Iterable[str]) -> "StoredText":
        """Store a whole text."""
        for piece in pieces:
            self.add(piece)
        return self.finish()

    def forget(self, end: int) -> None:
        """Remove all texts after the first `end` bytes, and what is being written."""
        self._spool.truncate(end)
        self._spool.seek(end)
        self._start, self.end, self._n_characters = end, end, 0

    def seal(self) -> None:
        """End the writing. Raises ResourceError when the disk was full."""
        self._spool.check()

    def read(self, start: int, end: int) -> bytes:
        """Bytes of a sealed store."""
        self._spool.seek(start)
        return self._spool.read(end - start)


@dataclass(frozen=True, eq=False)
class StoredText:
    """A text in a store: where it starts there, and how long it is. Texts are equal
    when their characters are."""

    store: TextStore
    start: int
    n_bytes: int
    n_characters: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoredText) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __str__(self) -> str:
        return b"".join(self.chunks()).decode()

    def chunks(self) -> Iterator[bytes]:
        """The UTF-8 bytes, a part at a time."""
        end = self.start + self.n_bytes
        return (self.store.read(place, min(place + PIECE, end)) for place in range(self.start, end, PIECE))

    def pieces(self) -> Iterator[str]:
        """The text in pieces that are tokenised one by one with the same result.

        Each but the last has about PIECE bytes, or more where the text has no white
        space for so long.
        """
        decoder, waiting = codecs.getincrementaldecoder("utf-8")(), []
        for chunk in self.chunks():
            text = decoder.decode(chunk)
            if cut := _CUT.search(text):
                yield "".join([*waiting, text[: cut.start()]])
                waiting, text = [], text[cut.start() :]
            waiting.append(text)
        if any(waiting):
            yield "".join(waiting)

    @cached_property
    def sha256(self) -> bytes:
        """The hash of the bytes."""
        digest = hashlib.sha256()
        for chunk in self.chunks():
            digest.update(chunk)
        return digest.digest()

    @property
    def is_blank(self) -> bool:
        """Whether there is nothing but white space."""
        return not any(piece.strip() for piece in self.pieces())

    def cut(self, n_characters: int) -> tuple["StoredText", "StoredText"]:
        """The first n_characters, and the rest."""
        n_bytes, missing = 0, n_characters
        for piece in self.pieces():
            n_bytes += len(piece[:missing].encode())
            missing -= min(missing, len(piece))
            if not missing:
                break
        return (
            StoredText(self.store, self.start, n_bytes, n_characters),
            StoredText(self.store, self.start + n_bytes, self.n_bytes - n_bytes, self.n_characters - n_characters),
        )


def stored(text: str) -> StoredText:
    """Return a text that is in memory as one in a store of its own."""
    store = TextStore()
    made = store.put([text])
    store.seal()
    return made


@dataclass(frozen=True)
class Document:
    """One text with its name: a path relative to its source, or a topic.

    is_part: one of several in a file. first_line: the line of the file that the text
    starts in, where it is the end of a file that was cut.
    """

    name: str
    content: StoredText
    is_part: bool = False
    first_line: int = 1

    @property
    def text(self) -> str:
        """The whole text."""
        return str(self.content)
