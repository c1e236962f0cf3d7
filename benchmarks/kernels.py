"""`benchmarks kernels`: forward and backward of each operation, the kernel beside NumPy."""

from statistics import median
from typing import Any

import numpy as np
from rich.table import Table

import npllm.kernels
import npllm.reference
from benchmarks.cases import Case, operation_cases
from benchmarks.timing import interleave, spread
from npllm.model.arena import Arena
from npllm.training.machine import matmul_peak

TOLERANCE = {"float32": 2e-4, "float64": 1e-11}  # largest difference, as a share of the largest element


def measure(dtype: str, rounds: int) -> list[dict[str, Any]]:
    """One row per operation. A kernel that disagrees with NumPy stops the benchmark."""
    peak = matmul_peak(np.dtype(dtype))
    return [_measure_case(case, dtype, rounds, peak) for case in operation_cases(np.dtype(dtype))]


def _measure_case(case: Case, dtype: str, rounds: int, peak: float) -> dict[str, Any]:
    arena = Arena()

    def kernel():
        arena.reset()
        return case.call(npllm.kernels, arena.empty)

    def numpy():
        return case.call(npllm.reference, np.empty)

    for ours, theirs in zip(kernel(), numpy(), strict=True):
        error = np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30)
        if not error <= TOLERANCE[dtype]:
            raise SystemExit(f"{case.name}: the kernel differs from the reference by {error:.1e}; nothing was timed.")
    seconds = interleave({"numpy": numpy, "kernel": kernel}, rounds)
    ratios = [a / b for a, b in zip(seconds["numpy"], seconds["kernel"], strict=True)]
    return {
        "operation": case.name,
        "shape": case.shape,
        "numpy_ms": 1e3 * median(seconds["numpy"]),
        "kernel_ms": 1e3 * median(seconds["kernel"]),
        "spread": spread(seconds["kernel"]),
        "ratio": median(ratios),
        "share_of_peak": case.flops / median(seconds["kernel"]) / peak if case.flops else None,
    }


def table(rows: list[dict[str, Any]]) -> Table:
    """The rows for a person."""
    result = Table("operation", "shape", title="forward and backward of each operation")
    for heading in ("NumPy ms", "kernel ms", "spread", "NumPy / kernel", "% of matmul peak"):
        result.add_column(heading, justify="right")
    for row in rows:
        share = "" if row["share_of_peak"] is None else f"{100 * row['share_of_peak']:.0f} %"
        result.add_row(
            row["operation"],
            row["shape"],
            f"{row['numpy_ms']:.3f}",
            f"{row['kernel_ms']:.3f}",
            f"±{100 * row['spread']:.0f} %",
            f"{row['ratio']:.1f}×",
            share,
        )
    return result
