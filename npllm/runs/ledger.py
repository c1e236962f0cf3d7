"""ledger.jsonl: what went wrong in a run, and what was decided. One line an event; a
line is never changed, and a rollback does not remove it.

    rollback    "time", "step", "loss", "grad_norm", "tokens", "samples", "reason",
                "restored_step", "skipped": [start, end]
                a spike, the checkpoint that was restored, and the sample ids to skip
    left_out    "time", "step", "loss", ..., "samples", "reason"
                one update that was not made; nothing was restored
    refused     "time", "checkpoint", "reason"
                a checkpoint that could not be used
    gave_up     "time", "step", "loss", ..., "reason"
                a spike after which no rollback was possible
    length      "time", "step", "steps", "seconds"
                the number of updates that a time budget has room for, as decided after
                `step` updates that took `seconds`
    extended    "time", "step", "minutes", "seconds"
                a run that had ended with `step` updates, which took `seconds`, goes on
                for so many minutes
    ended_early "time", "step", "steps"
                a run ends with `step` updates, because its validation loss no longer
                falls; train.steps was `steps` until then

Appending the line *is* the rollback. If the process is killed before, the spike happens
again. If it is killed after, `npllm resume` reads here which samples to skip, and which
checkpoints were made after the restored one and so do not count any more.
"""

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from npllm.errors import DataError
from npllm.files.atomic import append
from npllm.files.bounded_read import read_bounded
from npllm.files.strict_json import check_fields, parse_json
from npllm.files.unwritable import unwritable

LARGEST_LEDGER = 64 << 20  # bytes
NUMBER = float | None  # None stands for NaN and infinity, which JSON lacks
SPIKE = {"step": int, "loss": NUMBER, "grad_norm": NUMBER, "tokens": int, "samples": list, "reason": str}
FIELDS: dict[str, dict[str, Any]] = {
    "rollback": SPIKE | {"restored_step": int, "skipped": list},
    "refused": {"checkpoint": str, "reason": str},
    "left_out": SPIKE | {"loss": float, "grad_norm": float},
    "gave_up": SPIKE,
    "length": {"step": int, "steps": int, "seconds": float},
    "extended": {"step": int, "minutes": float, "seconds": float},
    "ended_early": {"step": int, "steps": int | None},
}


@dataclass(frozen=True)
class Spike:
    """An update that was not made.

    samples: the absolute ids of its batch, [start, end).
    """

    step: int  # number that the update would have had
    loss: float
    grad_norm: float
    tokens: int  # trained on before it
    samples: tuple[int, int]
    reason: str


