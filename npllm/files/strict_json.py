"""Parses JSON from files that may come from an untrusted source."""

import json
from collections.abc import Iterable
from math import isfinite
from typing import Any

DEEPEST = 100  # levels of lists and objects; so code that visits the value may be recursive


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises ValueError for invalid JSON, and also for what Python's parser accepts: a key
    twice in one object (readers differ in which they use), NaN, Infinity and numbers
    that become it, and deep nesting.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_float=_finite, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check_depth(value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice[:80]!r} is in one object twice")
    return table


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
