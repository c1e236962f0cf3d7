"""The packages of the extra `report`, which an installation may lack."""

from importlib import import_module
from typing import Any

from npllm.errors import ConfigError

NEEDED = ("jinja2", "markdown_it", "math_core", "pygments")


def package(name: str) -> Any:
    """Return an imported module of the extra, such as "pygments.lexers".

    Raises ConfigError where it is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"The HTML pages need the package {error.name}; install it (pip install 'npllm[report]')."
        ) from None


def check_packages() -> None:
    """Raise ConfigError if a package is missing, before a long computation starts."""
    for name in NEEDED:
        package(name)
