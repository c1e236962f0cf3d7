"""Decodes UTF-8 files, and says what a file is that is none."""

import re
from pathlib import Path

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
    (rb"\xff\xfe|\xfe\xff", OTHER, "UTF-16 text", "convert it with iconv -f UTF-16 -t UTF-8"),
)


def refuse_other_formats(path: Path, start: bytes) -> None:
    """Raise RefusedFile for a file that is compressed or in another known format.

    start: its first SIGNATURE_BYTES bytes or more.
    """
    for signature, kind, what, mend in FORMATS:
        if re.match(signature, start):
            raise RefusedFile(kind, f"{path} is {what}; {mend}.")


def decode(path: Path, content: bytes | bytearray) -> str:
    """Return the text of a file's content, without a byte order mark.

    Raises RefusedFile, with the line, when it is not UTF-8.
    """
    refuse_other_formats(path, content[:SIGNATURE_BYTES])
    try:
        return content.decode("utf-8").removeprefix(BYTE_ORDER_MARK)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RefusedFile(
            "not UTF-8",
            f"{path} is not UTF-8 (invalid byte 0x{content[error.start]:02x} in line {line}, at offset {error.start}); "
            "convert it to UTF-8, for example with iconv.",
        ) from error
