"""Checkpoints: the state of a loop in one HDF5 file.

    params, adam_m, adam_v ...    flat datasets, one per buffer of the state
    state                         attribute, JSON: version, config of the model (and of the critic, if there is one),
                                  dtype, seed, counters, validation loss if it was measured, and the table name ->
                                  offset and shape
    user block                    the 512 bytes before all this, which HDF5 leaves to its users: the SHA-256 of the rest

The file is put together in memory. That is also the snapshot: the training goes on, and changes its buffers, while
`checkpoint_store.py` hashes the bytes and carries them to the disk.

A checkpoint may come from anywhere: see `data/plain_hdf5.py`. Nothing is allocated because a file says so; arrays are
read when they are as long as the model needs and not longer than the file.
"""

import hashlib
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import h5py
import numpy as np

from npllm.data.plain_hdf5 import HDF5_ERRORS, NotPlain, check_names, open_file, read_dataset, read_text_attribute
from npllm.errors import ConfigError, DataError
from npllm.files.strict_json import parse_json
from npllm.model import GPT, ActorCritic, ModelConfig, Parameters, Storage, Trainable
from npllm.model.parameters import WHOLE, parameter_count, shapes_of_parts, weight_shapes

VERSION = 2
LONGEST_DESCRIPTION = 1 << 20  # bytes of JSON
USER_BLOCK = 512  # bytes, the smallest that HDF5 has
BUFFERS = ("params", "adam_m", "adam_v", "velocity", "frozen")  # of the model's dtype
EXTRA_BUFFERS = {"rollout_tokens": np.dtype("<i4"), "rollout_numbers": np.dtype("<f8")}
SECTIONS = {WHOLE: "model", "policy": "model", "critic": "critic"}  # the field with the config of each part
FIELDS = {
    "version": int,
    "model": dict,
    "dtype": str,
    "seed": int,
    "arrays": list,
    "table": dict,
    "counters": dict,
    "val_loss": (float, type(None)),
}


class Saveable(Protocol):
    """The state of a training, as far as a checkpoint is concerned."""

    model: Trainable
    rollbacks: int  # that lie behind it
    tokens: int  # trained on
    seconds: float  # of training

    @property
    def step(self) -> int:
        """Updates made."""

    def arrays(self) -> dict[str, np.ndarray]:
        """The flat buffers, by name."""

    def counters(self) -> dict[str, Any]:
        """The rest, for JSON."""

    def restore(self, arrays: dict[str, np.ndarray], counters: dict[str, Any]) -> None:
        """Become the state that these were taken from. Raises ValueError where they cannot be such."""


