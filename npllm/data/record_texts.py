"""The texts of records: one field of each line of a .jsonl file, or of each row of a
.csv file."""

from collections.abc import Callable, Iterable
from pathlib import Path

from npllm.data.record_file import Record, RecordFile, sort_out
from npllm.data.records import json_fields, string_field
from npllm.data.rows import csv_rows, fields_of


def texts_of_json_lines(
    path: Path, lines: Iterable[str], field: str, keep: Callable[[str], Record]
) -> RecordFile[Record]:
    """Return a text of each line that is not blank, in the form that `keep` gives it.

    field: the key that holds the text.
    """
    items = ((f"line {number}", line) for number, line in enumerate(lines, 1) if line.strip())
    return sort_out(path, items, lambda line: keep(string_field(json_fields(line.encode()), field)))


def texts_of_csv(path: Path, lines: Iterable[str], field: str, keep: Callable[[str], Record]) -> RecordFile[Record]:
    """Return a text of each row, in the form that `keep` gives it.

    field: the column that holds the text. Raises RefusedFile for a header without it.
    """
    return sort_out(path, csv_rows(path, lines, (field,)), lambda row: keep(fields_of(row)[field]))
