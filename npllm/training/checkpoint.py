"""Checkpoints: the state of a loop in one HDF5 file.

    params, adam_m, adam_v ...    flat datasets, one per buffer of the state
    state                         attribute, JSON: version, model config, dtype, seed, counters, validation loss if it
                                  was measured, the table name -> offset and shape, and a SHA-256 of all this

The file is put together in memory. That is also the snapshot: the training goes on, and changes its buffers, while
`checkpoint_store.py` carries the bytes to the disk.

A checkpoint may come from anywhere: see `data/plain_hdf5.py`. Nothing is allocated because a file says so; arrays are
read when they are as long as the model needs and not longer than the file.
"""

import hashlib
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from npllm.data.plain_hdf5 import HDF5_ERRORS, NotPlain, check_names, read_dataset, read_text_attribute
from npllm.errors import ConfigError, DataError
from npllm.model import GPT, ModelConfig
from npllm.model.parameters import parameter_count
from npllm.strict_json import parse_json
from npllm.training.state import LoopState

VERSION = 2
LONGEST_DESCRIPTION = 1 << 20  # bytes of JSON
BUFFERS = ("params", "adam_m", "adam_v", "velocity")
FIELDS = {
    "version": int,
    "model": dict,
    "dtype": str,
    "seed": int,
    "arrays": list,
    "table": dict,
    "counters": dict,
    "val_loss": (float, type(None)),
    "sha256": str,
}


class Checkpoint(NamedTuple):
    """What a file holds. description: FIELDS. arrays: the flat buffers by name."""

    description: dict[str, Any]
    arrays: dict[str, np.ndarray]


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` updates lies."""
    return folder / f"step-{step:08d}.h5"


def checkpoint_files(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(folder.glob("step-*.h5"))


def checkpoint_image(state: LoopState, val_loss: float | None = None) -> memoryview:
    """The bytes of the file that holds this state. val_loss: of the weights, where it was measured."""
    model = state.model
    arrays = state.arrays()
    description = {
        "version": VERSION,
        "model": asdict(model.config),
        "dtype": model.dtype_name,
        "seed": model.seed,
        "arrays": list(arrays),
        "table": {name: [model.params.offsets[name], shape] for name, shape in model.params.shapes.items()},
        "counters": state.counters(),
        "val_loss": val_loss,
    }
    description["sha256"] = _content_sha256(description, arrays)
    image = io.BytesIO()
    with h5py.File(image, "w", libver=("v108", "v108")) as file:  # its attributes may be longer than 64 kB
        for name, array in arrays.items():
            file.create_dataset(name, data=array)
        file.attrs["state"] = np.bytes_(json.dumps(description))
    return image.getbuffer()


def load_checkpoint(path: Path) -> Checkpoint:
    """All of a checkpoint; DataError when it is not whole or not one."""
    try:
        with h5py.File(path, "r", locking=False) as file:  # it never changes, and some file systems cannot lock
            description = _read_description(path, file.id)
            names = description["arrays"]
            if not names or any(name not in BUFFERS for name in names):
                raise NotPlain(f"it holds arrays other than {', '.join(BUFFERS)}")
            check_names(file.id, names)
            dtype = np.dtype("<f8" if description["dtype"] == "float64" else "<f4")
            arrays = {name: read_dataset(path, file.id, name, dtype) for name in names}
    except NotPlain as error:
        raise _damaged(path, str(error)) from None
    except HDF5_ERRORS as error:
        raise _damaged(path, " ".join(str(error).split())) from error
    if description["sha256"] != _content_sha256(description, arrays):
        raise _damaged(path, "its content does not match its SHA-256")
    return Checkpoint(description, arrays)


def _read_description(path: Path, file: h5py.h5f.FileID) -> dict[str, Any]:
    description = parse_json(read_text_attribute(file, "state", LONGEST_DESCRIPTION))
    version = description.get("version") if type(description) is dict else None
    if version != VERSION:
        raise DataError(
            f"{path} is a checkpoint of version {version!r:.20}, but this npllm reads version {VERSION}; use the npllm "
            "that wrote it."
        )
    for name, kind in FIELDS.items():
        if name not in description or not isinstance(description[name], kind):
            raise NotPlain(f"{name} is missing in its state, or is of the wrong type")
    return description


def _content_sha256(description: dict[str, Any], arrays: dict[str, np.ndarray]) -> str:
    content = {name: value for name, value in description.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(arrays[name])
    return digest.hexdigest()


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"{path} is not a whole checkpoint ({reason}); use another one.")


def model_from_checkpoint(path: Path, *, dtype: str | None = None, backend: str = "kernels") -> GPT:
    """The model alone, ready to evaluate and generate. dtype: None = the one it was trained in."""
    description, arrays = load_checkpoint(path)
    try:
        config = ModelConfig(**description["model"])
        _check_room(arrays["params"], config)
        model = GPT(config, seed=description["seed"], dtype=dtype or description["dtype"], backend=backend)
    except (ConfigError, TypeError, ValueError, KeyError) as error:
        raise DataError(f"{path} describes no model that can be built ({error}); use another checkpoint.") from error
    check_arrays(path, arrays, {"params": model.params.flat})
    check_finite(path, {"params": arrays["params"]})
    model.params.flat[:] = arrays["params"]
    return model


def _check_room(params: np.ndarray, config: ModelConfig) -> None:
    """Before a model is built because a file describes it: does the file hold that many parameters?"""
    count = parameter_count(config)
    if count > len(params):
        raise ValueError(f"it would have {count:,} parameters, and the file holds {len(params):,}")


def restore_checkpoint(path: Path, state: LoopState) -> float | None:
    """Set a state of the same config to a checkpoint's. Returns the validation loss that was measured then, if any.

    Raises, with the state as it was, DataError for a file that is damaged or holds values that are not finite, and
    ConfigError for one that belongs to another model.
    """
    description, arrays = load_checkpoint(path)
    if description["model"] != asdict(state.model.config):
        raise ConfigError(
            f"{path} belongs to another model than config.toml describes; restore the config.toml of the run."
        )
    check_arrays(path, arrays, state.arrays())
    check_finite(path, arrays)
    try:
        state.restore(arrays, description["counters"])
    except ValueError as error:
        raise DataError(f"{path} has unusable counters ({error}); use another checkpoint.") from error
    return description["val_loss"]


def check_arrays(path: Path, arrays: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Raise DataError unless every expected array is there with its shape and dtype."""
    for name, array in expected.items():
        found = arrays.get(name)
        if found is None or found.shape != array.shape or found.dtype != array.dtype:
            what = "nothing" if found is None else f"{found.shape} {found.dtype}"
            raise DataError(
                f"{path} should hold {name} as {array.shape} {array.dtype}, but has {what}; use another one."
            )


def check_finite(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Raise DataError for an array with a NaN or an infinity in it: it would poison everything that comes from it."""
    for name, array in arrays.items():
        if not np.isfinite(array.sum(dtype=np.float64)):
            raise DataError(f"{path} is poisoned ({name} holds values that are not finite); use another one.")
