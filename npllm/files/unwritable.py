"""What a message says when the disk refuses to write."""

import errno
from pathlib import Path

from npllm.errors import ResourceError

FREE_SPACE = "free disk space there or choose another folder"
MAKE_WRITABLE = "make it and its folder writable"
MENDS = {
    errno.ENOSPC: FREE_SPACE,
    errno.EDQUOT: FREE_SPACE,
    errno.EROFS: "copy the folder to a disk that can be written",
    errno.EACCES: MAKE_WRITABLE,
    errno.EPERM: MAKE_WRITABLE,
}


def unwritable(path: Path | str, error: OSError, what: str = "written") -> ResourceError:
    """Return the error of a file or folder that cannot be written, with its reason."""
    return ResourceError(f"{path} cannot be {what} ({error.strerror}); {MENDS.get(error.errno, 'check the path')}.")
