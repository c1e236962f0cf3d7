"""The help of the command line: `npllm --help`, `npllm VERB --help` and completion.

It is written from the same signatures that the arguments are parsed with, so it names
what the parser takes. Descriptions come from the docstrings.
"""

import ast
import inspect
import re
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from npllm.runs.arguments import Option, is_optional, options_of

WIDEST = 80  # columns of the help, on wider terminals too
NARROWEST = 20
INDENT = 26  # of the descriptions
METAVARS = {int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH", bool: "true|false"}


def overview(summaries: Mapping[str, str]) -> str:
    """The list of verbs. summaries: verb -> one sentence."""
    lines = [_entry(verb, summary, 20) for verb, summary in summaries.items()]
    return "\n".join(
        [
            _paragraph("npllm VERB ...: a language model from raw text to generation"),
            "",
            *lines,
            "",
            _paragraph("npllm VERB --help, or npllm help VERB, shows the options of a verb."),
            _paragraph("npllm --version shows the version, npllm completion completes these words in a shell."),
        ]
    )


def verb_help(command: str, function: Callable, first: Sequence[str] | None) -> str:
    """The help of a verb.

    command: such as npllm pretrain. function: its signature has the options, its
    docstring their descriptions. first: the options of its sections to show; None =
    all.
    """
    options, descriptions = options_of(function), _descriptions(function)
    positional = [option for option in options if option.positional]
    named = [option for option in options if not option.positional]
    usage = " ".join([f"usage: {command}", *(["[OPTIONS]"] if named else []), *map(_metavar, positional)])
    lines = [_paragraph(usage), "", _paragraph(inspect.getdoc(function).split("\n\n")[0])]
    if positional:
        lines += ["", "arguments:", *(_described(option, descriptions) for option in positional)]
    if first is None:
        sections = {"": "options:"} | {name: f"{name}: {_summary(kind)}" for name, kind in _sections(function).items()}
        for section, heading in sections.items():
            chosen = [option for option in named if option.name.rpartition(".")[0] == section]
            if chosen:
                lines += ["", _paragraph(heading), *(_described(option, descriptions) for option in chosen)]
    else:
        chosen = [option for option in named if "." not in option.name]
        chosen += [option for name in first for option in named if option.name == name]
        lines += ["", "options:", *(_described(option, descriptions) for option in chosen)]
        if len(named) > len(chosen):
            lines.append(_entry("--help-all", f"also the other {len(named) - len(chosen)} options"))
    return "\n".join(lines)


def completion_script(shell: str, options: Mapping[str, Sequence[str]]) -> str:
    """A script for bash or zsh that completes verbs and options. options: verb -> the
    names of its options."""
    groups: dict[str, list[str]] = {}
    for verb in options:
        groups.setdefault(verb.split()[0], []).append(verb)
    cases = [f'    "{verb} "*) [[ $word == -* ]] && words="{" ".join(names)}" ;;' for verb, names in options.items()]
    cases += [
        f'    "{word} ") words="{" ".join(verb.split()[1] for verb in verbs)}" ;;'
        for word, verbs in groups.items()
        if " " in verbs[0]
    ]
    return "\n".join(
        [
            *(["autoload -U +X bashcompinit && bashcompinit"] if shell == "zsh" else []),
            "_npllm() {",
            '  local words="" word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[*]:1:COMP_CWORD-1} "',
            '  case "$before" in',
            f'    " ") words="{" ".join(groups)}" ;;',
            *cases,
            "  esac",
            '  COMPREPLY=($(compgen -W "$words" -- "$word"))',
            "}",
            "complete -o default -F _npllm npllm",
        ]
    )


def _described(option: Option, descriptions: Mapping[str, str]) -> str:
    """The entry of an option: name, kind of value, description and default."""
    if option.positional:
        return _entry(_metavar(option), descriptions[option.name])
    is_required = option.default is inspect.Parameter.empty
    default = "required" if is_required else f"default: {_written(option.default)}"
    return _entry(f"--{option.name} {_metavar(option)}", f"{descriptions[option.name]} ({default})")


def _metavar(option: Option) -> str:
    """What stands for the value, such as INT or adamw|adam|sgd."""
    many = get_origin(option.kind) is tuple
    if option.positional:
        word = f"{option.name.upper()}{' ...' * many}"
        return word if option.default is inspect.Parameter.empty else f"[{word}]"
    kind = option.kind
    if is_optional(kind) or many:  # of X | None and tuple[X, ...], the X
        kind = next(each for each in get_args(kind) if each is not NoneType)
    word = "|".join(get_args(kind)) if get_origin(kind) is Literal else METAVARS[kind]
    return f"{word}{' ...' * (many and not option.repeated)}"


def _written(value: Any) -> str:
    """A default as it would be written on the command line."""
    if value == ():
        return "none"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return str(value) if value != "" else '""'


def _sections(function: Callable) -> dict[str, type]:
    """The dataclasses among the parameters."""
    parameters = inspect.signature(function).parameters.values()
    return {each.name: each.annotation for each in parameters if is_dataclass(each.annotation)}


def _summary(kind: type) -> str:
    return " ".join(inspect.getdoc(kind).split("\n\n")[0].split())


def _descriptions(function: Callable) -> dict[str, str]:
    """The description of each option: of the function's from its docstring, of a
    section's fields from the text below each field."""
    arguments = inspect.getdoc(function).partition("Args:\n")[2]
    described = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", arguments, re.MULTILINE)
    found = {name: " ".join(text.split()) for name, text in described}
    for section, kind in _sections(function).items():
        for ancestor in reversed([each for each in kind.__mro__ if is_dataclass(each)]):
            body = ast.parse(textwrap.dedent(inspect.getsource(ancestor))).body[0].body
            for field, text in zip(body, body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                    found[f"{section}.{field.target.id}"] = " ".join(text.value.value.split())
    return found


def _width() -> int:
    return max(NARROWEST, min(WIDEST, shutil.get_terminal_size().columns))


def _paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), _width(), break_on_hyphens=False)


def _entry(name: str, description: str, indent: int = INDENT) -> str:
    """A name and, beside or below it, its description."""
    indent = indent if _width() >= 60 else 6
    lines = textwrap.wrap(description, _width() - indent, break_on_hyphens=False)
    head = f"  {name}"
    if len(head) + 2 <= indent:
        head, lines = f"{head:{indent}}{lines[0]}", lines[1:]
    return "\n".join([head, *(" " * indent + line for line in lines)])
