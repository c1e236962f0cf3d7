"""A forward and its backward, loaded from a Python file."""

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from npllm.errors import ConfigError, DataError

FORWARD, BACKWARD = "_forward", "_backward"


class Pair(NamedTuple):
    """Two functions, `{name}_forward` and `{name}_backward`."""

    name: str
    forward: Callable
    backward: Callable

    def parameters(self, function: str) -> dict[str, inspect.Parameter]:
        """Return the parameters of "forward" or "backward" by name."""
        return dict(inspect.signature(getattr(self, function)).parameters)


def load_pair(where: str) -> Pair:
    """Return the pair that `where`, "FILE:FUNCTION", names.

    FUNCTION is the name of the pair, or of one of its two functions. Raises ConfigError
    for another form, and DataError for a file without these functions.
    """
    file, colon, name = where.rpartition(":")
    if not colon or not file or not name:
        raise ConfigError(f"{where!r} names no function; write FILE:FUNCTION, such as layers.py:layernorm.")
    functions = _functions_of(Path(file))
    for ending in (FORWARD, BACKWARD):
        name = name.removesuffix(ending)
    missing = [name + ending for ending in (FORWARD, BACKWARD) if name + ending not in functions]
    if missing:
        pairs = [each.removesuffix(FORWARD) for each in functions if each.endswith(FORWARD)]
        pairs = [each for each in pairs if each + BACKWARD in functions]
        known = f"it has the pairs {', '.join(pairs)}" if pairs else "a pair is called NAME_forward and NAME_backward"
        raise DataError(f"{file} has no function {' and no '.join(missing)}; {known}.")
    pair = Pair(name, functions[name + FORWARD], functions[name + BACKWARD])
    for function in ("forward", "backward"):
        if not pair.parameters(function):
            raise DataError(f"{name}_{function} has no argument, so there is nothing to check; give it one.")
        for parameter in pair.parameters(function).values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise DataError(f"{name}_{function} takes *{parameter.name}; name its arguments one by one.")
    return pair


def _functions_of(path: Path) -> dict[str, Callable]:
    """Import a Python file, and return its functions by name."""
    if not path.is_file():
        raise DataError(f"{path} does not exist or is no file; give the path of a Python file.")
    spec = importlib.util.spec_from_file_location(f"checked_{path.stem}", path)
    if spec is None:
        raise DataError(f"{path} is no Python file; give one whose name ends with .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # as an import does: classes look for their module
    # It may import its neighbours. They come last: one may have the name of a module of
    # Python.
    sys.path.append(str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise DataError(f"{path} cannot be imported: {in_words(error, path)}; mend it.") from error
    finally:
        sys.path.pop()
    return {name: value for name, value in vars(module).items() if inspect.isfunction(value)}


def in_words(error: BaseException, path: Path | None = None) -> str:
    """Return the type and message of an error and, if it is in the file, its line."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno} is not Python ({error.msg})"
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if path and Path(frame.filename) == path
    ]
    message = " ".join(str(error).split())
    return f"{type(error).__name__}{f' in line {lines[-1]}' if lines else ''}{': ' if message else ''}{message}"
