"""Command-line arguments as the parameters of a typed function or dataclass.

The fields of a dataclass that is a parameter are options with dotted names, such as
--optim.lr. A TOML file (`config_file.py`) is parsed by the same code.
"""

import contextlib
import difflib
import functools
import inspect
import io
import re
from collections import deque
from collections.abc import Callable, Container
from dataclasses import is_dataclass
from itertools import zip_longest
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, NamedTuple, TypeVar, get_args, get_origin

import tyro
from tyro.conf import UseAppendAction

from npllm.errors import ConfigError
from npllm.files.user_path import user_path

T = TypeVar("T")
Repeated = Annotated[tuple[T, ...], UseAppendAction]  # each value after the option's name, which is written again

_FROM = tyro.conf.arg(name="from")
From = Annotated[T, _FROM]  # the option --from, which cannot be the name of a parameter

_OPTION = re.compile(r"--[A-Za-z][\w.-]*(=.*)?", re.DOTALL)  # "-- SELECT" and "-5" are values


class Option(NamedTuple):
    """A parameter of a command. name: such as optim.lr.

    follows: the option that this one may not be above. If the user sets that option
    lower than the default of this one, and this one not at all, the default becomes
    lower in proportion. A dataclass has a table of them, `follows`. repeated: it is
    given once for each of its values.
    """

    name: str
    kind: Any  # its type
    default: Any  # Parameter.empty = none, it must be given
    positional: bool
    follows: str | None = None
    repeated: bool = False


def parse_arguments(kind: Callable[..., T], arguments: list[str], *, prog: str) -> T:
    """Call a dataclass or a typed function with command-line arguments. Returns its
    result.

    prog: the name of the command in messages. Raises ConfigError for arguments that are
    not valid.
    """
    every = options_of(kind)
    options = {option.name: option for option in every if not option.positional}
    spelled_out = _spelled_out(options, arguments, prog)
    _check_complete(every, given_values(arguments), spelled_out, prog)
    arguments = _following(options, arguments) + spelled_out
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                kind, args=arguments, prog=prog, use_underscores=True, config=(tyro.conf.FlagConversionOff,)
            )
    except SystemExit:
        raise ConfigError(_first_sentence(complaint.getvalue())) from None


