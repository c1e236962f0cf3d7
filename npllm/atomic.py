"""Writing a file so that its name never stands for half of it.

Under its name a file is either absent, the old one or the new one: the bytes go to a temporary file in the same
folder, reach the disk (fsync), and only then take over the name, which POSIX does in one step (rename). The last fsync
makes the new name itself survive a power cut.
"""

import contextlib
import os
from pathlib import Path

from npllm.errors import ResourceError


def write_atomically(path: str | Path, data: bytes | memoryview) -> None:
    """Replace `path` by `data`. A failure leaves the old file, no temporary file, and raises ResourceError."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise ResourceError(
            f"{path} cannot be written ({error.strerror}): free disk space there or choose another folder."
        ) from error
    finally:
        with contextlib.suppress(FileNotFoundError):  # after a success the name is gone already
            temporary.unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
