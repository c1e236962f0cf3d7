"""Reads the weights of untrusted folders: a safetensors file, or some and an index.

Tensors are read in parts of a megabyte, and a file is opened anew for each part.
It is mapped into memory, and of a map all that was ever read stays there. So a model is
in memory once, however large its tensors and files are.

Source: https://huggingface.co/docs/safetensors, the format.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from npllm.errors import ConfigError, DataError
from npllm.files.bounded_read import open_bounded, read_bounded
from npllm.files.strict_json import parse_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
LARGEST_JSON = 1 << 22  # bytes of config.json or of an index, which has 100 for each tensor
LARGEST_WEIGHTS = 1 << 48  # bytes
DTYPES = ("F32", "F16", "BF16")
PART = 1 << 18  # elements of a tensor that are read at once


class Stored(NamedTuple):
    """Where a tensor is, and what its file says about it."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise DataError unless the tensor has this shape and one of DTYPES."""
        if self.shape != shape or self.dtype not in DTYPES:
            raise DataError(
                f"{self.path}: the tensor {self.name} is {self.shape} of {self.dtype}, but {shape} of "
                f"{', '.join(DTYPES)} is needed; get the folder again."
            )

    def parts(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield rows and their values, float16, bfloat16 or float32."""
        rows = max(1, PART // prod(self.shape[1:]))
        for first in range(0, self.shape[0], rows):
            where = slice(first, min(first + rows, self.shape[0]))
            with _opened(self.path) as file:
                yield where, file.get_slice(self.name)[where]

    def read_into(self, array: np.ndarray) -> None:
        """Fill an array of the tensor's shape.

        Raises DataError for infinity and NaN.
        """
        for where, values in self.parts():
            array[where] = values
            if not np.isfinite(array[where]).all():
                raise DataError(
                    f"{self.path}: the tensor {self.name} holds weights that are not finite; get the files again."
                )


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Return all tensors of a folder by name.

    Raises DataError for files that are missing, damaged or outside of the folder, and
    ConfigError where safetensors is not installed.
    """
    found: dict[str, Stored] = {}
    for path in _paths(folder):
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                if name in found:
                    raise DataError(f"{path} has the tensor {name:.80}, as {found[name].path} has; remove one of them.")
                described = file.get_slice(name)
                found[name] = Stored(path, name, tuple(described.get_shape()), described.get_dtype())
    return found


def safetensors_library() -> Any:
    """Return the package safetensors. Raises ConfigError where it is not installed."""
    try:
        import ml_dtypes  # noqa: F401  gives NumPy the dtype bfloat16
        import safetensors.numpy
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"Hugging Face's files need the package {error.name}; install it (pip install 'npllm[hf]')."
        ) from None
    return safetensors


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    library = safetensors_library()
    with open_bounded(path, LARGEST_WEIGHTS):  # an ordinary file: a pipe would wait forever
        try:
            with library.safe_open(path, framework="numpy") as file:
                yield file
        except (library.SafetensorError, OSError) as error:
            raise DataError(f"{path} cannot be read ({error}); get the file again.") from error


def _paths(folder: Path) -> list[Path]:
    index = folder / INDEX
    if not index.exists():
        if not (folder / WEIGHTS).exists() and any((folder / name).exists() for name in PICKLES):
            raise DataError(f"{folder} has pickled weights, which may run any code; save them as safetensors.")
        return [folder / WEIGHTS]
    table = read_json(index).get("weight_map")
    names = list(table.values()) if isinstance(table, dict) else []
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise DataError(f"{index} names the file {name!r:.80} outside of its folder; get the folder again.")
    if not names:
        raise DataError(f"{index} names no files; get it again.")
    return [folder / name for name in sorted(set(names))]


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises DataError for anything else."""
    try:
        fields = parse_json(read_bounded(path, LARGEST_JSON))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}); get it again.") from None
    if not isinstance(fields, dict):
        raise DataError(f"{path} holds no JSON object; get it again.")
    return fields