def deferred(function: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """A function with the same signature that only binds its arguments, with ~ in paths
    replaced. It returns the call, which takes no arguments."""

    def with_home(value: object) -> object:
        return user_path(value) if isinstance(value, Path) else value

    @functools.wraps(function)
    def bind(*args, **kwargs):
        named = {name: with_home(value) for name, value in kwargs.items()}
        return functools.partial(function, *map(with_home, args), **named)

    bind.__signature__ = inspect.signature(function)
    return bind


def options_of(kind: Callable) -> list[Option]:
    """The options and the positional arguments of a function or dataclass."""
    options = []
    for name, parameter in inspect.signature(kind).parameters.items():
        annotation, default = parameter.annotation, parameter.default
        if is_dataclass(annotation):
            options += [
                inner._replace(
                    name=f"{name}.{inner.name}",
                    default=getattr(default, inner.name, inner.default),
                    follows=inner.follows and f"{name}.{inner.follows}",
                )
                for inner in options_of(annotation)
            ]
        elif get_origin(annotation) is Annotated:  # Repeated, From, or tyro's Positional
            of, *marks = get_args(annotation)
            repeated, renamed = UseAppendAction in marks, _FROM in marks
            positional = not (repeated or renamed)
            options.append(Option("from" if renamed else name, of, default, positional, repeated=repeated))
        else:
            follows = getattr(kind, "follows", {}).get(name)
            options.append(Option(name, annotation, default, positional=False, follows=follows))
    return options


def is_optional(kind: Any) -> bool:
    """Whether None is a value of a type."""
    return NoneType in get_args(kind)


def is_option(argument: str) -> bool:
    """Whether an argument is the name of an option, perhaps with its value."""
    return _OPTION.fullmatch(argument) is not None


def _spelled_out(options: dict[str, Option], arguments: list[str], prog: str) -> list[str]:
    """The arguments as tyro takes them whatever the values are: --name=value first, and
    the positional ones after a --."""
    named, positional, rest = [], [], deque(arguments)
    while rest:
        argument = rest.popleft()
        if argument == "--":
            positional += rest
            break
        if not is_option(argument):
            positional.append(argument)
            continue
        name, _, value = argument.partition("=")
        option = options.get(name[2:].replace("-", "_"))
        if option is None:
            known = [f"--{name}" for name in options] + ["--help"]
            raise ConfigError(f"{name} is not an option of {prog}{nearest(name, known)}.")
        if get_origin(option.kind) is tuple and not option.repeated and argument == name:
            named.append(name)
            while _is_value(rest):
                named.append(rest.popleft())
            continue
        if argument == name:
            value = _value(option, rest, name)
        named.append(f"{name}={_as_tyro(option.kind, value)}")
    return [*named, "--", *positional] if positional else named


def _check_complete(options: list[Option], given: Container[str], spelled_out: list[str], prog: str) -> None:
    """Raise ConfigError if an argument without a default is missing."""
    n_positional = len(spelled_out) - spelled_out.index("--") - 1 if "--" in spelled_out else 0
    positional = [option for option in options if option.positional]
    absent = positional[n_positional:] + [o for o in options if not o.positional and o.name not in given]
    needed = [option for option in absent if option.default is inspect.Parameter.empty]
    if needed:
        names = " and ".join(option.name if option.positional else f"--{option.name}" for option in needed)
        raise ConfigError(f"{prog} needs {names}; {prog} --help shows what that is.")


def _following(options: dict[str, Option], arguments: list[str]) -> list[str]:
    """The options that follow one of the arguments (see Option)."""
    given = given_values(arguments)
    found = []
    for option in options.values():
        if option.name in given or option.follows not in given:
            continue
        with contextlib.suppress(ValueError, TypeError, ArithmeticError):  # one of them is no number above 0
            limit, usual = float(given[option.follows]), options[option.follows].default
            if limit < option.default:
                followed = float(f"{limit * option.default / usual:.12g}")  # so a tenth of 0.003 is 0.0003
                found.append(f"--{option.name}={max(1, int(followed)) if isinstance(usual, int) else followed}")
    return found


def given_values(arguments: list[str]) -> dict[str, str | None]:
    """The name and the value of each option among the arguments. None = it has no
    value."""
    ends = arguments.index("--") if "--" in arguments else len(arguments)
    given = {}
    for argument, following in zip_longest(arguments[:ends], arguments[1:ends]):
        if is_option(argument):
            name, equals, value = argument.partition("=")
            follows = following is not None and not is_option(following)
            given[name[2:].replace("-", "_")] = value if equals else following if follows else None
    return given


def _value(option: Option, rest: deque[str], name: str) -> str:
    """The value of an option, taken from the arguments after its name."""
    if _is_value(rest):
        return rest.popleft()
    if option.kind is bool:
        return "true"
    hint = f"; write {name}={rest[0]} if this is its value" if rest else ""
    raise ConfigError(f"{name} has no value{hint}.")


def _is_value(rest: deque[str]) -> bool:
    return bool(rest) and rest[0] != "--" and not is_option(rest[0])


def _as_tyro(kind: Any, value: str) -> str:
    """The value of an option as tyro spells it: None, True, False."""
    words = {"none": "None"} if is_optional(kind) else {"true": "True", "false": "False"} if kind is bool else {}
    return words.get(value, value)


def nearest(name: str, known: list[str]) -> str:
    """The end of a message that proposes the known name most like `name`; empty if none
    is like it. The name is quoted, so that it can be copied without the full stop. A
    field without its section, such as --lr, is like --optim.lr."""
    last_part = "." + name.lstrip("-").replace("-", "_")
    matches = [each for each in known if each.endswith(last_part)]
    matches = matches or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean '{matches[0]}'" if matches else ""


def _first_sentence(box: str) -> str:
    """The message in tyro's framed complaint, in one line."""
    lines = [re.sub(r"[│╭╮╰╯]", "", line).strip() for line in box.splitlines()[1:]]
    message = []
    for line in lines:
        if line.startswith("─"):
            break
        message.append(line)
    # For an optional number, tyro adds why the value is neither a number nor None.
    sentence = " ".join(" ".join(message).split()).split(" Got errors:")[0]
    return re.sub(r"\{None\}\|(\w+)", r"\1 or none", sentence.replace("'None'", "'none'"))
