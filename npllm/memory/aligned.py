"""Memory that starts where vector registers and cache lines do."""

import numpy as np

ALIGNMENT = 64  # bytes: a cache line, and the widest vector register


def aligned_empty(n_bytes: int) -> np.ndarray:
    """n_bytes of uninitialised memory that starts on a 64-byte boundary, as uint8."""
    return _aligned(np.empty(n_bytes + ALIGNMENT, np.uint8), n_bytes)


def aligned_zeros(n_bytes: int) -> np.ndarray:
    """The same, of zeros, which take no memory before they are written."""
    return _aligned(np.zeros(n_bytes + ALIGNMENT, np.uint8), n_bytes)


def _aligned(raw: np.ndarray, n_bytes: int) -> np.ndarray:
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + n_bytes]
