"""Memory that starts on the boundaries of vector registers and cache lines."""

import numpy as np

ALIGNMENT = 64  # bytes: a cache line, and the widest vector register


def aligned_empty(n_bytes: int) -> np.ndarray:
    """Return n_bytes of uninitialised memory, as uint8, from a 64-byte boundary on."""
    return _aligned(np.empty(n_bytes + ALIGNMENT, np.uint8), n_bytes)


def aligned_zeros(n_bytes: int) -> np.ndarray:
    """Return n_bytes of zeros, as uint8, from a 64-byte boundary on.

    They take no memory before they are written.
    """
    return _aligned(np.zeros(n_bytes + ALIGNMENT, np.uint8), n_bytes)


def _aligned(raw: np.ndarray, n_bytes: int) -> np.ndarray:
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + n_bytes]
