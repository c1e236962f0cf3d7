"""Memory of one step: a bump allocator.

A step allocates the same arrays every time, and frees them together. So an allocation is an addition to an offset, and
freeing is setting the offset back: to zero when the next step begins, or to a mark at the end of a scope, for what
lives shorter (what the backward of one block needs only while it runs).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

import numpy as np

from npllm.model.parameters import ALIGNMENT, aligned_empty


class Arena:
    """The first step finds out how much memory is needed; from the second on nothing is allocated."""

    def __init__(self):
        self._buffer = aligned_empty(0)
        self._used = 0
        self.peak = 0  # bytes; the most that was in use at once since the arena was made

    def empty(self, shape: int | tuple[int, ...], dtype) -> np.ndarray:
        """Like np.empty, but the array is valid only until its scope ends or the arena is reset."""
        size = np.dtype(dtype).itemsize * (prod(shape) if isinstance(shape, tuple) else shape)
        start = self._used
        self._used += -(-size // ALIGNMENT) * ALIGNMENT
        self.peak = max(self.peak, self._used)
        if self._used > len(self._buffer):  # only until the next reset
            return np.empty(shape, dtype)
        return np.ndarray(shape, dtype, self._buffer, start)

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Everything allocated inside is free again at the end."""
        mark = self._used
        yield
        self._used = mark

    def reset(self) -> None:
        """Free everything, and grow to the peak seen so far."""
        self._used = 0
        if self.peak > len(self._buffer):
            self._buffer = aligned_empty(self.peak)
