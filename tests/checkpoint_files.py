"""Checkpoint files for tests: writes them, and changes one thing in a good file.

The SHA-256 is made right again after each change, so that only the change itself can be
what a reader refuses.
"""

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from npllm.runs.checkpoint import checkpoint_image, checkpoint_path, seal
from npllm.training.state import LoopState


def write_checkpoint(folder: Path, state: LoopState, val_loss: float | None = None) -> Path:
    """Write the checkpoint of a state into a folder without a manifest; its path."""
    path = checkpoint_path(folder, state.step)
    image = checkpoint_image(state, val_loss)
    seal(image)
    path.write_bytes(image)
    return path


def edit(path: Path, change: Callable[[h5py.File], None]) -> None:
    """Change a file with h5py, then make its SHA-256 right again."""
    with h5py.File(path, "r+") as file:
        change(file)
    image = bytearray(path.read_bytes())
    seal(memoryview(image))
    path.write_bytes(image)


def reseal(path: Path, change: Callable[[dict, h5py.File], None]) -> None:
    """Change the description and the datasets, then make the SHA-256 right again."""

    def both(file):
        description = json.loads(file.attrs["state"])
        change(description, file)
        file.attrs["state"] = np.bytes_(json.dumps(description))

    edit(path, both)


def described(**changes) -> Callable[[Path], None]:
    """A function that sets names of a file's description; None deletes a name."""

    def change(description, _):
        description.update(changes)
        for name in [name for name, value in changes.items() if value is None]:
            del description[name]

    return lambda path: reseal(path, change)
