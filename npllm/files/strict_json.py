"""Parses and checks JSON from files that may come from an untrusted source."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from math import isfinite
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")

LEAST_INTEGER, MOST_INTEGER = -(2**63), 2**64 - 1  # those that 64 bits hold, with or without a sign
DEEPEST = 100  # levels of lists and objects; so code that visits the value may be recursive


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    A byte order mark at the start is skipped.
    Raises ValueError for invalid JSON, and also for what Python's parser accepts: a key
    twice in one object (readers differ in which they use), NaN, Infinity and numbers
    that become it, and deep nesting.
    """
    try:
        value = json.loads(
            text.removeprefix("\ufeff") if isinstance(text, str) else text,  # a byte order mark
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_finite,
            parse_constant=_refuse_constant,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check_depth(value)
    return value


def check_fields(values: Any, types: Mapping[str, Any]) -> None:
    """Raise ValueError unless `values` is an object that has each field with its type.

    types: name -> int, float, str, bool, list, dict, a Literal, or a union of them and
    None. Python takes True for the integer 1; here it is none. An int is one of at most
    64 bits. A float may be written as such an int, and is finite. Other fields are
    ignored.
    """
    if not isinstance(values, dict):
        raise ValueError("it is not an object")
    for name, kind in types.items():
        if name not in values:
            raise ValueError(f"{name} is missing")
        if not _has_type(values[name], kind):
            raise ValueError(f"{name} is {_shown(values[name])}")


def from_fields(kind: type[T], values: Any) -> T:
    """Make a dataclass from an object whose fields have the types that it declares.

    A field that is missing has its default. Raises ValueError for any other object, and
    what the dataclass itself raises.
    """
    types = get_type_hints(kind)
    optional = {field.name for field in fields(kind) if field.default is not MISSING}
    given = values if isinstance(values, dict) else {}
    check_fields(values, {name: of for name, of in types.items() if name in given or name not in optional})
    if unknown := sorted(given.keys() - types.keys()):
        raise ValueError(f"{unknown[0]:.80} is none of its fields")
    return kind(**values)


def _has_type(value: Any, kind: Any) -> bool:
    """Whether a value of JSON has a type as `check_fields` takes it."""
    if get_origin(kind) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(kind))
    if parts := get_args(kind) if get_origin(kind) not in (list, dict) else ():
        return any(_has_type(value, part) for part in parts)
    if type(value) is int and kind in (int, float):
        return LEAST_INTEGER <= value <= MOST_INTEGER
    if type(value) is float and kind is float:
        return isfinite(value)
    return type(value) is kind


def _shown(value: Any) -> str:
    """A value in a message: as JSON writes it, and at most 80 characters."""
    try:
        return f"{json.dumps(value):.80}"
    except ValueError:  # Python writes integers of at most 4300 digits
        return "too large"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice[:80]!r} is in one object twice")
    return table


def _integer(digits: str) -> int:
    try:
        return int(digits)
    except ValueError:  # Python reads at most 4,300 digits
        raise ValueError(f"{digits[:80]} is too large for a number") from None


def _finite(digits: str) -> float:
    number = float(digits)
    if not isfinite(number):
        raise ValueError(f"{digits[:80]} is too large for a number")
    return number


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        level = [child for node in level for child in _children(node) if isinstance(child, dict | list)]
        if not level:
            return
    raise ValueError("it is nested too deeply")


def _children(node: Any) -> Iterable[Any]:
    return node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
