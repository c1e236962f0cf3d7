"""A disk that fails on demand, below the system calls of npllm/files/atomic.py.

Each call that changes something below `root` is an event: write, fsync, replace, unlink
or truncate. At event number `fail_at` the disk fails in one of three ways:

    crash    The process dies. Neither this event nor any later one happens, and the
             `finally` blocks change nothing either.
    torn     As crash, but half of the bytes of a write arrive.
    full     This call and every later write fail with ENOSPC, as on a full disk.

After a crash, `power_cut` leaves in the folder what a disk without power would hold:
the content of each file at its last fsync, under the names of its folder's last fsync.
What was there when the disk was installed counts as written.
"""

import errno
import os
from pathlib import Path

import pytest


class Crashed(BaseException):
    """The process is dead. It is no Exception, so that only the test catches it."""


class FaultyDisk:
    """A fake of the disk's system calls; `install` puts it in their place.

    events: what happened, in order, such as "write metrics.jsonl".
    """

    def __init__(self, root: Path, fail_at: int | None = None, kind: str = "crash"):
        self.root = root
        self.fail_at = fail_at
        self.kind = kind
        self.events: list[str] = []
        self.failed = False
        self.contents: dict[int, bytes] = {}  # inode -> content at its last fsync
        self.names: dict[Path, dict[str, int]] = {}  # folder -> its names and their inodes at its last fsync
        for folder in [root, *filter(Path.is_dir, root.rglob("*"))]:
            self._sync_folder(folder)
            for path in filter(Path.is_file, folder.iterdir()):
                self.contents[path.stat().st_ino] = path.read_bytes()

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for name in ("open", "write", "fsync", "replace", "unlink", "truncate"):
            patch.setattr(os, name, getattr(self, f"_{name}")(getattr(os, name)))

    def power_cut(self) -> None:
        """Leave on the disk what was synchronised (by fsync), and nothing else."""
        for folder, names in self.names.items():
            for path in filter(Path.is_file, folder.iterdir()):
                path.unlink()
            for name, inode in names.items():
                (folder / name).write_bytes(self.contents.get(inode, b""))

    def _event(self, what: str, path: Path) -> bool:
        """Record an event; True if it is the one that fails."""
        if self.failed and self.kind != "full":
            raise Crashed
        self.events.append(f"{what} {path.name}")
        fails = len(self.events) - 1 == self.fail_at
        self.failed |= fails
        if fails and not (self.kind == "torn" and what == "write"):
            self._fail(what)
        if self.failed and self.kind == "full" and what in ("write", "fsync"):
            self._fail(what)
        return fails

    def _fail(self, what: str) -> None:
        if self.kind != "full":
            raise Crashed
        if what != "unlink":  # a deletion needs no free space
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _is_ours(self, path: Path) -> bool:
        return path == self.root or self.root in path.parents

    def _open(self, real):
        def open_(path, flags, *rest, **more):
            is_new = flags & os.O_CREAT and not os.path.exists(path)
            if is_new and self.failed and self.kind != "full" and self._is_ours(Path(path)):
                raise Crashed
            descriptor = real(path, flags, *rest, **more)
            if is_new:  # the file system may have reused the inode of a deleted file
                self.contents.pop(os.fstat(descriptor).st_ino, None)
            return descriptor

        return open_

    def _write(self, real):
        def write(descriptor, data):
            path = _path_of(descriptor)
            if self._is_ours(path) and self._event("write", path):
                real(descriptor, bytes(data)[: len(data) // 2])
                raise Crashed
            return real(descriptor, data)

        return write

    def _fsync(self, real):
        def fsync(descriptor):
            path = _path_of(descriptor)
            if not self._is_ours(path):
                return real(descriptor)
            self._event("fsync", path)
            if path.is_dir():
                self._sync_folder(path)
            else:
                self.contents[os.fstat(descriptor).st_ino] = path.read_bytes()
            return None

        return fsync

    def _sync_folder(self, folder: Path) -> None:
        self.names[folder] = {path.name: path.stat().st_ino for path in folder.iterdir() if path.is_file()}

    def _replace(self, real):
        def replace(source, target):
            if self._is_ours(Path(target)):
                self._event("replace", Path(target))
            real(source, target)

        return replace

    def _unlink(self, real):
        def unlink(path, **more):
            if self._is_ours(Path(path)) and os.path.exists(path):
                self._event("unlink", Path(path))
            real(path, **more)

        return unlink

    def _truncate(self, real):
        def truncate(path, length):
            self._event("truncate", Path(path))
            real(path, length)

        return truncate


class WrittenAtOnce:
    """Takes the place of Thread: the work has ended when `start` returns.

    So each event has the same number in every run.
    """

    def __init__(self, target, args, daemon):
        self.work = lambda: target(*args)

    def start(self):
        self.work()

    def join(self):
        """There is nothing to wait for."""


def _path_of(descriptor: int) -> Path:
    return Path(os.readlink(f"/proc/self/fd/{descriptor}"))
