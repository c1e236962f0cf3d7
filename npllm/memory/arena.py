"""Memory of one step: a bump allocator.

A step allocates the same arrays every time, and frees them together. So an allocation is an addition to an offset, and
freeing is setting the offset back: to zero when the next step begins, or to a mark at the end of a scope, for what
lives shorter (what the backward of one block needs only while it runs).

Which arrays of a model come from which arena, and how long they are valid, says
"Lifetimes" in `npllm/model/transformer.py`.

The memory comes in chunks, each from the system when the one before is full. What is not yet written in a chunk takes
no memory, and nothing is allocated twice, as it would be if the first step only measured.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

import numpy as np

from npllm.memory.aligned import ALIGNMENT, aligned_empty

CHUNK = 64 << 20  # bytes


class Arena:
    """The first step takes the memory; from the second on nothing is allocated."""

    def __init__(self):
        self._chunks: list[np.ndarray] = []
        self._chunk, self._used = 0, 0  # the chunk in use, and the bytes taken of it
        self._full = 0  # bytes taken of the chunks before it
        self.peak = 0  # bytes; the most that was in use at once since the arena was made

    def empty(self, shape: int | tuple[int, ...], dtype) -> np.ndarray:
        """Like np.empty, but the array is valid only until its scope ends or the arena is reset."""
        size = np.dtype(dtype).itemsize * (prod(shape) if isinstance(shape, tuple) else shape)
        size = -(-size // ALIGNMENT) * ALIGNMENT
        while self._chunk < len(self._chunks) and self._used + size > len(self._chunks[self._chunk]):
            self._full += self._used
            self._chunk, self._used = self._chunk + 1, 0
        if self._chunk == len(self._chunks):
            self._chunks.append(aligned_empty(max(CHUNK, size)))
        start = self._used
        self._used += size
        self.peak = max(self.peak, self._full + self._used)
        return np.ndarray(shape, dtype, self._chunks[self._chunk], start)

    def reserve(self, n_bytes: int) -> None:
        """Before the first allocation: take a chunk for so many bytes, where the peak is known. In one chunk `peak` is
        all that is ever written; where there are more, some of each stays free, because the next array does not fit."""
        if not self._chunks:
            self._chunks.append(aligned_empty(max(CHUNK, n_bytes)))

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Everything allocated inside is free again at the end."""
        mark = self._chunk, self._used, self._full
        yield
        self._chunk, self._used, self._full = mark

    def reset(self) -> None:
        """Free everything."""
        self._chunk = self._used = self._full = 0
