"""Folders that a command makes for its result."""

from pathlib import Path

from npllm.errors import ConfigError


def make_folder(path: Path) -> None:
    """Make a folder and those above it, if they do not exist. Raises ConfigError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path} cannot be made ({error.strerror}); choose another folder.") from error
