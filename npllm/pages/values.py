"""The values of configs and summaries as text."""

import json
from collections.abc import Mapping
from typing import Any


def shown(value: Any) -> str:
    """A value of a config or a summary, as a table shows it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int):
        return f"{value:,}"
    return ", ".join(map(shown, value)) if isinstance(value, list | tuple) else str(value)


def simple_values(values: Mapping[str, Any]) -> dict[str, str]:
    """The values that a line of a table holds, as text."""
    return {name: shown(value) for name, value in values.items() if not _is_nested(value)}


def nested_values(values: Mapping[str, Any]) -> dict[str, str]:
    """The other values, as JSON."""
    return {
        name: json.dumps(value, indent=1, ensure_ascii=False) for name, value in values.items() if _is_nested(value)
    }


def _is_nested(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(each, list | dict) for each in value))
