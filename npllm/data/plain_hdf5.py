"""Reads arrays and attributes from an HDF5 file that may come from an untrusted source.

HDF5 can do much more than hold arrays. A link may lead into another file. The storage
of a dataset may be another file, or be assembled from several (virtual datasets). A few
bytes of compressed data, or merely a shape, may expand to terabytes. Nothing of that is
needed here. So these functions ask HDF5 what an object is before they read it, accept
only plain arrays inside the file, and read no more bytes than the file holds.

HDF5 itself believes a size in a damaged header and asks for that much memory. So the
memory of the process is limited while a file is open.
"""

import os
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

import h5py
import numpy as np

# What h5py raises when the HDF5 library cannot read a file or an object.
HDF5_ERRORS = (OSError, KeyError, ValueError, TypeError, RuntimeError, OverflowError, AttributeError)

SPARE_MEMORY = 256 << 20  # bytes that reading may take in addition to twice the size of the file
MEMORY_IN_USE = Path("/proc/self/statm")  # pages of address space, first number
_limiting = Lock()


class NotPlain(Exception):
    """The file does not hold what was asked for; the message says why."""


@contextmanager
def open_file(path: str | Path) -> Iterator[h5py.File]:
    """Open a file for reading. Raises HDF5_ERRORS."""
    with (
        _memory_limit(SPARE_MEMORY + 2 * os.path.getsize(path)),
        # No lock: files are replaced, never changed; some file systems cannot lock.
        h5py.File(path, "r", locking=False) as file,
    ):
        yield file


@contextmanager
def _memory_limit(n_bytes: int) -> Iterator[None]:
    """Let the process take at most n_bytes of memory more than it has now.

    There is no limit where the system does not tell how much memory it has.
    """
    if not MEMORY_IN_USE.exists():
        yield
        return
    with _limiting:  # one at a time: each restores the limit that it found
        before, most = resource.getrlimit(resource.RLIMIT_AS)
        limit = int(MEMORY_IN_USE.read_text().split()[0]) * resource.getpagesize() + n_bytes
        if before == resource.RLIM_INFINITY or limit < before:
            resource.setrlimit(resource.RLIMIT_AS, (limit, most))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (before, most))


def check_names(file: h5py.h5f.FileID, expected: Sequence[str]) -> None:
    """Raise NotPlain unless the root group holds exactly these names."""
    root = h5py.h5g.open(file, b"/")
    there = all(root.links.exists(name.encode()) for name in expected)
    if not there or root.get_num_objs() != len(expected):
        raise NotPlain(f"it does not hold exactly {' and '.join(expected)}")


def read_dataset(path: str | Path, file: h5py.h5f.FileID, name: str, dtype: np.dtype) -> np.ndarray:
    """Return a whole 1-D dataset of exactly this dtype, (n,). path: the file's.

    Raises NotPlain and HDF5_ERRORS. Each check precedes the first call that could be
    abused without it.
    """
    root = h5py.h5g.open(file, b"/")
    if root.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
        raise NotPlain(f"{name} is a link to elsewhere")
    dataset = h5py.h5d.open(file, name.encode())
    creation = dataset.get_create_plist()  # contiguous: no chunks, so no filters, and not virtual
    if creation.get_layout() != h5py.h5d.CONTIGUOUS or creation.get_external_count():
        raise NotPlain(f"{name} is not stored plainly inside the file")
    if not _has_type(dataset, dtype):
        raise NotPlain(f"{name} is not {dtype.name}")
    if dataset.rank != 1:
        raise NotPlain(f"{name} is not one-dimensional")
    offset = dataset.get_offset() or 0  # None: never allocated; it would read as zeros of any length it claims
    if offset + dataset.shape[0] * dtype.itemsize > os.path.getsize(path):
        raise NotPlain(f"{name} claims more bytes than the file holds")
    return h5py.Dataset(dataset)[()]


def read_attribute(file: h5py.h5f.FileID, name: str, dtype: np.dtype) -> np.generic:
    """Return a scalar attribute of exactly this dtype.

    Raises NotPlain and HDF5_ERRORS.
    """
    attribute = _open_scalar(file, name)
    if not _has_type(attribute, dtype):
        raise NotPlain(f"the attribute {name} has another type or shape")
    return _value(attribute, dtype)


def read_text_attribute(file: h5py.h5f.FileID, name: str, longest: int) -> bytes:
    """Return a scalar attribute of fixed-length text, at most `longest` bytes.

    Raises NotPlain and HDF5_ERRORS.
    """
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
    """Whether the type in the file is exactly this dtype.

    Object, variable-length, enumerated, compound and other-endian types are different
    types.
    """
    return thing.get_type().equal(h5py.h5t.py_create(dtype))
