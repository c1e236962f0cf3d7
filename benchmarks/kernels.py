"""`benchmarks kernels`: forward and backward of each operation, compared with NumPy."""

from statistics import median

import numpy as np
from rich.table import Table

import npllm.kernels
from benchmarks.cases import Case, operation_cases
from benchmarks.checks import TOLERANCE, check_close
from benchmarks.tables import Row, build_table, say_where_we_lose
from benchmarks.timing import SHORT_PAUSE, interleave, spread, timed, times_faster
from npllm.memory.arena import Arena
from npllm.model.backends import operations_of


def measure(dtype: str, rounds: int, peak: float) -> list[Row]:
    """Return one row per operation. peak: of the machine, in operations per second.

    A kernel whose result differs from NumPy's stops the benchmark.
    """
    return [measure_case(case, dtype, rounds, peak) for case in operation_cases(np.dtype(dtype))]


def measure_case(case: Case, dtype: str, rounds: int, peak: float) -> Row:
    """Return the row of one operation."""
    arena, reference = Arena(), operations_of("reference")

    def kernel():
        arena.reset()
        return case.call(npllm.kernels, arena.empty)

    def numpy():
        return case.call(reference, np.empty)

    check_close(case.name, kernel(), numpy(), TOLERANCE[dtype])
    seconds = interleave({"numpy": timed(numpy), "kernel": timed(kernel)}, rounds, pause=SHORT_PAUSE)
    return {
        "operation": case.name,
        "shape": case.shape,
        "numpy_ms": 1e3 * median(seconds["numpy"]),
        "kernel_ms": 1e3 * median(seconds["kernel"]),
        "spread": spread(seconds["kernel"]),
        "ratio": times_faster(seconds["kernel"], seconds["numpy"]),
        "share_of_peak": case.flops / median(seconds["kernel"]) / peak if case.flops else None,
    }


def tables(rows: list[Row]) -> list[Table]:
    """Return the tables to print."""
    columns = {
        "operation": ("operation", "{}"),
        "shape": ("shape", "{}"),
        "NumPy ms": ("numpy_ms", "{:.3f}"),
        "kernel ms": ("kernel_ms", "{:.3f}"),
        "spread": ("spread", "±{:.0%}"),
        "kernel is faster": ("ratio", "{:.1f}×"),
        "of peak": ("share_of_peak", "{:.0%}"),
    }
    return [build_table("forward and backward of each operation", rows, columns)]


def verdict(rows: list[Row]) -> list[str]:
    """Return lines that say where npllm loses."""
    return say_where_we_lose([(f"{row['operation']}, {row['shape']}, against NumPy", row["ratio"]) for row in rows])
