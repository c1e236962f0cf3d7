"""summary.json: the final figures of a run, for programs."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from npllm.files.atomic import write_atomically
from npllm.runs.checkpoint import Saveable
from npllm.runs.run_folder import RunFolder


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
