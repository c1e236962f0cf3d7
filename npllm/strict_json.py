"""JSON from files that may come from anywhere."""

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError also for what Python's parser lets through: a key twice in one object
    (each reader would believe another of the two), NaN and Infinity, and nesting too deep for the parser."""
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice[:80]!r} stands in one object twice")
    return table


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")
