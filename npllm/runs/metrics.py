"""metrics.jsonl: one line per step."""

import contextlib
import json
from pathlib import Path
from typing import Any

from npllm.errors import DataError
from npllm.files.atomic import append, write_atomically
from npllm.files.bounded_read import read_bounded
from npllm.files.strict_json import parse_json

LARGEST_LOG = 1 << 30  # bytes; a step takes about 200


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of all complete lines. A line that a crash cut off has no line end
    and is left out.

    Raises DataError for a complete line that is not the record of a step.
    """
    if not path.exists():
        return []
    *lines, _cut_off = read_bounded(path, LARGEST_LOG).split(b"\n")
    return [_record(path, number, line) for number, line in enumerate(lines, 1)]


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        record = parse_json(line)
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            return record
    raise DataError(f"{path}, line {number}, is not the record of a step; delete that line.")


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


def _line(record: dict[str, Any]) -> bytes:
    return (json.dumps(record) + "\n").encode()
