"""Checkpoints: the state of a loop in one HDF5 file.

    params, adam_m, adam_v ...    flat datasets, one per buffer of the state
    state                         attribute, JSON: version, config of the model (and of
                                  the critic, if there is one), dtype, seed, counters,
                                  validation loss if it was measured, and the table
                                  name -> offset and shape
    user block                    the first 512 bytes, which HDF5 leaves to its users:
                                  the SHA-256 of all bytes after them

The file is built in memory. This image is also the snapshot: training continues and
changes its buffers while `checkpoint_store.py` hashes and writes the image.

A checkpoint may come from an untrusted source (see `data/plain_hdf5.py`). A size that a
file claims is never allocated unchecked: an array is read only if it has the length
that the model needs and fits into the file.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import h5py
import numpy as np

from npllm.data.plain_hdf5 import HDF5_ERRORS, NotPlain, check_names, open_file, read_dataset, read_text_attribute
from npllm.errors import ConfigError, DataError
from npllm.files.strict_json import check_fields, from_fields, parse_json
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
    "val_loss": float | None,
}


class Saveable(Protocol):
    """The part of a training state that a checkpoint saves."""

    model: Trainable
    rollbacks: int  # made so far
    tokens: int  # trained on
    seconds: float  # of training

    @property
    def step(self) -> int:
        """Updates made."""

    def arrays(self) -> dict[str, np.ndarray]:
        """The flat buffers, by name."""

    def counters(self) -> dict[str, Any]:
        """The rest of the state, as values that JSON can hold."""

    def restore(self, arrays: dict[str, np.ndarray], counters: dict[str, Any]) -> None:
        """Set the state to saved arrays and counters. Raises ValueError where they are
        not valid."""


class Checkpoint(NamedTuple):
    """The content of a file.

    description: the attribute `state`, with the keys of FIELDS. arrays: the flat
    buffers by name. sha256: the hash in the user block.
    """

    description: dict[str, Any]
    arrays: dict[str, np.ndarray]
    sha256: str


def checkpoint_path(folder: Path, step: int) -> Path:
    """The path of the checkpoint after `step` updates."""
    return folder / f"step-{step:08d}.h5"


def checkpoint_files(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first. Raises DataError when the folder
    cannot be read: that says nothing about what is in it."""
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be read ({error.strerror}); make it readable, put it back from a copy, or make an empty "
            "folder there to start again."
        ) from error
    return sorted(folder / name for name in names if fnmatch(name, "step-*.h5"))


def checkpoint_image(state: Saveable, val_loss: float | None = None) -> memoryview:
    """The bytes of a checkpoint file of this state. `seal` fills in its hash.

    val_loss: validation loss of the weights, None where it was not measured.
    """
    arrays, image = state.arrays(), io.BytesIO()
    with new_file(image, describe(state.model, state.model.params, arrays, state.counters(), val_loss)) as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array)
    return image.getbuffer()


def describe(
    model: Trainable,
    params: Parameters,
    arrays: Iterable[str],
    counters: dict[str, Any],
    val_loss: float | None,
) -> bytes:
    """The attribute `state` of a checkpoint. arrays: the names of its buffers, of which
    `params` has the table of params."""
    description = {
        "version": VERSION,
        **{SECTIONS[part]: asdict(network.config) for part, network in model.parts().items()},
        "dtype": model.dtype_name,
        "seed": model.seed,
        "arrays": list(arrays),
        "table": {name: [params.offsets[name], shape] for name, shape in params.shapes.items()},
        "counters": counters,
        "val_loss": val_loss,
    }
    return json.dumps(description).encode()


@contextmanager
def new_file(target: io.RawIOBase | io.BytesIO, description: bytes) -> Iterator[h5py.File]:
    """A checkpoint in the making, whose arrays the block adds."""
    # v108: attributes may be longer than 64 kB
    with h5py.File(target, "w", libver=("v108", "v108"), userblock_size=USER_BLOCK) as file:
        yield file
        file.attrs["state"] = np.bytes_(description)


def seal(image: memoryview) -> str:
    """Write the SHA-256 of an image into its user block. Returns the hash."""
    digest = hashlib.sha256(image[USER_BLOCK:]).hexdigest()
    image[:USER_BLOCK] = user_block(digest)
    return digest


def sealed_sha256(path: Path) -> str:
    """The hash in a file's user block. Raises DataError unless it matches the file."""
    if path.exists() and not path.is_file():  # reading from a pipe may never end
        raise _damaged(path, "it is not an ordinary file")
    try:
        with path.open("rb") as file:
            block = file.read(USER_BLOCK)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); make it readable, or use another checkpoint."
        ) from error
    if block != user_block(digest):
        raise _damaged(path, "its SHA-256 is not the one that it records")
    return digest


def user_block(digest: str) -> bytes:
    """The user block of a file whose other bytes have this SHA-256."""
    return digest.encode().ljust(USER_BLOCK, b"\0")


def load_checkpoint(path: Path, *, listed_sha256: str | None = None) -> Checkpoint:
    """The content of a checkpoint file.

    Raises DataError when the file is damaged or is not a checkpoint, or when its hash
    is not `listed_sha256`, the hash in the manifest (None = not listed).
    """
    sha256 = sealed_sha256(path)
    if listed_sha256 not in (None, sha256):
        raise DataError(
            f"{path} is not the file that the manifest lists (its SHA-256 differs); use another checkpoint."
        )
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
    check_fields(description, FIELDS)
    return description


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"{path} is not a whole checkpoint ({reason}); use another checkpoint.")


