"""The packages of the extras `report` and `serve`, which an installation may lack."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from npllm.errors import ConfigError

NEEDED = ("jinja2", "markdown_it", "math_core", "pygments")


def package(name: str, user: str = "The HTML pages need", extra: str = "report") -> Any:
    """Return an imported module of an extra, such as "pygments.lexers".

    Raises ConfigError where it is not installed. user: who needs it, in the message.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{user} the package {error.name}; install it (pip install 'npllm[{extra}]').") from None


def check_packages(names: Sequence[str] = NEEDED, user: str = "The HTML pages need", extra: str = "report") -> None:
    """Raise ConfigError if a package is missing, before a long computation starts."""
    for name in names:
        package(name, user, extra)
