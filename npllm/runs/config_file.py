"""config.toml: the config dataclasses of a run as TOML, and back.

The fields of a file are turned into command-line arguments, so the same code checks
both. Here their types are checked, which an argument does not have: "1" is no number.
"""

import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin

from npllm.errors import ConfigError, DataError
from npllm.files.atomic import write_atomically
from npllm.files.bounded_read import read_bounded
from npllm.files.text_format import decode
from npllm.runs.arguments import Option, is_option, is_optional, nearest, options_of, parse_arguments

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
_HEADING = re.compile(r"\s*\[\s*([\w.-]+)\s*\]")
_KEY = re.compile(r"\s*([\w.-]+)\s*=")


def load_config(path: Path, kind: type[T]) -> T:
    """The config in a TOML file. The table [run], a record of machine and stage, is not
    part of it. Raises DataError for a file that is not TOML, ConfigError for its
    values, with the line."""
    text = _read(path)
    tables = _parse_toml(path, text)
    tables.pop("run", None)
    try:
        return parse_arguments(kind, arguments_of(tables, options_of(kind)), prog=str(path))
    except ConfigError as error:
        message = str(error)[:LONGEST_MESSAGE]
        line = _line_of_first_field(message, text)
        raise ConfigError(f"{path}{f', line {line}' if line else ''}: {message}") from error


def stage_of(path: Path) -> str:
    """The stage, which is also the verb, that a config.toml names."""
    record = _parse_toml(path, _read(path)).get("run")
    return str(record.get("stage", "pretrain")) if isinstance(record, dict) else "pretrain"


def run_record(path: Path) -> dict[str, str]:
    """The table [run] of a config.toml: the stage, versions and the processor."""
    record = _parse_toml(path, _read(path)).get("run")
    return {name: str(value) for name, value in record.items()} if isinstance(record, dict) else {}


def last_step_of(path: Path) -> int | None:
    """The number of updates of a run, read from its config.toml. None where it has
    none."""
    settings = _parse_toml(path, _read(path)).get("train")
    steps = settings.get("steps") if isinstance(settings, dict) else None
    return steps if isinstance(steps, int) else None


def sources_of(path: Path) -> list[str]:
    """Return the sources of the text that a config.toml names. Empty for the config of
    a later stage."""
    settings = _parse_toml(path, _read(path)).get("data")
    sources = settings.get("source") if isinstance(settings, dict) else None
    return list(map(str, sources)) if isinstance(sources, list) else []


def _read(path: Path) -> str:
    return decode(path, read_bounded(path, LARGEST_CONFIG))


def _parse_toml(path: Path, text: str) -> dict[str, Any]:
    try:
        if any(line.count(".") > MOST_DOTS for line in _NO_KEYS.sub("", text).splitlines()):
            raise ValueError("it has a key with too many parts")
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid TOML: {error}.") from error


def _line_of_first_field(message: str, text: str) -> int | None:
    """The number of the line in a TOML file that sets the field which a message names
    first. None if no line is found, as for a field in an inline table."""
    place, number, section = len(message), None, ""
    blanked = _NO_KEYS.sub(lambda found: "\n" * found[0].count("\n"), text)
    for i, line in enumerate(blanked.splitlines(), 1):
        if heading := _HEADING.match(line):
            section = heading[1]
        elif key := _KEY.match(line):
            name = re.escape(f"{section}.{key[1]}" if section else key[1])
            found = re.search(rf"(?<![\w.]){name}(?![\w.]*\w)", message)
            if found and found.start() < place:
                place, number = found.start(), i
    return number


def arguments_of(tables: dict[str, Any], options: Sequence[Option]) -> list[str]:
    """The fields of a TOML file as command-line arguments. Raises ConfigError for a
    field that is no option and for a value of another type."""
    kinds = {option.name: option.kind for option in options}
    known = list(kinds)
    arguments = []
    for section, table in tables.items():
        for name, value in (table if isinstance(table, dict) else {"": table}).items():
            option = f"{section}.{name}" if name else section
            if option not in known:
                raise ConfigError(f"{repr(option)[1:-1]:.80} is not a field{nearest(option, known)}.")
            if not _has_type(value, kinds[option]):
                raise ConfigError(f"{option} is {_shown(value)}; write {_wanted(kinds[option])}.")
            if isinstance(value, list):
                arguments += [f"--{option}", *(_listed(option, part) for part in value)]
            else:
                arguments.append(f"--{option}={_argument(option, value)}")
    return arguments


def _has_type(value: Any, kind: Any) -> bool:
    """Whether a value of a TOML file has the type of a field. The word "none" stands
    for None, which TOML lacks, and one text for a list of it."""
    if is_optional(kind):
        return value == "none" or _has_type(value, _without_none(kind))
    if get_origin(kind) is tuple:
        return all(_has_type(part, get_args(kind)[0]) for part in (value if isinstance(value, list) else [value]))
    if kind is float:
        return type(value) in (int, float)
    return type(value) is (kind if kind in (bool, int) else str)


def _wanted(kind: Any) -> str:
    """A value of a field's type, in the words of a message."""
    if is_optional(kind):
        return _wanted(_without_none(kind))
    words = {bool: "true or false", int: "a whole number without quotes", float: "a number without quotes"}
    if get_origin(kind) is tuple:
        return "a list of texts in quotes" if get_args(kind)[0] is str else "a list of numbers"
    return words.get(kind, "a text in quotes")


def _without_none(kind: Any) -> Any:
    return next(part for part in get_args(kind) if part is not NoneType)


def _shown(value: Any) -> str:
    """A value in a message, much as TOML writes it."""
    try:
        return str(value) if isinstance(value, float) else f"{json.dumps(value, default=str):.80}"
    except ValueError:  # Python writes integers of at most 4300 digits
        return "a number of too many digits"


def _argument(option: str, value: Any) -> str:
    try:
        return str(value)
    except ValueError:  # thousands of hexadecimal digits
        raise ConfigError(f"{option} is a number of too many digits; give a shorter one.") from None


def _listed(option: str, value: Any) -> str:
    text = _argument(option, value)
    if text == "--" or is_option(text):
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


def rewrite_config(path: Path, config: Any) -> None:
    """Replace the config in a run's config.toml; the table [run] stays."""
    write_atomically(path, config_text(config, _parse_toml(path, _read(path)).get("run", {})).encode())


def _toml(value: Any) -> str:
    """A value as TOML. It is the value's JSON, except that TOML has no surrogate pairs
    and needs the control character DEL escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
