"""Tables of figures to print. JSON files hold the rows themselves."""

from textwrap import fill
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

Row = dict[str, Any]
Columns = dict[str, tuple[str, str]]  # heading -> (key in the rows, format such as "{:.1f}")


def build_table(title: str, rows: list[Row], columns: Columns) -> Table:
    """Return a table of the rows. A cell without a figure is blank.

    The table is narrow, so that it fits 80 columns: a heading takes several lines where
    it is longer than its figures, and there are no lines between the columns.
    """
    table = Table(title=title, box=SIMPLE_HEAD, show_edge=False, padding=0)
    for heading, (key, pattern) in columns.items():
        if pattern == "{}":
            table.add_column(heading)
            continue
        words = [*heading.split(), *(_cell(row.get(key), pattern) for row in rows)]
        table.add_column(fill(heading, max(map(len, words))), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(row.get(key), pattern) for key, pattern in columns.values()))
    return table


def build_tables(title: str, rows: list[Row], columns: Columns, by: tuple[str, ...]) -> list[Table]:
    """Return a table for each combination of values of the fields `by`.

    Its title ends in these values.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(", ".join(str(row[key]) for key in by), []).append(row)
    return [build_table(f"{title}: {values}", group, columns) for values, group in groups.items()]


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
