"""Paths as users write them."""

from os import PathLike
from pathlib import Path

from npllm.errors import ConfigError


def user_path(path: str | PathLike) -> Path:
    """Return the path that a user wrote, with the home folder in place of ~ or ~NAME.

    Raises ConfigError for the home of an unknown user: a folder called ~NAME is never
    what was meant.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        home = Path(path).parts[0]
        raise ConfigError(f"{path} is in {home}, but no such home folder is known; write the whole path.") from error
