"""Lets only one process work in a folder, and notices when the folder is replaced.

A lock is the operating system's (flock) on a file that nobody edits. It ends when its
process ends, in whatever way, so there are no stale locks: a lock file that no process
holds has no effect, and the next process takes it.

Some file systems have no locks: NFS without its lock service, some cluster and FUSE
file systems. There the work goes on without one, and one warning says so: a user who
trains on such a disk knows which processes run, and a refusal would leave the disk
unusable. Only EWOULDBLOCK means that another process holds the lock; every other error
is reported with its reason.

A lock follows its file, but a path may come to name another file: the folder is renamed
while a process works in it, and another folder gets its name. So `atomic.py`, which
does all writing, calls `check_held` before each write.
"""

import errno
import fcntl
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from npllm.errors import ConfigError, NpllmWarning, ResourceError
from npllm.files.unwritable import unwritable

LOCK = ".lock"  # name of the lock file of a folder
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
PATIENCE = 2.0  # seconds in which a lock is tried again: mpiexec may end a moment before its last rank

_warned: set[int] = set()  # devices without locks of which a warning was given
_held: dict[Path, int] = {}  # each folder that this process holds -> the descriptor of its lock file


def lock_file(file: Path) -> int:
    """Lock a file, which is created if necessary, and return its descriptor.

    The lock lasts until the descriptor is closed. On a file system that has no locks
    the file is only opened. Raises BlockingIOError when another process holds the lock,
    and any other OSError when the file cannot be opened or locked.
    """
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)  # NFS locks only files that are open for writing
        try:
            _lock(descriptor, file)
            if _is_still(file, descriptor):
                return descriptor
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its last holder deleted or moved it: try the file that has the name now


def _lock(descriptor: int, file: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        device = os.fstat(descriptor).st_dev
        if device not in _warned:
            _warned.add(device)
            place = file.absolute().parent
            message = f"{place} is on a disk without locks ({error.strerror}); let no other process work in the folder."
            warnings.warn(message, NpllmWarning, stacklevel=1)


def _lock_in_a_moment(file: Path) -> int:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return lock_file(file)
        except BlockingIOError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


@contextmanager
def hold_folder(folder: Path, busy: str) -> Iterator[None]:
    """Hold the lock of a folder while the block lasts.

    Raises ConfigError with the message `busy` when another process holds it for longer
    than a moment, and ResourceError when the folder cannot be locked.
    """
    file, name = folder / LOCK, folder.absolute()
    try:
        descriptor = _lock_in_a_moment(file)
    except BlockingIOError as error:
        raise ConfigError(busy) from error
    except OSError as error:
        raise unwritable(file, error, "locked") from error
    _held[name] = descriptor
    try:
        yield
    finally:
        del _held[name]
        os.close(descriptor)


def check_held(path: Path) -> None:
    """Raise ResourceError when `path` is in a held folder that was replaced.

    A folder that was renamed or deleted counts as replaced.
    """
    for folder in path.absolute().parents:
        if folder in _held and not _is_still(folder / LOCK, _held[folder]):
            raise ResourceError(
                f"{folder} was renamed, deleted or replaced while this process worked in it, so the process stopped "
                "and wrote nothing there; continue with npllm resume FOLDER, where the folder is now."
            )


def empty_held(folder: Path, unwanted: Callable[[str], bool] = lambda name: True) -> None:
    """Delete the content of a folder that this process holds, except its lock.

    unwanted: whether a file or folder of this name is deleted. Raises ResourceError,
    and deletes nothing, when another folder has its name now.
    """
    check_held(folder / LOCK)
    for path in [path for path in folder.iterdir() if path.name != LOCK and unwanted(path.name)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def delete_held(folder: Path) -> None:
    """Delete a folder that this process holds.

    The lock file is deleted last, because it marks the folder as one that npllm made.
    """
    empty_held(folder)
    (folder / LOCK).unlink()
    folder.rmdir()


def _is_still(file: Path, descriptor: int) -> bool:
    """Whether an open file still has this name."""
    try:
        return os.path.samestat(os.stat(file), os.fstat(descriptor))
    except (FileNotFoundError, NotADirectoryError):
        return False
