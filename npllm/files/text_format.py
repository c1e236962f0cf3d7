"""Decodes UTF-8 files, and says what a file is that is none."""

import codecs
import re
from pathlib import Path
from typing import Self

from npllm.files.bounded_read import RefusedFile

BYTE_ORDER_MARK = "\ufeff"  # some editors and spreadsheets write it at the start of a file
SIGNATURE_BYTES = 16
COMPRESSED, OTHER = "compressed", "in other formats"  # kinds of a RefusedFile
# start of the file, kind, what the file is, what to do
FORMATS = (
    (rb"\x1f\x8b", COMPRESSED, "compressed by gzip", "unpack it with gunzip"),
    (rb"BZh[1-9]1AY&SY", COMPRESSED, "compressed by bzip2", "unpack it with bunzip2"),
    (rb"\xfd7zXZ\x00", COMPRESSED, "compressed by xz", "unpack it with unxz"),
    (rb"\x28\xb5\x2f\xfd", COMPRESSED, "compressed by zstd", "unpack it with zstd -d"),
    (rb"PK\x03\x04", COMPRESSED, "a zip archive", "unpack it with unzip, or save it as plain text"),
    (rb"7z\xbc\xaf\x27\x1c", COMPRESSED, "a 7z archive", "unpack it with 7z x"),
    (rb"%PDF-", OTHER, "a PDF file", "convert it to text, for example with pdftotext"),
)


class NotUtf8(RefusedFile):
    """A text in another encoding. likely: the name of one that it may have."""

    def __init__(self, message: str, likely: str):
        super().__init__("not UTF-8", message)
        self.likely = likely

    @classmethod
    def at(cls, path: Path, encoding: str, byte: int, line: int, offset: int) -> Self:
        """The error of a byte that is not valid in `encoding`."""
        name = "UTF-8" if encoding == "utf-8" else encoding
        message = (
            f"{path} is not {name} (invalid byte 0x{byte:02x} in line {line}, at offset {offset}); "
            "convert it to UTF-8, for example with iconv."
        )
        # From 0x80 to 0x9f Latin-1 has no signs, and Windows has its quotes and dashes.
        return cls(message, "cp1252" if 0x80 <= byte < 0xA0 else "latin-1")


def refuse_other_formats(path: Path, start: bytes) -> None:
    """Raise RefusedFile for a file that is compressed or in another known format.

    start: its first SIGNATURE_BYTES bytes or more.
    """
    for signature, kind, what, mend in FORMATS:
        if re.match(signature, start):
            raise RefusedFile(kind, f"{path} is {what}; {mend}.")
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise NotUtf8(f"{path} is UTF-16 text; convert it with iconv -f UTF-16 -t UTF-8.", "utf-16")


def decode(path: Path, content: bytes | bytearray) -> str:
    """Return the text of a file's content, without a byte order mark.

    Raises RefusedFile, with the line, when it is not UTF-8.
    """
    refuse_other_formats(path, content[:SIGNATURE_BYTES])
    try:
        return content.decode("utf-8").removeprefix(BYTE_ORDER_MARK)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise NotUtf8.at(path, "utf-8", content[error.start], line, error.start) from error
