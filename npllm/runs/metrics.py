"""metrics.jsonl: one line per step. metrics.csv: the same for other programs.

Each line holds the fields of FIELDS and the figures of the stage, which are numbers as
well. A null stands for NaN and infinity, which JSON lacks.
"""

import csv
import io
import json
from math import isfinite, nan
from pathlib import Path
from typing import Any

from npllm.errors import DataError
from npllm.files.atomic import append, write_atomically
from npllm.files.bounded_read import read_bounded
from npllm.files.strict_json import check_fields, parse_json

LARGEST_LOG = 1 << 30  # bytes; a step takes about 200
NUMBER = float | None
FIELDS = {"step": int, "tokens": int, "loss": NUMBER}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of all complete lines; a null is read as NaN. A line that a crash cut
    off has no line end and is left out.

    Raises DataError for a complete line that is not the record of a step.
    """
    if not path.exists():
        return []
    *lines, _cut_off = read_bounded(path, LARGEST_LOG).split(b"\n")
    return [_record(path, number, line) for number, line in enumerate(lines, 1)]


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = parse_json(line)
        check_fields(record, FIELDS)
        check_fields(record, dict.fromkeys(record.keys() - FIELDS.keys(), NUMBER))
    except ValueError as error:
        raise DataError(f"{path}, line {number}, is not the record of a step ({error}); delete that line.") from error
    return {name: nan if value is None else value for name, value in record.items()}


def drop_metrics_after(path: Path, step: int) -> None:
    """Keep the lines up to `step` and remove the rest. A resumed run writes the steps
    after its checkpoint again, and a power cut may have damaged their lines."""
    lines = read_bounded(path, LARGEST_LOG).split(b"\n")[:-1] if path.exists() else []
    kept = []
    for number, line in enumerate(lines[:step], 1):
        record = _record(path, number, line)
        if record["step"] > step:
            break
        kept.append(_line(record))
    write_atomically(path, b"".join(kept))


def append_metrics(path: Path, record: dict[str, Any]) -> None:
    """Add a line. Raises ResourceError when the disk is full."""
    append(path, _line(record))


def write_metrics_csv(path: Path, metrics: Path) -> None:
    """Write the records of metrics.jsonl as a table. Raises ResourceError when the disk
    is full."""
    write_atomically(path, _table(read_metrics(metrics)))


def check_metrics_csv(path: Path, metrics: Path) -> None:
    """Raise DataError unless a table is the one of metrics.jsonl, or is no longer
    there. A damaged metrics.jsonl has a check of its own."""
    try:
        expected = _table(read_metrics(metrics))
    except DataError:
        return
    if path.exists() and read_bounded(path, LARGEST_LOG) != expected:
        raise DataError(f"{path} is not the table of {metrics.name}; npllm resume writes it again.")


def _table(records: list[dict[str, Any]]) -> bytes:
    """Records as CSV with a header. A field that a record lacks, and a NaN, is
    empty."""
    columns = dict.fromkeys(name for record in records for name in record)
    text = io.StringIO()
    table = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows({name: value if isfinite(value) else "" for name, value in each.items()} for each in records)
    return text.getvalue().encode()


def _line(record: dict[str, Any]) -> bytes:
    values = {name: value if isfinite(value) else None for name, value in record.items()}
    return (json.dumps(values) + "\n").encode()
