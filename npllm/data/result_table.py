"""Tables of results: .csv and .jsonl files, or csv on standard output."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from npllm.errors import ConfigError, ResourceError
from npllm.files.atomic import write_atomically
from npllm.output import show


def check_destination(out: Path | None, data: Path) -> None:
    """Raise an error for a file of results that cannot be written, before the work.

    out: the file; None = standard output. data: the file that is read. Raises
    ConfigError for a suffix other than .csv and .jsonl, and where `out` is the file
    `data`; ResourceError where there is no folder for it.
    """
    if out is None:
        return
    if out.suffix.lower() not in (".csv", ".jsonl"):
        raise ConfigError(f"--out {out} is neither a .csv nor a .jsonl file; give it one of these endings.")
    if out.exists() and data.exists() and out.samefile(data):
        raise ConfigError(f"--out {out} is the file of --data, which would be lost; choose another name.")
    if not out.parent.is_dir():
        raise ResourceError(f"{out} cannot be written (there is no folder {out.parent}); make it or choose another.")


def write_table(out: Path | None, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write rows as a file, whole or not at all, or show them.

    out: a .csv or .jsonl file; None = csv on standard output. columns: the names of the
    values of a row. A value that is neither a text nor a number is JSON in csv. Raises
    ResourceError when the file cannot be written.
    """
    if out is not None and out.suffix.lower() == ".jsonl":
        text = "".join(f"{json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False)}\n" for row in rows)
    else:
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_cell(value) for value in row] for row in rows)
        text = table.getvalue()
    if out is None:
        show(text, end="")
    else:
        write_atomically(out, text.encode("utf-8"))
        show(f"{out}: {len(rows):,} rows")


def _cell(value: Any) -> str | float:
    return value if isinstance(value, str | float) else json.dumps(value, ensure_ascii=False)
