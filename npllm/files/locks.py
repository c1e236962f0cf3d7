"""Being the only process that works in a folder, and noticing when the folder is taken away.

A lock is the operating system's (flock) on a file that nobody edits. It ends with its
process, however that ends, so there is no stale lock: a lock file that nobody holds means
nothing, and the next process takes it.

A lock follows its file, and a path may come to mean another one: the folder is renamed
while a process works in it, and a second one takes its name. So `atomic.py`, through which
everything is written, asks `check_held` before each write.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from npllm.errors import ConfigError, ResourceError

LOCK = ".lock"  # name of the lock file of a folder

_held: dict[Path, int] = {}  # each folder that this process holds -> the descriptor of its lock file


def lock_file(file: Path) -> int:
    """Lock a file, made if need be, until the descriptor that this returns is closed.

    Raises BlockingIOError when another process holds it, any other OSError when it cannot
    be locked at all.
    """
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)  # NFS locks only what may be written
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(file, descriptor):
                return descriptor
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its last holder deleted or moved it meanwhile: what counts is the file of that name


@contextmanager
def hold_folder(folder: Path, busy: str) -> Iterator[None]:
    """Be the only process that works in a folder, while the block lasts.

    Raises ConfigError, which says `busy`, when another one does, and ResourceError when the
    folder cannot be locked.
    """
    file, name = folder / LOCK, folder.absolute()
    try:
        descriptor = lock_file(file)
    except BlockingIOError as error:
        raise ConfigError(busy) from error
    except OSError as error:
        raise ResourceError(
            f"{file} cannot be locked ({error.strerror}); use a folder that can be written, on a disk that has locks."
        ) from error
    _held[name] = descriptor
    try:
        yield
    finally:
        del _held[name]
        os.close(descriptor)


def check_held(path: Path) -> None:
    """Raise ResourceError when `path` lies in a folder that this process holds, and the
    folder has its name no longer."""
    for folder in path.absolute().parents:
        if folder in _held and not _is_still(folder / LOCK, _held[folder]):
            raise ResourceError(
                f"{folder} was renamed, deleted or replaced while this process worked in it, which therefore stopped "
                "and wrote nothing into what lies there now; go on where the folder is: npllm resume FOLDER."
            )


def empty_held(folder: Path) -> None:
    """Delete what is in a folder that this process holds, but not of another one that has
    taken its name."""
    check_held(folder / LOCK)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def delete_held(folder: Path) -> None:
    """Delete a folder that this process holds; last the lock, which says that it is no
    folder of the user's."""
    empty_held(folder)
    (folder / LOCK).unlink()
    folder.rmdir()


def _is_still(file: Path, descriptor: int) -> bool:
    """Whether an open file still has this name."""
    try:
        return os.path.samestat(os.stat(file), os.fstat(descriptor))
    except (FileNotFoundError, NotADirectoryError):
        return False