class Checkpoint(NamedTuple):
    """What a file holds. description: FIELDS. arrays: the flat buffers by name. sha256: of the file."""

    description: dict[str, Any]
    arrays: dict[str, np.ndarray]
    sha256: str


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` updates lies."""
    return folder / f"step-{step:08d}.h5"


def checkpoint_files(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(folder.glob("step-*.h5"))


def checkpoint_image(state: Saveable, val_loss: float | None = None) -> memoryview:
    """The bytes of the file that holds this state, still without the hash that `seal` puts before them.

    val_loss: of the weights, where it was measured.
    """
    model = state.model
    arrays = state.arrays()
    description = {
        "version": VERSION,
        **{SECTIONS[part]: asdict(network.config) for part, network in model.parts().items()},
        "dtype": model.dtype_name,
        "seed": model.seed,
        "arrays": list(arrays),
        "table": {name: [model.params.offsets[name], shape] for name, shape in model.params.shapes.items()},
        "counters": state.counters(),
        "val_loss": val_loss,
    }
    image = io.BytesIO()
    # v108: attributes may be longer than 64 kB
    with h5py.File(image, "w", libver=("v108", "v108"), userblock_size=USER_BLOCK) as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array)
        file.attrs["state"] = np.bytes_(json.dumps(description))
    return image.getbuffer()


def seal(image: memoryview) -> str:
    """Write the SHA-256 of the file into its user block; returns it."""
    digest = hashlib.sha256(image[USER_BLOCK:]).hexdigest()
    image[:USER_BLOCK] = _user_block(digest)
    return digest


def sealed_sha256(path: Path) -> str:
    """The hash in a file's user block. Raises DataError unless it is that of the file."""
    if path.exists() and not path.is_file():  # reading from a pipe may take for ever
        raise _damaged(path, "it is no ordinary file")
    try:
        with path.open("rb") as file:
            block = file.read(USER_BLOCK)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _damaged(path, error.strerror) from error
    if block != _user_block(digest):
        raise _damaged(path, "its SHA-256 is not the one that it says")
    return digest


def _user_block(digest: str) -> bytes:
    return digest.encode().ljust(USER_BLOCK, b"\0")


def load_checkpoint(path: Path, *, listed_sha256: str | None = None) -> Checkpoint:
    """All of a checkpoint; DataError when it is not whole or not one, or not the file with the hash that was listed."""
    sha256 = sealed_sha256(path)
    if listed_sha256 not in (None, sha256):
        raise DataError(f"{path} is not the file that the manifest lists (its SHA-256 differs); use another one.")
    try:
        with open_file(path) as file:
            description = _read_description(path, file.id)
            names = description["arrays"]
            dtype = np.dtype("<f8" if description["dtype"] == "float64" else "<f4")
            dtypes = dict.fromkeys(BUFFERS, dtype) | EXTRA_BUFFERS
            if not names or any(name not in dtypes for name in names):
                raise NotPlain(f"it holds arrays other than {', '.join(dtypes)}")
            check_names(file.id, names)
            arrays = {name: read_dataset(path, file.id, name, dtypes[name]) for name in names}
    except NotPlain as error:
        raise _damaged(path, str(error)) from None
    except HDF5_ERRORS as error:
        raise _damaged(path, " ".join(str(error).split())) from error
    return Checkpoint(description, arrays, sha256)


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


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"{path} is not a whole checkpoint ({reason}); use another one.")


def model_from_checkpoint(path: Path, *, dtype: str | None = None, backend: str = "kernels") -> GPT:
    """The model alone, ready to evaluate and generate; of an actor with a critic, the actor. dtype: None = the one it
    was trained in."""
    description, arrays, _ = load_checkpoint(path)
    try:
        configs = configs_of(description)
        _check_room(description["table"], arrays, configs)
        build = {"seed": description["seed"], "dtype": dtype or description["dtype"], "backend": backend}
        first, *critic = configs.values()
        frozen = _frozen_weights(arrays, first, build["dtype"])
        whole: Trainable
        if critic:
            whole = ActorCritic(first, *critic, **build, frozen=frozen)
        else:
            whole = GPT(first, **build, storage=Storage(frozen=frozen))
    except (ConfigError, TypeError, ValueError, KeyError, ArithmeticError) as error:
        raise DataError(
            f"{path} describes no model that can be built ({str(error):.300}); use another checkpoint."
        ) from error
    check_arrays(path, arrays, {"params": whole.params.flat})
    check_finite(path, {name: arrays[name] for name in arrays if name in ("params", "frozen")})
    whole.params.flat[:] = arrays["params"]
    return next(iter(whole.parts().values()))


def configs_of(description: dict[str, Any]) -> dict[str, ModelConfig]:
    """Of each part of the model (`Trainable.parts`). Raises ConfigError or TypeError where there can be no such."""
    parts = ("policy", "critic") if "critic" in description else (WHOLE,)
    return {part: ModelConfig(**description[SECTIONS[part]]) for part in parts}


def _frozen_weights(arrays: dict[str, np.ndarray], config: ModelConfig, dtype: str) -> Parameters | None:
    """The weights below LoRA, as the file has them."""
    if not config.lora_rank:
        return None
    frozen = Parameters(weight_shapes(config), "float32" if dtype == "bf16" else dtype)
    if len(arrays["frozen"]) != len(frozen.flat):
        raise ValueError(f"it has {len(arrays['frozen']):,} frozen weights, but should have {len(frozen.flat):,}")
    frozen.flat[:] = arrays["frozen"]
    return frozen


def _check_room(table: dict[str, Any], arrays: dict[str, np.ndarray], configs: dict[str, ModelConfig]) -> None:
    """Before a model is built because a file describes it: does the file hold that many parameters, and list them?"""
    count = sum(parameter_count(config) for config in configs.values())
    if count > len(arrays["params"]):
        raise ValueError(f"it would have {count:,} parameters, and the file holds {len(arrays['params']):,}")
    for config in configs.values():
        if config.lora_rank and parameter_count(config.language_model) > len(arrays["frozen"]):
            raise ValueError("its frozen weights are fewer than the model has")
    deep = sum(config.n_layer for config in configs.values()) > len(table)  # many names would have to be made
    if deep or shapes_of_parts(configs).keys() != table.keys():
        raise ValueError("its table lists other parameters")


def restore_checkpoint(path: Path, state: Saveable, *, listed_sha256: str | None = None) -> float | None:
    """Set a state of the same config to a checkpoint's. Returns the validation loss that was measured then, if any.

    Raises, with the state as it was, DataError for a file that is damaged or holds values that are not finite, and
    ConfigError for one that belongs to another model.
    """
    description, arrays, _ = load_checkpoint(path, listed_sha256=listed_sha256)
    try:
        configs = configs_of(description)
    except (ConfigError, TypeError):
        configs = {}
    if configs != {part: network.config for part, network in state.model.parts().items()}:
        raise ConfigError(
            f"{path} belongs to another model than config.toml describes; restore the config.toml of the run."
        )
    check_arrays(path, arrays, state.arrays())
    check_finite(path, arrays)
    try:
        state.restore(arrays, description["counters"])
    except ValueError as error:
        raise DataError(f"{path} describes no state of this run ({error}); use another checkpoint.") from error
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
        with np.errstate(all="ignore"):  # infinities of both signs
            total = array.sum(dtype=np.float64)
        if not np.isfinite(total):
            raise DataError(f"{path} is poisoned ({name} holds values that are not finite); use another one.")
