"""Folders that a command makes for its result."""

from pathlib import Path

from npllm.errors import ConfigError
from npllm.files.user_path import user_path


def make_folder(path: Path) -> None:
    """Make a folder and those above it, if they do not exist. Raises ConfigError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path} cannot be made ({error.strerror}); choose another folder.") from error


def new_folder(path: str | Path) -> Path:
    """Make a folder for files of its own and return its path.

    Raises ConfigError where it cannot be made, and where it is not empty.
    """
    folder = user_path(path)
    make_folder(folder)
    if any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty; choose another folder.")
    return folder
