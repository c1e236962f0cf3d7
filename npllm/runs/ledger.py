"""ledger.jsonl: what went wrong in a run and what was done about it. One line an event, never changed or rolled back.

    {"event": "rollback", "time", "step", "loss", "grad_norm", "tokens", "samples", "reason", "restored_step",
     "skipped": [start, end]}      the spike that was seen, the checkpoint restored, the sample ids that are left out
    {"event": "left_out", "time", "step", "loss", ..., "samples", "reason"}     an update that was not made, no more
    {"event": "refused", "time", "checkpoint", "reason"}             a checkpoint that could not be used
    {"event": "gave_up", "time", "step", "loss", ..., "reason"}      a spike, with no rollback left

The ledger decides what a state may still see. Appending the line *is* the rollback: if the process is killed before,
the spike happens again; if after, whoever resumes reads here which data to skip and which checkpoints belong to the
part that was given up.
"""

import contextlib
import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any

from npllm.errors import DataError
from npllm.files.atomic import append
from npllm.files.bounded_read import read_bounded
from npllm.files.strict_json import parse_json

LARGEST_LEDGER = 64 << 20  # bytes
NUMBER = (float, int, type(None))  # none: it was NaN or infinite, which JSON has not
SPIKE = {"step": int, "loss": NUMBER, "grad_norm": NUMBER, "tokens": int, "samples": list, "reason": str}
FIELDS: dict[str, dict[str, Any]] = {
    "rollback": SPIKE | {"restored_step": int, "skipped": list},
    "refused": {"checkpoint": str, "reason": str},
    "left_out": SPIKE | {"loss": (float, int), "grad_norm": (float, int)},
    "gave_up": SPIKE,
}


@dataclass(frozen=True)
class Spike:
    """An update that was not made. samples: the absolute ids of its batch, first and one past the last."""

    step: int  # the update that it would have been
    loss: float
    grad_norm: float
    tokens: int  # trained on before it
    samples: tuple[int, int]
    reason: str


class Ledger:
    """The events of a run. Open it for writing as the one process that trains the run."""

    def __init__(self, path: Path, *, writable: bool = False):
        self.path = path
        self.events, whole = _read(path)
        if writable and path.exists() and whole < path.stat().st_size:
            os.truncate(path, whole)  # a line that a crash cut off: it never happened
        self.skipped: list[tuple[int, int]] = []  # ranges of sample ids, [start, end)
        self.left_out_at: dict[int, list[dict[str, Any]]] = {}  # step -> updates that were not made there, of this past
        for event in self.events:
            self._take_in(event)

    @property
    def rollbacks(self) -> list[dict[str, Any]]:
        """In the order in which they happened."""
        return [event for event in self.events if event["event"] == "rollback"]

    def _take_in(self, event: dict[str, Any]) -> None:
        """What an event means for the data, and for the past of the run."""
        if event["event"] == "rollback":
            self.skipped.append(tuple(event["skipped"]))
            later = [step for step in self.left_out_at if step > event["restored_step"]]
            for step in later:
                del self.left_out_at[step]
        elif event["event"] == "left_out":
            self.skipped.append(tuple(event["samples"]))
            self.left_out_at.setdefault(event["step"], []).append(event)

    def levels(self, least: int) -> dict[int, list[tuple[float, float]]]:
        """Updates made before -> loss and gradient norm of each update that was left out there, where they were at
        least so many."""
        return {
            step - 1: [(event["loss"], event["grad_norm"]) for event in events]
            for step, events in self.left_out_at.items()
            if len(events) >= least
        }

    def rolled_back(self, spike: Spike, restored_step: int, skipped: tuple[int, int]) -> None:
        """Record a rollback; from now on `skipped` says so too."""
        self._append("rollback", **_fields(spike), restored_step=restored_step, skipped=skipped)

    def left_out(self, spike: Spike) -> None:
        """Record an update that was not made; from now on `skipped` has its samples."""
        self._append("left_out", **_fields(spike))

    def refused(self, checkpoint: Path, reason: str) -> None:
        """Record that a checkpoint could not be used."""
        self._append("refused", checkpoint=checkpoint.name, reason=reason)

    def gave_up(self, spike: Spike) -> None:
        """Record a spike after which there was no rollback."""
        self._append("gave_up", **_fields(spike))

    def belongs(self, step: int, rollbacks: int) -> bool:
        """Whether a state of this step, with so many rollbacks behind it, is part of the run's present past: none of
        the later rollbacks went back beyond it."""
        return all(step <= event["restored_step"] for event in self.rollbacks[rollbacks:])

    def _append(self, event: str, **fields: Any) -> None:
        record = {"event": event, "time": datetime.now(UTC).isoformat(timespec="seconds"), **fields}
        append(self.path, (json.dumps(record) + "\n").encode(), durably=True)
        self.events.append(record)
        self._take_in(record)


def _read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The complete lines, and the bytes that they take."""
    if not path.exists():
        return [], 0
    content = read_bounded(path, LARGEST_LEDGER)
    *lines, cut_off = content.split(b"\n")
    return [_event(path, number, line) for number, line in enumerate(lines, 1)], len(content) - len(cut_off)


def _fields(spike: Spike) -> dict[str, Any]:
    """A spike for JSON."""
    loss, grad_norm = (value if isfinite(value) else None for value in (spike.loss, spike.grad_norm))
    return vars(spike) | {"loss": loss, "grad_norm": grad_norm}


def _event(path: Path, number: int, line: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError, AttributeError, KeyError, TypeError):
        event = parse_json(line)
        kinds = FIELDS[event["event"]]
        ranges = [event[name] for name in ("samples", "skipped") if name in kinds]
        if all(isinstance(event[name], kind) for name, kind in kinds.items()) and all(map(_is_range, ranges)):
            return event
    raise DataError(f"{path}, line {number}, is not an event of the ledger; restore the file, or delete that line.")


def _is_range(value: list) -> bool:
    """[start, end) of sample ids."""
    return len(value) == 2 and all(type(end) is int for end in value) and 0 <= value[0] <= value[1] < 2**62
