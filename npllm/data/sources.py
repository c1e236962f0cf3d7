"""The documents of the sources that `data.source` names."""

import glob
import importlib
import itertools
import os
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from npllm.data.counted import counted
from npllm.data.documents import Document, StoredText, TextStore
from npllm.data.record_file import RecordFile
from npllm.data.record_texts import texts_of_csv, texts_of_json_lines
from npllm.data.text_files import IGNORED, Folder, files_below, fits, lines_of, suffix_of, text_pieces
from npllm.errors import DataError
from npllm.files.bounded_read import RefusedFile
from npllm.files.text_format import NotUtf8
from npllm.files.user_path import user_path

# Folders of the standard library that hold tests or other people's packages, and two
# that would spoil the split: `encodings` holds a hundred code page tables, which are
# nearly copies of one another, and `pydoc_data` is the text of the source `pydoc`.
NOT_LIBRARY_SOURCE = {
    "test", "tests", "idle_test", "site-packages", "dist-packages", "ensurepip", "_vendor", "encodings", "pydoc_data",
}  # fmt: skip
GENERATED_PREFIXES = ("config-", "_sysconfigdata")  # written when Python was built on this machine
EMBEDDED = ("stdlib", "pydoc")
GLOB_CHARACTERS = set("*?[")
JSON_LINES, CSV = (".jsonl", ".ndjson"), (".csv",)


@dataclass(frozen=True)
class ReadingOptions:
    """How sources are read.

    separator: the string between two documents of a text file, which belongs to
    neither. field: the field of each line of a .jsonl file, or the column of a .csv
    file, that holds the text of a document. encoding: of the files that are not UTF-8.
    ignore: patterns of files and folders to leave out, see `files_below`.
    """

    separator: str | None = None
    field: str | None = None
    encoding: str = "utf-8"
    ignore: tuple[str, ...] = IGNORED


