"""The ladders as tables, and the rungs that are faster than the kernel."""

from rich.table import Table

from benchmarks.ladder.climb import KERNEL
from benchmarks.tables import Row, build_tables, say_where_we_lose


def tables(rows: list[Row]) -> list[Table]:
    """Return a table for each operation: those on all cores, then those on one."""
    common = {
        "rung": ("rung", "{}"),
        "ms": ("ms", "{:,.2f}"),
        "spread": ("spread", "±{:.0%}"),
        "kernel is faster": ("ratio", "{:,.1f}×"),
    }
    whole = {
        "GFLOP/s": ("gflops", "{:.3g}"),
        "GB/s": ("gb_per_s", "{:.3g}"),
        "limit": ("limit", "{}"),
        "of it": ("share", "{:.1%}"),
    }
    rows = [row | {"ms": 1e3 * row["seconds"]} for row in rows]
    large = [row for row in rows if row["ns_per_element"] is None]
    small = [row for row in rows if row["ns_per_element"] is not None]
    element, by = {"ns an element": ("ns_per_element", "{:.2f}")}, ("operation", "shape")
    return [
        *build_tables("on all cores", large, common | whole, by),
        *build_tables("on one core, in its cache", small, common | element, by),
    ]


def verdict(rows: list[Row]) -> list[str]:
    """Return lines that say what was scaled, and where a rung is faster than the
    kernel."""
    scaled = "The Python loop runs at a smaller size; its time is scaled up by the work."
    return [scaled] + say_where_we_lose(
        [(f"{row['operation']} against {row['rung']}", row["ratio"]) for row in rows if row["rung"] != KERNEL]
    )