def count_parameters(path: Path) -> int:
    """The number of parameters of the model in a checkpoint: of a pair the actor, with
    its frozen weights. Neither weights nor hash are read.

    Raises DataError for a file that does not describe a model.
    """
    try:
        with open_file(path) as file:
            first = next(iter(configs_of(_read_description(path, file.id)).values()))
    except (NotPlain, ConfigError, *HDF5_ERRORS) as error:
        raise _damaged(path, " ".join(str(error).split())) from error
    return parameter_count(first.language_model if first.lora_rank else first)


def model_from_checkpoint(path: Path, *, dtype: str | None = None, backend: str = "kernels") -> GPT:
    """The model in a checkpoint, ready to evaluate and generate. Of an actor-critic
    pair it is the actor. dtype: None = the dtype it was trained in.

    Raises DataError when the file is damaged, describes no valid model, or holds
    weights that are not finite.
    """
    description, arrays, _ = load_checkpoint(path)
    configs = checked_configs(path, description, arrays)
    try:
        build = {"seed": description["seed"], "dtype": dtype or description["dtype"], "backend": backend}
        first, *critic = configs.values()
        frozen = _frozen_weights(arrays, first, build["dtype"])
        whole: Trainable
        if critic:
            whole = ActorCritic(first, *critic, **build, frozen=frozen)
        else:
            whole = GPT(first, **build, storage=Storage(frozen=frozen))
    except (ConfigError, ValueError, KeyError) as error:
        raise _no_model(path, error) from error
    check_arrays(path, arrays, {"params": whole.params.flat})
    check_finite(path, {name: arrays[name] for name in arrays if name in ("params", "frozen")})
    whole.params.flat[:] = arrays["params"]
    return next(iter(whole.parts().values()))


def checked_configs(path: Path, description: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, ModelConfig]:
    """The config of each part of a checkpoint's model. Raises DataError unless the file
    holds the parameters of the model that it describes."""
    try:
        configs = configs_of(description)
        _check_room(description["table"], arrays, configs)
    except (ConfigError, ValueError, KeyError, ArithmeticError) as error:
        raise _no_model(path, error) from error
    return configs


def _no_model(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} describes no model that can be built ({str(error):.300}); use another checkpoint.")


def configs_of(description: dict[str, Any]) -> dict[str, ModelConfig]:
    """The config of each part of the model (`Trainable.parts`). Raises ConfigError or
    ValueError where the description is not valid."""
    parts = ("policy", "critic") if "critic" in description else (WHOLE,)
    return {part: from_fields(ModelConfig, description[SECTIONS[part]]) for part in parts}


def _frozen_weights(arrays: dict[str, np.ndarray], config: ModelConfig, dtype: str) -> Parameters | None:
    """The frozen weights of a LoRA model, copied from the file's arrays. None without
    LoRA."""
    if not config.lora_rank:
        return None
    frozen = Parameters(weight_shapes(config), "float32" if dtype == "bf16" else dtype)
    if len(arrays["frozen"]) != len(frozen.flat):
        raise ValueError(f"it has {len(arrays['frozen']):,} frozen weights, but should have {len(frozen.flat):,}")
    frozen.flat[:] = arrays["frozen"]
    return frozen


def _check_room(table: dict[str, Any], arrays: dict[str, np.ndarray], configs: dict[str, ModelConfig]) -> None:
    """Raise ValueError unless the file holds and lists as many parameters as the model
    that it describes. Checked before the model is allocated."""
    count = sum(parameter_count(config) for config in configs.values())
    if count > len(arrays["params"]):
        raise ValueError(f"it would have {count:,} parameters, and the file holds {len(arrays['params']):,}")
    for config in configs.values():
        if config.lora_rank and parameter_count(config.language_model) > len(arrays["frozen"]):
            raise ValueError("its frozen weights are fewer than the model has")
    # Compared first: a huge n_layer would make shapes_of_parts list as many names.
    deep = sum(config.n_layer for config in configs.values()) > len(table)
    if deep or shapes_of_parts(configs).keys() != table.keys():
        raise ValueError("its table lists other parameters")


def restore_checkpoint(path: Path, state: Saveable, *, listed_sha256: str | None = None) -> float | None:
    """Load a checkpoint into a state of the same config. Returns the validation loss
    that was saved with it, None if there is none.

    Raises DataError for a file that is damaged or holds values that are not finite, and
    ConfigError for the file of another model. The state is then unchanged.
    """
    description, arrays, _ = load_checkpoint(path, listed_sha256=listed_sha256)
    try:
        configs = configs_of(description)
    except (ConfigError, ValueError):
        configs = {}
    if configs != {part: network.config for part, network in state.model.parts().items()}:
        raise ConfigError(f"{path} holds another model than config.toml describes; restore the config.toml of the run.")
    check_arrays(path, arrays, state.arrays())
    check_finite(path, arrays)
    try:
        state.restore(arrays, description["counters"])
    except ValueError as error:
        raise DataError(f"{path} holds no valid state of this run ({error}); use another checkpoint.") from error
    return description["val_loss"]


def check_arrays(path: Path, arrays: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Raise DataError unless every expected array is there with its shape and dtype."""
    for name, array in expected.items():
        found = arrays.get(name)
        if found is None or found.shape != array.shape or found.dtype != array.dtype:
            what = "nothing" if found is None else f"{found.shape} {found.dtype}"
            raise DataError(
                f"{path} should hold {name} as {array.shape} {array.dtype}, but has {what}; use another checkpoint."
            )


def check_finite(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Raise DataError for an array that holds a NaN or an infinity."""
    for name, array in arrays.items():
        with np.errstate(all="ignore"):  # infinities of both signs add up to NaN
            total = array.sum(dtype=np.float64)
        if not np.isfinite(total):
            raise DataError(f"{path} is poisoned ({name} holds values that are not finite); use another checkpoint.")
