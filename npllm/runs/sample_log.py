"""samples.jsonl: what a model wrote at each evaluation of its training, one line each.

    {"step": 200, "prompt": "def ", "text": "..."}

The prompt and the random numbers are always the same, so the texts show how the model
improves. A run that was killed and resumed, or rolled back, has the same file as one
that was not.
"""

import json
from pathlib import Path
from typing import NamedTuple

from npllm.errors import DataError
from npllm.files.atomic import append, write_atomically
from npllm.files.bounded_read import read_bounded
from npllm.files.strict_json import check_fields, parse_json

LARGEST_LOG = 64 << 20  # bytes


class Sample(NamedTuple):
    """A text that the model wrote after `step` updates. text: without the prompt."""

    step: int
    prompt: str
    text: str


def append_sample(path: Path, sample: Sample) -> None:
    """Add a line, which is on the disk when this returns. Raises ResourceError when the
    disk is full."""
    append(path, (json.dumps(sample._asdict()) + "\n").encode(), durably=True)


def drop_samples_after(path: Path, step: int) -> None:
    """Keep the samples up to `step` and remove the rest. A resumed run writes the
    samples after its checkpoint again, and a power cut may have damaged the last
    line."""
    if not path.exists():
        return
    lines, kept = read_bounded(path, LARGEST_LOG).split(b"\n")[:-1], []
    for number, line in enumerate(lines, 1):
        try:
            sample = _sample(path, number, line)
        except DataError:
            if number < len(lines):
                raise
        else:
            kept += [line + b"\n"] * (sample.step <= step)
    write_atomically(path, b"".join(kept))


def read_samples(path: Path) -> list[Sample]:
    """The samples of all complete lines; of a file that does not exist, none.

    Raises DataError for a complete line that is not a sample.
    """
    if not path.exists():
        return []
    *lines, _cut_off = read_bounded(path, LARGEST_LOG).split(b"\n")
    return [_sample(path, number, line) for number, line in enumerate(lines, 1)]


def _sample(path: Path, number: int, line: bytes) -> Sample:
    try:
        record = parse_json(line)
        check_fields(record, {"step": int, "prompt": str, "text": str})
    except ValueError as error:
        raise DataError(f"{path}, line {number}, is not a sample ({error}); delete that line.") from error
    return Sample(record["step"], record["prompt"], record["text"])
