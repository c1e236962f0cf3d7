"""config.toml: the config dataclasses of a run as TOML, and back.

The fields of a file are turned into command-line arguments, so the same code parses and
checks both.
"""

import contextlib
import difflib
import inspect
import io
import json
import re
import tomllib
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from itertools import zip_longest
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args

import tyro

from npllm.errors import ConfigError, DataError
from npllm.files.bounded_read import read_bounded

T = TypeVar("T")

LARGEST_CONFIG = 1 << 20  # bytes
LONGEST_MESSAGE = 500  # characters; it quotes the wrong value, which may be as long as the file
# tomllib takes quadratic time in the number of parts of a dotted key.
MOST_DOTS = 20  # in a line, outside of strings and comments
_NO_KEYS = re.compile(
    r'"{3}(?:\\?.)*?(?:"{3,5}|\Z)'  # strings over several lines, with and without escapes
    r"|'{3}.*?(?:'{3,5}|\Z)"
    r'|"(?:\\.|[^"\\\n])*"?'  # strings in a line
    r"|'[^'\n]*'?"
    r"|#[^\n]*",  # comments
    re.DOTALL,
)


def parse_arguments(kind: Callable[..., T], arguments: list[str], *, prog: str) -> T:
    """Call a dataclass or a typed function with command-line arguments. Returns its
    result.

    prog: the name of the command in messages. Raises ConfigError for arguments that are
    not valid.
    """
    options = _options(kind)
    _check_option_names(options, arguments, prog)
    arguments = _with_none(options, _with_true(options, arguments))
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                kind, args=arguments, prog=prog, use_underscores=True, config=(tyro.conf.FlagConversionOff,)
            )
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        raise ConfigError(_first_sentence(complaint.getvalue())) from None


def _with_true(options: dict[str, Any], arguments: list[str]) -> list[str]:
    """The arguments with True after each true-or-false option that stands alone."""
    completed = []
    for argument, following in zip_longest(arguments, arguments[1:]):
        completed.append(argument)
        if options.get(_name(argument)) is bool and (following is None or following.startswith("--")):
            completed.append("True")
    return completed


def _with_none(options: dict[str, Any], arguments: list[str]) -> list[str]:
    """The arguments with None, as tyro spells it, for the value `none` of an option
    whose type has None."""
    optional = {name for name, kind in options.items() if NoneType in get_args(kind)}
    spelled = []
    for previous, argument in zip(["", *arguments], arguments, strict=False):
        option, _, value = argument.partition("=")
        if argument == "none" and _name(previous) in optional:
            argument = "None"
        elif value == "none" and _name(option) in optional:
            argument = f"{option}=None"
        spelled.append(argument)
    return spelled


def _name(argument: str) -> str:
    """The parameter that an option sets, such as optim.lr; empty for a value."""
    return argument[2:].replace("-", "_") if argument.startswith("--") else ""


def _check_option_names(options: dict[str, Any], arguments: list[str], prog: str) -> None:
    known = [f"--{name}" for name in options] + ["--help"]
    for argument in arguments:
        option = argument.split("=")[0]
        if option.startswith("--") and f"--{_name(option)}" not in known:
            raise ConfigError(f"{option} is not an option of {prog}{nearest(option, known)}.")


def load_config(path: Path, kind: type[T]) -> T:
    """The config in a TOML file. The table [run], a record of machine and stage, is not
    part of it. Raises DataError for a file that is not TOML, ConfigError for its
    values."""
    tables = _read_toml(path)
    tables.pop("run", None)
    try:
        return parse_arguments(kind, _arguments(tables, kind), prog=str(path))
    except ConfigError as error:
        raise ConfigError(f"{path}: {str(error):.{LONGEST_MESSAGE}}") from error


def stage_of(path: Path) -> str:
    """The stage, which is also the verb, that a config.toml names."""
    record = _read_toml(path).get("run")
    return str(record.get("stage", "pretrain")) if isinstance(record, dict) else "pretrain"


def last_step_of(path: Path) -> int | None:
    """The number of updates of a run, read from its config.toml. None where it has
    none."""
    settings = _read_toml(path).get("train")
    steps = settings.get("steps") if isinstance(settings, dict) else None
    return steps if isinstance(steps, int) else None


def _read_toml(path: Path) -> dict[str, Any]:
    content = read_bounded(path, LARGEST_CONFIG)
    try:
        text = content.decode("utf-8")
        if any(line.count(".") > MOST_DOTS for line in _NO_KEYS.sub("", text).splitlines()):
            raise ValueError("it has a key with too many parts")
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid TOML: {error}.") from error


def _arguments(tables: dict[str, Any], kind: type) -> list[str]:
    """The fields of a TOML file as command-line arguments."""
    known = list(_options(kind))
    arguments = []
    for section, table in tables.items():
        for name, value in (table if isinstance(table, dict) else {"": table}).items():
            option = f"{section}.{name}" if name else section
            if option not in known:
                raise ConfigError(f"{repr(option)[1:-1]:.80} is not a field{nearest(option, known)}.")
            arguments.append(f"--{option}")
            arguments += [_argument(option, part) for part in (value if isinstance(value, list) else [value])]
    return arguments


def _argument(option: str, value: Any) -> str:
    try:
        text = str(value)
    except ValueError:  # thousands of hexadecimal digits
        raise ConfigError(f"{option} is a number of too many digits; give a shorter one.") from None
    if isinstance(value, str) and value.startswith("-"):  # an argument like this is an option
        raise ConfigError(f"{option} is {value!r:.80}, which looks like an option; write ./ before the name of a file.")
    return text


def config_text(config: Any, record: dict[str, str]) -> str:
    """A config as TOML that `load_config` reads. record: facts about the run, which go
    into the table [run]."""
    lines = []
    for section, table in {**asdict(config), "run": record}.items():
        # TOML has no null. A field that is None is left out; None is its default.
        lines += [f"[{section}]", *(f"{k} = {_toml(v)}" for k, v in table.items() if v is not None), ""]
    return "\n".join(lines)


def _toml(value: Any) -> str:
    """A value as TOML. It is the value's JSON, except that TOML has no surrogate pairs
    and needs the control character DEL escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _options(kind: Callable) -> dict[str, Any]:
    """The options of a function or dataclass: name -> type. The fields of a dataclass
    that is a parameter have dotted names, such as optim.lr."""
    options: dict[str, Any] = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        if is_dataclass(parameter.annotation):
            options |= {f"{name}.{inner}": kind for inner, kind in _options(parameter.annotation).items()}
        else:
            options[name] = parameter.annotation
    return options


def nearest(name: str, known: list[str]) -> str:
    """The end of a message that proposes the known name most like `name`; empty if none
    is like it."""
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {matches[0]}" if matches else ""


def _first_sentence(box: str) -> str:
    """The message in tyro's framed complaint, in one line."""
    lines = [re.sub(r"[│╭╮╰╯]", "", line).strip() for line in box.splitlines()[1:]]
    message = []
    for line in lines:
        if line.startswith("─"):
            break
        message.append(line)
    # For an optional number, tyro adds why the value is neither a number nor None.
    return " ".join(" ".join(message).split()).split(" Got errors:")[0]
