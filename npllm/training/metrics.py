"""metrics.jsonl: one line per step."""

import json
from pathlib import Path
from typing import Any, TextIO

from npllm.data.atomic import write_atomically


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines; a line that a crash cut off has no line end and is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line[-1] == "\n"]


def open_metrics(path: Path, step: int) -> TextIO:
    """Open for appending after the line of `step`: what a stopped run wrote beyond its checkpoint will come again."""
    kept = [record for record in read_metrics(path) if record["step"] <= step]
    write_atomically(path, "".join(map(metrics_line, kept)).encode())
    return path.open("a", encoding="utf-8", buffering=1)


def metrics_line(record: dict[str, Any]) -> str:
    """One record as a line of JSON."""
    return json.dumps(record) + "\n"
