"""Tables of figures to print. JSON files hold the rows themselves."""

from typing import Any

from rich.table import Table

Row = dict[str, Any]


def build_table(title: str, rows: list[Row], columns: dict[str, tuple[str, str]]) -> Table:
    """Return a table of the rows.

    columns: heading -> (key in the rows, format such as "{:.1f}"). A cell without a
    figure is blank.
    """
    table = Table(title=title)
    for heading, (_, pattern) in columns.items():
        table.add_column(heading, justify="left" if pattern == "{}" else "right")
    for row in rows:
        table.add_row(*(_cell(row.get(key), pattern) for key, pattern in columns.values()))
    return table


def _cell(value: Any, pattern: str) -> str:
    return "" if value is None else pattern.format(value)


def say_where_we_lose(comparisons: list[tuple[str, float]]) -> list[str]:
    """Return sentences that say where npllm is slower.

    comparisons: (what is compared with whom, how many times faster npllm is).
    """
    lost = [f"npllm loses: {what}, {ratio:.2f}×" for what, ratio in comparisons if ratio < 1.0]
    if lost or not comparisons:
        return lost
    return [f"npllm is the faster one in all {len(comparisons)} comparisons."]
