"""summary.json: the final figures of a run, for programs."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from npllm.errors import DataError
from npllm.files.atomic import write_atomically
from npllm.files.bounded_read import read_bounded
from npllm.files.strict_json import check_fields, parse_json
from npllm.runs.checkpoint import Saveable
from npllm.runs.run_folder import RunFolder

LARGEST_SUMMARY = 1 << 20  # bytes
OF_EVERY_RUN = {"steps": int, "tokens": int, "seconds": float, "params_sha256": str}


def write_summary(run: RunFolder, state: Saveable, figures: Mapping[str, Any]) -> None:
    """Write the figures of a stage, followed by the figures of every run: updates,
    tokens, seconds, and the SHA-256 of the weights."""
    summary = dict(figures) | {
        "steps": state.step,
        "tokens": state.tokens,
        "seconds": round(state.seconds, 3),
        "params_sha256": hashlib.sha256(state.model.params.flat).hexdigest(),
    }
    write_atomically(run.summary, (json.dumps(summary, indent=2) + "\n").encode())


def read_summary(run: RunFolder, figures: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The summary of a run. figures: name -> type of those that the caller needs, in
    addition to the figures of every run. Raises DataError where one is missing or has
    another type."""
    try:
        summary = parse_json(read_bounded(run.summary, LARGEST_SUMMARY))
        check_fields(summary, OF_EVERY_RUN | dict(figures or {}))
    except ValueError as error:
        raise DataError(
            f"{run.summary} is not the summary of a run ({error}); delete it, and npllm resume writes it again."
        ) from error
    return summary
