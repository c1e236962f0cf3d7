"""Reading arrays and attributes from an HDF5 file that may come from anywhere.

HDF5 can do much more than hold arrays: a link may lead into another file, the storage of a dataset may be another file
or be assembled from several (virtual datasets), a few bytes of compressed data or of mere shape may unfold into
terabytes. Nothing of that is needed here. So these functions ask HDF5 what a thing is before they touch it, accept
plain arrays inside the file only, and read no more bytes than the file holds.

HDF5 itself believes a size in a broken header and asks for that many gigabytes, so the process is held to a limit of
memory while a file is open.
"""

import os
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

import h5py
import numpy as np

# What h5py raises when the HDF5 library gives up on a file or an object.
HDF5_ERRORS = (OSError, KeyError, ValueError, TypeError, RuntimeError, OverflowError, AttributeError)

SPARE_MEMORY = 256 << 20  # bytes that reading may take beyond twice the size of the file
MEMORY_IN_USE = Path("/proc/self/statm")  # pages of address space, first number
_limiting = Lock()


class NotPlain(Exception):
    """What the file holds is not what was asked for; the message says why."""


@contextmanager
def open_file(path: str | Path) -> Iterator[h5py.File]:
    """A file to read. Raises HDF5_ERRORS."""
    with (
        _memory_limit(SPARE_MEMORY + 2 * os.path.getsize(path)),
        # No lock: what is read here is replaced and never changed, and some file systems cannot lock.
        h5py.File(path, "r", locking=False) as file,
    ):
        yield file


@contextmanager
def _memory_limit(n_bytes: int) -> Iterator[None]:
    """Let the process take at most n_bytes more than it has; where the system does not say how much that is, any."""
    if not MEMORY_IN_USE.exists():
        yield
        return
    with _limiting:  # each must find the limit that stood before it
        before, most = resource.getrlimit(resource.RLIMIT_AS)
        limit = int(MEMORY_IN_USE.read_text().split()[0]) * resource.getpagesize() + n_bytes
        if before == resource.RLIM_INFINITY or limit < before:
            resource.setrlimit(resource.RLIMIT_AS, (limit, most))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (before, most))


def check_names(file: h5py.h5f.FileID, expected: Sequence[str]) -> None:
    """Raise NotPlain unless these are the names in the root group, all of them and no others."""
    root = h5py.h5g.open(file, b"/")
    there = all(root.links.exists(name.encode()) for name in expected)
    if not there or root.get_num_objs() != len(expected):
        raise NotPlain(f"it does not hold exactly {' and '.join(expected)}")


def read_dataset(path: str | Path, file: h5py.h5f.FileID, name: str, dtype: np.dtype) -> np.ndarray:
    """A whole 1-D dataset of exactly this type; `path` is the file's. Raises NotPlain and HDF5_ERRORS.

    Each check stands before the first call that the thing it excludes could abuse.
    """
    root = h5py.h5g.open(file, b"/")
    if root.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
        raise NotPlain(f"{name} is a link to elsewhere")
    dataset = h5py.h5d.open(file, name.encode())
    creation = dataset.get_create_plist()  # contiguous means: no chunks, so no filters, and not virtual
    if creation.get_layout() != h5py.h5d.CONTIGUOUS or creation.get_external_count():
        raise NotPlain(f"{name} is not stored plainly inside the file")
    if not _has_type(dataset, dtype):
        raise NotPlain(f"{name} is not {dtype.name}")
    if dataset.rank != 1:
        raise NotPlain(f"{name} is not one-dimensional")
    offset = dataset.get_offset() or 0  # None: never allocated, and would read as zeros of whatever length it claims
    if offset + dataset.shape[0] * dtype.itemsize > os.path.getsize(path):
        raise NotPlain(f"{name} claims more bytes than the file holds")
    return h5py.Dataset(dataset)[()]


def read_attribute(file: h5py.h5f.FileID, name: str, dtype: np.dtype) -> np.generic:
    """A scalar attribute of exactly this type. Raises NotPlain and HDF5_ERRORS."""
    attribute = _open_scalar(file, name)
    if not _has_type(attribute, dtype):
        raise NotPlain(f"the attribute {name} has another type or shape")
    return _value(attribute, dtype)


def read_text_attribute(file: h5py.h5f.FileID, name: str, longest: int) -> bytes:
    """A scalar attribute of fixed-length text, at most `longest` bytes. Raises NotPlain and HDF5_ERRORS."""
    attribute = _open_scalar(file, name)
    kind = attribute.get_type()
    if not isinstance(kind, h5py.h5t.TypeStringID) or kind.is_variable_str():
        raise NotPlain(f"the attribute {name} is not text of a fixed length")
    if kind.get_size() > longest:
        raise NotPlain(f"the attribute {name} is longer than {longest} bytes")
    return bytes(_value(attribute, np.dtype(f"S{kind.get_size()}")))


def _open_scalar(file: h5py.h5f.FileID, name: str) -> h5py.h5a.AttrID:
    if not h5py.h5a.exists(file, name.encode()):
        raise NotPlain(f"the attribute {name} is missing")
    attribute = h5py.h5a.open(file, name.encode())
    if attribute.shape != ():
        raise NotPlain(f"the attribute {name} has another type or shape")
    return attribute


def _value(attribute: h5py.h5a.AttrID, dtype: np.dtype) -> np.generic:
    value = np.empty((), dtype)
    attribute.read(value)
    return value[()]


def _has_type(thing: h5py.h5a.AttrID | h5py.h5d.DatasetID, dtype: np.dtype) -> bool:
    """Exactly this type in the file: no object, variable-length, enumerated, compound or other-endian relative."""
    return thing.get_type().equal(h5py.h5t.py_create(dtype))
