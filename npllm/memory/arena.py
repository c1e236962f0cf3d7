"""The memory of a step: a bump allocator.

Every step allocates the same arrays and frees them together. An allocation adds to an
offset. To free is to set the offset back: to zero at the start of the next step, or to
a mark at the end of a scope. Scopes hold arrays with a shorter life, such as what the
backward of one block needs while it runs.

"Lifetimes" in `npllm/model/threads.py` tells which arrays of a model come from which
arena, and how long they are valid.

The memory consists of chunks; the system gives a new chunk when the last one is full.
The unwritten part of a chunk takes no memory. Nothing is allocated twice, as it would
be if the first step only measured.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

import numpy as np

from npllm.memory.aligned import ALIGNMENT, aligned_empty

CHUNK = 64 << 20  # bytes


class Arena:
    """The first step takes the memory; later steps allocate nothing."""

    def __init__(self):
        self._chunks: list[np.ndarray] = []
        self._chunk, self._used = 0, 0  # the chunk in use, and the bytes used in it
        self._full = 0  # bytes used in the chunks before it
        self.peak = 0  # the most bytes in use at once since the arena was made

    def empty(self, shape: int | tuple[int, ...], dtype) -> np.ndarray:
        """Return an array, valid until its scope ends or the arena is reset."""
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
        """Take a chunk of n_bytes before the first allocation, where the peak is known.

        In one chunk only `peak` bytes are ever written. With several chunks, some bytes
        at the end of each stay free, because the next array does not fit.
        """
        if not self._chunks:
            self._chunks.append(aligned_empty(max(CHUNK, n_bytes)))

    @contextmanager
    def scope(self) -> Iterator[None]:
        """A context at whose end everything allocated inside is free again."""
        mark = self._chunk, self._used, self._full
        yield
        self._chunk, self._used, self._full = mark

    def reset(self) -> None:
        """Free everything."""
        self._chunk = self._used = self._full = 0