class Ledger:
    """The events of a run. Only the process that trains the run may open it
    writable."""

    def __init__(self, path: Path, *, writable: bool = False):
        self.path = path
        self.events, whole = _read(path)
        if writable and path.exists() and whole < path.stat().st_size:
            _cut(path, whole)  # a line that a crash cut off does not count
        self.skipped: list[tuple[int, int]] = []  # ranges of sample ids, [start, end)
        # step -> its left_out events that no later rollback has undone
        self.left_out_at: dict[int, list[dict[str, Any]]] = {}
        for event in self.events:
            self._take_in(event)

    @property
    def rollbacks(self) -> list[dict[str, Any]]:
        """The rollback events, oldest first."""
        return [event for event in self.events if event["event"] == "rollback"]

    @property
    def schedule(self) -> list[dict[str, Any]]:
        """The decisions about the length of the run, its extensions and early ends,
        oldest first."""
        return [event for event in self.events if event["event"] in ("length", "extended", "ended_early")]

    def _take_in(self, event: dict[str, Any]) -> None:
        """Update `skipped` and `left_out_at` by one event."""
        if event["event"] == "rollback":
            self.skipped.append(tuple(event["skipped"]))
            later = [step for step in self.left_out_at if step > event["restored_step"]]
            for step in later:
                del self.left_out_at[step]
        elif event["event"] == "left_out":
            self.skipped.append(tuple(event["samples"]))
            self.left_out_at.setdefault(event["step"], []).append(event)

    def levels(self, least: int) -> dict[int, list[tuple[float, float]]]:
        """Where at least `least` updates in a row were left out: the number of updates
        made before -> the loss and gradient norm of each one left out."""
        return {
            step - 1: [(event["loss"], event["grad_norm"]) for event in events]
            for step, events in self.left_out_at.items()
            if len(events) >= least
        }

    def rolled_back(self, spike: Spike, restored_step: int, skipped: tuple[int, int]) -> None:
        """Record a rollback and add its samples to `skipped`."""
        self._append("rollback", **_fields(spike), restored_step=restored_step, skipped=skipped)

    def left_out(self, spike: Spike) -> None:
        """Record an update that was not made and add its samples to `skipped`."""
        self._append("left_out", **_fields(spike))

    def refused(self, checkpoint: Path, reason: str) -> None:
        """Record that a checkpoint could not be used."""
        self._append("refused", checkpoint=checkpoint.name, reason=reason)

    def gave_up(self, spike: Spike) -> None:
        """Record a spike that ended the run."""
        self._append("gave_up", **_fields(spike))

    def decided_length(self, step: int, steps: int, seconds: float) -> None:
        """Record that a run that has made `step` updates will make `steps`."""
        self._append("length", step=step, steps=steps, seconds=seconds)

    def extended(self, step: int, minutes: float, seconds: float) -> None:
        """Record that a run that has ended with `step` updates goes on."""
        self._append("extended", step=step, minutes=minutes, seconds=seconds)

    def ended_early(self, step: int, steps: int | None) -> None:
        """Record that a run ends with `step` updates. steps: train.steps until then."""
        self._append("ended_early", step=step, steps=steps)

    def belongs(self, step: int, rollbacks: int) -> bool:
        """Whether no later rollback has undone a state of this step that was saved
        after `rollbacks` rollbacks: none of them restored an earlier step."""
        return all(step <= event["restored_step"] for event in self.rollbacks[rollbacks:])

    def _append(self, event: str, **fields: Any) -> None:
        record = {"event": event, "time": datetime.now(UTC).isoformat(timespec="seconds"), **fields}
        append(self.path, (json.dumps(record) + "\n").encode(), durably=True)
        self.events.append(record)
        self._take_in(record)


def _cut(path: Path, n_bytes: int) -> None:
    try:
        os.truncate(path, n_bytes)
    except OSError as error:
        raise unwritable(path, error) from error


def _read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The events of the complete lines, and the bytes that these lines take."""
    if not path.exists():
        return [], 0
    content = read_bounded(path, LARGEST_LEDGER)
    *lines, cut_off = content.split(b"\n")
    return [_event(path, number, line) for number, line in enumerate(lines, 1)], len(content) - len(cut_off)


def _fields(spike: Spike) -> dict[str, Any]:
    """The fields of a spike, as values that JSON can hold."""
    loss, grad_norm = (value if isfinite(value) else None for value in (spike.loss, spike.grad_norm))
    return vars(spike) | {"loss": loss, "grad_norm": grad_norm}


def _event(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        event = parse_json(line)
        check_fields(event, {"event": Literal[tuple(FIELDS)]})
        types = FIELDS[event["event"]]
        check_fields(event, types)
        for name in ("samples", "skipped"):
            if name in types and not _is_range(event[name]):
                raise ValueError(f"{name} is {event[name]!r:.80}")
    except ValueError as error:
        raise DataError(
            f"{path}, line {number}, is not an event of the ledger ({error}); restore the file or delete that line."
        ) from error
    return event


def _is_range(value: list) -> bool:
    """Whether a list is a range of sample ids, [start, end)."""
    return len(value) == 2 and all(type(end) is int for end in value) and 0 <= value[0] <= value[1] < 2**62
