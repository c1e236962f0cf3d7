"""Checkpoint files for tests: written at once, and changed so that everything about them fits but the change."""

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from npllm.training import checkpoint
from npllm.training.checkpoint import checkpoint_image, checkpoint_path
from npllm.training.state import LoopState


def write_checkpoint(folder: Path, state: LoopState, val_loss: float | None = None) -> Path:
    """The file of a state in a folder without a manifest."""
    path = checkpoint_path(folder, state.step)
    path.write_bytes(checkpoint_image(state, val_loss))
    return path


def edit(path: Path, change: Callable[[h5py.File], None]) -> None:
    """Change a file with h5py, and leave its SHA-256 wrong."""
    with h5py.File(path, "r+") as file:
        change(file)


def reseal(path: Path, change: Callable[[dict, h5py.File], None]) -> None:
    """Change the description and the datasets, then make the SHA-256 right again."""
    with h5py.File(path, "r+") as file:
        description = json.loads(file.attrs["state"])
        change(description, file)
        arrays = {name: file[name][()] for name in description.get("arrays", [])}
        description["sha256"] = checkpoint._content_sha256(description, arrays)
        file.attrs["state"] = np.bytes_(json.dumps(description))


def described(**changes) -> Callable[[Path], None]:
    """A change of the description: `name=value`, or `name=None` to take the name away."""

    def change(description, _):
        description.update(changes)
        for name in [name for name, value in changes.items() if value is None]:
            del description[name]

    return lambda path: reseal(path, change)
