"""The lines of a file and the rows of a table, each with its place."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from npllm.data.record_file import Unusable
from npllm.errors import DataError
from npllm.files.bounded_read import RefusedFile, read_bounded
from npllm.files.text_format import BYTE_ORDER_MARK, SIGNATURE_BYTES, decode, refuse_other_formats

LARGEST_FILE = 1 << 30  # bytes
LARGEST_FIELD = 1 << 26  # characters of a field of a .csv file
WRONG_FIELDS = "with wrong fields"

Row = tuple[list[str], list[str] | bytes]  # the header, and the fields or the line that holds them


def lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (place, line) of every line that is not blank.

    Only a line feed ends a line: JSON strings may hold other separators, such as
    U+2028.
    """
    content = read_bounded(path, LARGEST_FILE)
    refuse_other_formats(path, content[:SIGNATURE_BYTES])
    content = content.removeprefix(BYTE_ORDER_MARK.encode())
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            yield f"line {number}", line


def table_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """Yield (place, row) of each row of a .csv or .tsv file. `fields_of` reads the row.

    A header line names the columns. Fields of .csv may be quoted; fields of .tsv are
    used as they are, and only a line feed, with or without a carriage return before it,
    ends a line of .tsv.

    columns: names that the header must have, once each. Raises RefusedFile for a header
    without them, and DataError for a quote that is never closed.
    """
    if path.suffix.lower() != ".csv":
        return _tsv_rows(path, columns)
    return csv_rows(path, io.StringIO(decode(path, read_bounded(path, LARGEST_FILE)), newline=""), columns)


def csv_rows(path: Path, text: Iterable[str], columns: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """Yield (place, row) of each row of a .csv file, as `table_rows` does.

    text: its lines, with their ends.
    """
    csv.field_size_limit(LARGEST_FIELD)  # without this 131,072 characters
    rows = csv.reader(text, strict=True)
    header: list[str] = []
    try:
        for row in filter(None, rows):
            if header:
                yield f"line {rows.line_num}", (header, row)
            else:
                header = _header(row, columns, f"{path} line {rows.line_num}")
    except csv.Error as error:
        raise DataError(f"{path} line {rows.line_num} cannot be read ({error}); correct its quotes.") from None


def _tsv_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Row]]:
    header: list[str] = []
    for place, line in lines(path):
        if header:
            yield place, (header, line)
        else:
            header = _header(decode(path, line).split("\t"), columns, f"{path} {place}")


def _header(row: list[str], columns: Sequence[str], place: str) -> list[str]:
    header = [name.strip() for name in row]
    if any(header.count(name) != 1 for name in columns):
        names = f"the column{'s' * (len(columns) > 1)} {' and '.join(columns)}"
        shown = f"{', '.join(header)!r:.200}"
        raise RefusedFile(f"without {names}", f"{place}: the header is {shown}; name {names} in it, once each.")
    return header


def fields_of(row: Row) -> dict[str, str]:
    """Return the fields of a row by the names of their columns.

    Raises Unusable for a row with more or fewer fields than the header, and for one
    that is not UTF-8.
    """
    header, values = row
    if isinstance(values, bytes):
        values = text_of(values).removesuffix("\r").split("\t")
    if len(values) != len(header):
        raise Unusable(
            WRONG_FIELDS, f"it has {len(values)} fields but the header has {len(header)}; quote or add fields."
        )
    return dict(zip(header, values, strict=True))


def text_of(line: bytes) -> str:
    """Return the text of a line. Raises Unusable for one that is not UTF-8."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"0x{line[error.start]:02x}"
        complaint = f"it is not UTF-8 (invalid byte {byte}); convert the file to UTF-8, for example with iconv."
        raise Unusable("that are not UTF-8", complaint) from None
