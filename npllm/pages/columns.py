"""The columns of metrics.jsonl, read so that a log of a million lines stays small.

`runs/metrics.py` reads a log for training and refuses a bad line. A page shows what can
be read and says how many lines cannot.
"""

import json
import os
from array import array
from math import inf, nan
from pathlib import Path

import numpy as np

from npllm.files.bounded_read import open_bounded
from npllm.runs.metrics import LARGEST_LOG

LARGEST = 1e300  # of a number
LONGEST_LINE = 1 << 16  # bytes
MOST_COLUMNS = 64
BINS = 200  # intervals of a thinned curve; each keeps at most four points


class Columns:
    """The numbers of the complete lines of a log, by column.

    n_bad: number of lines that are no record of a step.
    """

    def __init__(self) -> None:
        self._columns: dict[str, array] = {"step": array("d")}
        self.n_bad = 0

    def __len__(self) -> int:
        return len(self._columns["step"])

    def __getitem__(self, name: str) -> np.ndarray:
        """A column, (steps,) float64: NaN where a line lacks it, infinity where it is
        there and is no finite number."""
        column = np.full(len(self), nan)
        if name in self._columns:
            values = np.frombuffer(self._columns[name], np.float64)
            column[: len(values)] = values
        return column

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    @property
    def names(self) -> list[str]:
        """The columns, in the order in which they first occur."""
        return list(self._columns)

    def add(self, line: bytes) -> None:
        """Add a complete line, without its end."""
        try:
            record = json.loads(line) if len(line) <= LONGEST_LINE else None
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or type(record.get("step")) is not int or abs(record["step"]) >= 2**53:
            self.n_bad += 1
            return
        n = len(self)
        for name, value in record.items():
            if name not in self._columns and len(self._columns) >= MOST_COLUMNS:
                continue
            column = self._columns.setdefault(name, array("d"))
            column.extend([nan] * (n - len(column)))  # the lines that lacked this column
            column.append(_number(value))


class MetricsLog:
    """A metrics.jsonl that may grow. Each line is read once.

    A rollback replaces the file by another one, which is read from its start.
    """

    def __init__(self, path: Path):
        self.path = path
        self._start()

    def _start(self, file: int = 0) -> None:
        """Forget what was read. file: the number (inode) of the file to read."""
        self._columns, self._n_read, self._file = Columns(), 0, file

    def columns(self) -> Columns:
        """The columns of the lines that the file has now; of a missing file, none. A
        last line without an end, which a crash cut off, is left out.

        Raises DataError for a file that cannot be read.
        """
        if not self.path.exists():
            self._start()
            return self._columns
        with open_bounded(self.path, LARGEST_LOG) as (file, n_bytes):
            number = os.fstat(file.fileno()).st_ino
            if number != self._file or n_bytes < self._n_read:
                self._start(number)
            file.seek(self._n_read)
            for line in file:
                if line.endswith(b"\n"):
                    self._columns.add(line[:-1])
                    self._n_read += len(line)
        return self._columns


def thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A curve of at most 4 · BINS points that looks like the whole one.

    x, y: (n,). Of each of BINS intervals of points, the lowest and the highest one are
    kept in their order, and the first and the last that are not finite, so that a gap
    stays a gap.
    """
    if len(x) <= 4 * BINS:
        return x, y
    kept = []
    edges = np.linspace(0, len(x), BINS + 1).astype(int)
    finite = np.isfinite(x) & np.isfinite(y)
    for start, end in zip(edges[:-1], edges[1:], strict=True):
        good, bad = (start + np.flatnonzero(part) for part in (finite[start:end], ~finite[start:end]))
        if len(good):
            kept += [good[np.argmin(y[good])], good[np.argmax(y[good])]]
        if len(bad):
            kept += [bad[0], bad[-1]]
    kept = np.unique(kept)
    return x[kept], y[kept]


def _number(value: object) -> float:
    is_number = type(value) in (int, float) and abs(value) < inf  # not so for NaN
    return float(value) if is_number and abs(value) < LARGEST else inf
