"""Checkpoints: the state of a loop in one HDF5 file.

    params, adam_m, adam_v ...    flat datasets, one per buffer of the state
    state                         attribute, JSON: version, model config, dtype, seed, counters, and the table
                                  name -> offset and shape

A file is put together in memory and takes over its name only when all of it is on the disk, so a crash leaves either
the old checkpoints or the old ones and a whole new one.
"""

import io
import json
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np

from npllm.atomic import write_atomically
from npllm.data.shards import HDF5_ERRORS
from npllm.errors import ConfigError, DataError
from npllm.model import GPT, ModelConfig
from npllm.training.state import LoopState

VERSION = 1


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` updates lies."""
    return folder / f"step-{step:08d}.h5"


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(folder.glob("step-*.h5"))


def save_checkpoint(folder: Path, state: LoopState, keep: int) -> Path:
    """Write the state, then delete all but the newest `keep` checkpoints; ResourceError when the disk is full."""
    model = state.model
    description = {
        "version": VERSION,
        "model": asdict(model.config),
        "dtype": model.dtype_name,
        "seed": model.seed,
        "table": {name: [model.params.offsets[name], shape] for name, shape in model.params.shapes.items()},
        "counters": state.counters(),
    }
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        for name, array in state.arrays().items():
            file.create_dataset(name, data=array)
        file.attrs["state"] = json.dumps(description)
    path = checkpoint_path(folder, state.step)
    write_atomically(path, image.getbuffer())
    for old in checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def load_checkpoint(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """The description and the flat arrays of a checkpoint; DataError when it is not whole or not one."""
    try:
        with h5py.File(path, "r", locking=False) as file:  # it never changes, and some file systems cannot lock
            description = json.loads(file.attrs["state"])
            if description["version"] != VERSION:
                raise DataError(
                    f"{path} is a checkpoint of version {description['version']}, but this npllm reads version "
                    f"{VERSION}; use the npllm that wrote it."
                )
            arrays = {name: file[name][:] for name in file}
            if missing := {"model", "dtype", "seed", "counters"} - description.keys():
                raise KeyError(f"its state lacks {', '.join(sorted(missing))}")
    except (*HDF5_ERRORS, AttributeError) as error:
        raise DataError(
            f"{path} is not a whole checkpoint ({error}); delete it, and resume goes on from the one before."
        ) from error
    return description, arrays


def model_from_checkpoint(path: Path, *, dtype: str | None = None, backend: str = "kernels") -> GPT:
    """The model alone, ready to evaluate and generate. dtype: None = the one it was trained in."""
    description, arrays = load_checkpoint(path)
    try:
        config = ModelConfig(**description["model"])
        model = GPT(config, seed=description["seed"], dtype=dtype or description["dtype"], backend=backend)
    except (ConfigError, TypeError) as error:
        raise DataError(f"{path} describes no model that can be built ({error}); use another checkpoint.") from error
    check_arrays(path, arrays, {"params": model.params.flat})
    model.params.flat[:] = arrays["params"]
    return model


def restore_checkpoint(path: Path, state: LoopState) -> None:
    """Set a freshly built state of the same config to a checkpoint's."""
    description, arrays = load_checkpoint(path)
    if description["model"] != asdict(state.model.config):
        raise DataError(
            f"{path} belongs to another model than config.toml describes; restore the config.toml of the run."
        )
    check_arrays(path, arrays, state.arrays())
    try:
        state.restore(arrays, description["counters"])
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} has unusable counters ({error}); use another checkpoint.") from error


def check_arrays(path: Path, arrays: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Raise DataError unless every expected array is there with its shape and dtype."""
    for name, array in expected.items():
        found = arrays.get(name)
        if found is None or found.shape != array.shape or found.dtype != array.dtype:
            what = "nothing" if found is None else f"{found.shape} {found.dtype}"
            raise DataError(
                f"{path} should hold {name} as {array.shape} {array.dtype}, but has {what}; use another one."
            )
