"""Checks that a result is right before it is timed."""

import numpy as np

TOLERANCE = {"float32": 2e-4, "float64": 1e-11}  # largest difference, as a share of the largest element


def check_close(who: str, results: tuple[np.ndarray, ...], expected: tuple[np.ndarray, ...], tolerance: float) -> None:
    """Stop the benchmark where two results differ by more than the tolerance.

    NaN differs from everything.
    """
    for result, right in zip(results, expected, strict=True):
        error = np.abs(result - right).max() / max(np.abs(right).max(), 1e-30)
        if not error <= tolerance:
            raise SystemExit(f"{who} differs from NumPy by {error:.1e}; nothing was timed.")
