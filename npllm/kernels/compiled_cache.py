"""Where compiled kernels are kept, so that a later process need not compile them.

Numba's own cache compares a compiled kernel with the file of that kernel only, not with
the files of the functions and constants that are compiled into it. Here a digest of all
sources names the folder. So a kernel is found only by the sources that it was made of.

A folder holds one file per kernel and types of arguments: the SHA-256 of the rest, then
Numba's compiled result. Whatever cannot be read or written is a miss: the kernel is
compiled, and the first such problem of a process is reported in one line.
"""

import hashlib
import os
import pickle
import shutil
import sys
import tempfile
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path

import llvmlite
import numba
import numpy as np
from numba.core import config
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.dispatcher import Dispatcher
from numba.core.serialize import dumps
from numba.misc.appdirs import AppDirs

from npllm.errors import NpllmWarning, ResourceError
from npllm.files.atomic import write_atomically

PACKAGE = Path(__file__).parents[1]
SOURCES = (PACKAGE / "kernels", PACKAGE / "reference", PACKAGE / "tokenizer" / "kernels")  # all that is compiled
PREFIX = "npllm-kernels-"  # of the folders' names; nothing else has it, for such folders are deleted
KEPT = 8  # folders: installations with other sources or versions may take turns
DIGEST_BYTES = hashlib.sha256().digest_size


def _digest_of_sources() -> str:
    """A digest of everything that is compiled into kernels, and of the compilers."""
    versions = (sys.implementation.cache_tag, np.__version__, numba.__version__, llvmlite.__version__)
    digest = hashlib.sha256(repr(versions).encode())
    for folder in SOURCES:
        for path in sorted(folder.rglob("*.py")):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(PACKAGE)} {len(content)} ".encode())
            digest.update(content)
    return digest.hexdigest()[:16]


# Taken now, before the kernels are imported. A source that is edited while this process
# runs does not change what the process compiles.
FOLDER = PREFIX + _digest_of_sources()
_warned: list[str] = []  # the one warning of this process


def keep_compiled(kernel):
    """Keep what Numba compiles for a kernel, and return the kernel.

    A kernel outside this package is compiled in each process: its sources are not in
    the digest. With NUMBA_DISABLE_JIT there is nothing to keep.
    """
    if isinstance(kernel, Dispatcher) and str(kernel.py_func.__module__).startswith("npllm."):
        kernel._cache = CompiledCache(kernel.py_func)
    return kernel


class CompiledCache(NullCache):
    """The compiled forms of one kernel, in the interface that Numba's compiler uses."""

    def __init__(self, function):
        self._name = _name(function)

    def load_overload(self, sig, target_context):
        """Return the compiled form for these types; None if there is none."""
        target_context.refresh()
        file = self._file(sig, target_context.codegen())
        problem = None
        for folder in folders():
            path = folder / file
            try:
                return _read(path, target_context)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except Exception as error:  # whatever damaged bytes make of Python's and Numba's readers
                problem = f"The compiled kernel {path} cannot be read ({error}); it is compiled again."
        if problem:
            _warn(problem)
        return None

    def save_overload(self, sig, data):
        """Keep a compiled form."""
        folder = folder_to_write()
        if folder is None or data.library.has_dynamic_globals:  # such as addresses in this process
            return
        content = dumps(data._reduce())
        try:
            folder.mkdir(parents=True, exist_ok=True)  # `clear` may have deleted it
            write_atomically(folder / self._file(sig, data.codegen), hashlib.sha256(content).digest() + content)
        except (OSError, ResourceError) as error:
            _warn(f"Compiled kernels are not kept for later runs: {error}")

    def _file(self, sig, codegen) -> str:
        key = hashlib.sha256(repr((sig, codegen.magic_tuple())).encode()).hexdigest()
        return f"{self._name}-{key[:16]}"


def _name(function) -> str:
    return f"{function.__module__}.{function.__qualname__}-{function.__code__.co_firstlineno}"


def _read(path: Path, target_context) -> CompileResult:
    content = path.read_bytes()
    digest, content = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("it is damaged")
    return CompileResult._rebuild(target_context, *pickle.loads(content))


def is_lacking(kernel) -> bool:
    """Whether compiled forms of a kernel can be kept, and there is none."""
    if not isinstance(kernel, Dispatcher):  # NUMBA_DISABLE_JIT: a plain function
        return False
    files = [file for folder in folders() for file in folder.glob(f"{_name(kernel.py_func)}-*")]
    return not files and folder_to_write() is not None


@cache
def folder_to_write() -> Path | None:
    """The first of the folders that takes files; None if none does."""
    problem = ""
    for folder in folders():
        try:
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
                _delete_oldest(folder.parent)
            tempfile.TemporaryFile(dir=folder).close()
            return folder
        except OSError as error:
            problem = f"{folder}: {error.strerror}"
    _warn(
        f"Compiled kernels are not kept for later runs ({problem}); set NUMBA_CACHE_DIR to a folder that can be "
        "written."
    )
    return None


def folders() -> list[Path]:
    """The folders in which the compiled form of a kernel may be, best first."""
    return [parent / FOLDER for parent in _parents()]


def clear() -> None:
    """Delete the compiled kernels of all sources and versions."""
    for parent in _parents():
        for folder in parent.glob(f"{PREFIX}*"):
            shutil.rmtree(folder)


def _parents() -> list[Path]:
    """As Numba chooses: NUMBA_CACHE_DIR; without it, beside the sources, then the
    user's."""
    if config.CACHE_DIR:
        return [Path(os.path.expanduser(config.CACHE_DIR))]
    of_user = Path(AppDirs(appname="numba", appauthor=False).user_cache_dir)
    return [SOURCES[0] / "__pycache__", *([of_user] if of_user.is_absolute() else [])]


def _delete_oldest(parent: Path) -> None:
    """Delete all but the folders to which something was added last. A process that uses
    a deleted one compiles again."""
    with suppress(OSError):  # another process does the same, or the folder is another user's
        for folder in sorted(parent.glob(f"{PREFIX}*"), key=lambda folder: folder.stat().st_mtime)[:-KEPT]:
            shutil.rmtree(folder)


def _warn(message: str) -> None:
    if not _warned:
        _warned.append(message)
        warnings.warn(message, NpllmWarning, stacklevel=2)
