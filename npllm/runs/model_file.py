"""The file of a model alone: a checkpoint whose values come from the model itself.

The checkpoint of a training is built in memory, because training changes its buffers
while the file is written. A model that is saved stays as it is, and may be large. So
HDF5 lays out a file in which the arrays have their places but no values, and these are
written from where they are: the model is in memory once.
"""

import hashlib
import io
import mmap
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

import h5py
import numpy as np

from npllm.files.atomic import write_atomically
from npllm.model import GPT, Parameters
from npllm.model.parameters import parameter_shapes
from npllm.runs.checkpoint import USER_BLOCK, describe, new_file, user_block

ROOM = 1 << 16  # bytes for what HDF5 writes beside the description and the arrays


def write_model(path: Path, model: GPT) -> None:
    """Write a checkpoint that holds the weights of a model alone, with their hash.

    Training cannot go on from it, but may start from its weights. Raises ResourceError
    where the disk is full.
    """
    params = model.params
    if not isinstance(params, Parameters):  # those of a policy are part of a larger buffer
        params = Parameters(parameter_shapes(model.config), model.dtype)
        for name, array in params.items():
            array[...] = model.params[name]
    arrays = {"params": params.flat} | ({} if model.frozen is None else {"frozen": model.frozen.flat})
    layout, places = _layout(describe(model, params, arrays, {}, None), arrays)
    digest = hashlib.sha256()
    for part in _content(layout, places, arrays):
        digest.update(part)
    write_atomically(path, chain([user_block(digest.hexdigest())], _content(layout, places, arrays)))


def _layout(description: bytes, arrays: Mapping[str, np.ndarray]) -> tuple["_Layout", dict[str, int]]:
    """Return a file with room for the arrays, (n,) each, and the place of each in
    it."""
    layout, places = _Layout(ROOM + len(description) + sum(array.nbytes for array in arrays.values())), {}
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    creation.set_obj_track_times(False)  # the same model gives the same bytes at any time
    with new_file(layout, description) as file:
        for name, array in arrays.items():
            kind, space = h5py.h5t.py_create(array.dtype), h5py.h5s.create_simple(array.shape)
            places[name] = h5py.h5d.create(file.id, name.encode(), kind, space, dcpl=creation).get_offset()
    return layout, places


def _content(layout: "_Layout", places: Mapping[str, int], arrays: Mapping[str, np.ndarray]) -> Iterator[memoryview]:
    """Yield the file after its user block."""
    place = USER_BLOCK
    for name in sorted(places, key=places.get):
        yield memoryview(layout.memory[place : places[name]])
        yield memoryview(arrays[name]).cast("B")
        place = places[name] + arrays[name].nbytes
    yield memoryview(layout.memory[place : layout.end])


class _Layout(io.RawIOBase):
    """A file in memory that takes no room where nothing is written. size: at most."""

    def __init__(self, size: int):
        self.memory, self.place, self.end = mmap.mmap(-1, size), 0, 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.end}[whence]
        return self.place

    def readinto(self, buffer) -> int:
        end = min(self.end, self.place + len(buffer))
        n_bytes = max(0, end - self.place)
        buffer[:n_bytes] = self.memory[self.place : self.place + n_bytes]
        self.place += n_bytes
        return n_bytes

    def write(self, data) -> int:
        self.memory[self.place : self.place + len(data)] = bytes(data)
        self.place += len(data)
        self.end = max(self.end, self.place)
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        self.end = self.place if size is None else size
        return self.end