class Reading:
    """Reads several sources into a store, and counts what it takes and leaves out.

    report: called with a line about what is being read.
    """

    def __init__(self, options: ReadingOptions, store: TextStore, report: Callable[[str], None]):
        self.options, self.store, self.report = options, store, report
        self.seen: set[Path] = set()
        self.taken: list[str] = []  # suffixes of files
        self.converted: list[tuple[str, str]] = []  # (kind, path), as in left_out
        self.left_out: list[tuple[str, str]] = []
        self.separated = self.with_field = False

    def documents(self, source: str) -> Iterator[Document]:
        """The documents of one source."""
        if source == "pydoc":
            yield from self._pydoc_topics()
            return
        root, folder = _find_files(source, self.options.ignore)
        self.left_out += folder.left_out
        for name, path in sorted((found.relative_to(root).as_posix(), found) for found in folder.files):
            real = path.resolve()
            if real in self.seen:  # under two names the same file could be on both sides of the split
                continue
            self.seen.add(real)
            try:
                documents = self._documents_of(name, path)
            except RefusedFile as error:
                if path == user_path(source):  # named by the user, not found in a folder
                    raise
                self.left_out.append((error.kind, str(path)))
                continue
            if source not in EMBEDDED:
                self.taken.append(suffix_of(path) or "without a suffix")
            yield from documents

    def _documents_of(self, name: str, path: Path) -> list[Document]:
        """The documents of a file, read as UTF-8 or else in the encoding that is given.

        A file that is refused leaves nothing in the store.
        """
        end, n_left_out, encoding = self.store.end, len(self.left_out), self.options.encoding
        try:
            try:
                return self._read(name, path, "utf-8")
            except NotUtf8 as error:
                if encoding == "utf-8":
                    hint = f"{str(error).rstrip('.')}, or give --data.encoding {error.likely}."
                    raise RefusedFile(error.kind, hint) from error
                self.store.forget(end)
                del self.left_out[n_left_out:]
                documents = self._read(name, path, encoding)
                self.converted.append((f"converted from {encoding}", str(path)))
                return documents
        except RefusedFile:
            self.store.forget(end)
            raise

    def _read(self, name: str, path: Path, encoding: str) -> list[Document]:
        pieces = self._reported(name, text_pieces(path, encoding))
        if suffix_of(path) in JSON_LINES + CSV:
            texts = self._texts_in_records(path, pieces)
        elif self.options.separator is None:
            return [Document(name, self.store.put(pieces))]
        else:
            *texts, only = [(f"part {n}", text) for n, text in enumerate(self._separated(pieces), 1)]
            if not texts:
                return [Document(name, only[1])]
            self.separated = True
            texts.append(only)
        return [Document(f"{name} {place}", text, is_part=True) for place, text in texts]

    def _reported(self, name: str, pieces: Iterable[str]) -> Iterator[str]:
        for piece in pieces:
            self.report(f"reading {name} ({self.store.end / 1e6:.0f} MB so far)")
            yield piece

    def _separated(self, pieces: Iterable[str]) -> Iterator[StoredText]:
        """The texts between separators, of which one may lie across two pieces."""
        separator, rest = self.options.separator, ""
        for piece in pieces:
            *ended, rest = (rest + piece).split(separator)
            for text in ended:
                self.store.add(text)
                yield self.store.finish()
            complete = max(0, len(rest) - len(separator) + 1)
            self.store.add(rest[:complete])
            rest = rest[complete:]
        yield self.store.put([rest])

    def _texts_in_records(self, path: Path, pieces: Iterable[str]) -> list[tuple[str, StoredText]]:
        field, kind = self.options.field, suffix_of(path).removeprefix(".")
        if field is None:
            raise RefusedFile(
                f"{kind} without --data.field",
                f"{path} holds records; name the field with the text, as in --data.field text, or rename the file to "
                "learn it as it is.",
            )
        read = texts_of_csv if suffix_of(path) in CSV else texts_of_json_lines
        file: RecordFile[StoredText] = read(path, lines_of(path, pieces), field, lambda text: self.store.put([text]))
        self.with_field = True
        return list(zip(file.places, file.checked(), strict=True))

    def _pydoc_topics(self) -> Iterator[Document]:
        try:
            topics = importlib.import_module("pydoc_data.topics").topics
        except ImportError as error:
            raise DataError(
                "data.source pydoc needs pydoc_data, which this Python lacks; name another source."
            ) from error
        for name in sorted(topics):
            yield Document(name, self.store.put([topics[name]]))

    def without_blank(self, documents: list[Document]) -> list[Document]:
        """The documents but for the parts of files that are only white space."""
        blank = {id(document) for document in documents if document.is_part and document.content.is_blank}
        self.left_out += [("empty documents", document.name) for document in documents if id(document) in blank]
        return [document for document in documents if id(document) not in blank]

    def remarks(self) -> list[str]:
        """A line about what was taken and left out. None for a single file that was
        taken as it is.

        Raises DataError when an option had no effect.
        """
        options = self.options
        for name, value, used, where in (
            ("separator", options.separator, self.separated, "text file has it"),
            ("field", options.field, self.with_field, "file is .jsonl or .csv"),
        ):
            if value is not None and not used:
                raise DataError(f"data.{name} is {value!r:.80}, but no {where}; correct it, or leave it out.")
        taken = [f"{count:,} {suffix}" for suffix, count in Counter(self.taken).most_common()]
        files = "1 file" if len(self.taken) == 1 else f"{len(self.taken):,} files"
        parts = [f"read {files} ({', '.join(taken)})"] if taken else []
        parts += [counted(self.converted)] if self.converted else []
        parts += [f"left out: {counted(self.left_out)}"] if self.left_out else []
        return ["; ".join(parts)] if len(self.taken) > 1 or len(parts) > 1 or self.left_out else []


def _find_files(source: str, ignore: tuple[str, ...]) -> tuple[Path, Folder]:
    """Return the folder that file names are relative to, and the files of a source."""
    path = user_path(source)
    if source == "stdlib":
        return Path(sysconfig.get_path("stdlib")), Folder(list(_standard_library()), [])
    if source and os.path.isdir(path):  # Path("") would be the current folder
        return path, files_below(path, ignore)
    if source and os.path.exists(path):
        return path.parent, Folder([path], [])
    root = Path(*itertools.takewhile(lambda part: not GLOB_CHARACTERS & set(part), path.parts))
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True)) if not os.path.isdir(match)]
    if not matches:
        raise DataError(
            f"data.source {source!r} is not a file, a folder, a pattern that matches a file, stdlib or pydoc; check "
            "the path."
        )
    found = Folder([], [])
    for match in matches:
        below = match.relative_to(root)
        if any(fits(str(part), ignore) for part in (below, *below.parents)):
            found.left_out.append(("ignored", str(match)))
        else:
            found.files.append(match)
    return root, found


def _standard_library() -> Iterator[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in files_below(root, NOT_LIBRARY_SOURCE, follow=False).files:
        generated = path.relative_to(root).parts[0].startswith(GENERATED_PREFIXES)
        if path.suffix == ".py" and not generated and path.stat().st_size > 0:  # a package's __init__.py may be empty
            yield path
