"""Bytes that are collected before they get a place of their own.

They are in memory while they are few. More of them are in a file without a name, which
the system deletes when it is closed, also when the process is killed.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import SpooledTemporaryFile, gettempdir

from npllm.files.unwritable import unwritable

IN_MEMORY = 64 << 20  # bytes
CHUNK = 1 << 20  # bytes


class Spool(SpooledTemporaryFile):
    """A file for reading and writing.

    folder: where the file is when it grows; None = the system's for temporary files.

    An error of the disk does not end a write, because HDF5, which writes into a spool,
    does not survive one. What is written after it is dropped, and `check` raises it.
    """

    def __init__(self, folder: Path | None = None):
        super().__init__(IN_MEMORY, dir=folder)
        self._folder, self._error = folder, None

    def write(self, data) -> int:
        """Write all bytes of `data`."""
        data = memoryview(data).cast("B")
        if self._error is None:
            try:
                if self.tell() + len(data) > IN_MEMORY:  # before the write, which may be large
                    self.rollover()
                return super().write(data)
            except OSError as error:
                self._error = error
        return len(data)

    def check(self) -> int:
        """The number of bytes. Raises ResourceError when a write has failed."""
        try:
            n_bytes = self.seek(0, 2)  # flushes too
        except OSError as error:
            self._error = self._error or error
        if self._error:
            raise unwritable(self._folder or gettempdir(), self._error) from self._error
        return n_bytes

    def chunks(self) -> Iterator[bytes]:
        """Yield all bytes, some at a time. Raises ResourceError as `check` does.

        (A map of the file would be simpler, but its pages count as memory.)
        """
        self.check()
        self.seek(0)
        while chunk := self.read(CHUNK):
            yield chunk
