"""Chunks of work of a fixed size.

The size never depends on the number of threads, so no result does. Starting a parallel
loop takes microseconds, above all when the threads are asleep. The caller's thread
alone therefore does whatever fits in one chunk.
"""

from npllm.kernels.jit import inlined, part

ELEMENTS = 8192  # of a flat array: 32 KB of float32
CHUNK_ROWS = 64


def zeros(shape, dtype, empty):
    """Return zeros of this shape and dtype, to stand in for an optional array.

    A kernel then need not be compiled both with and without the array.
    """
    array = empty(shape, dtype)
    array.fill(0.0)
    return array


@inlined
def chunk_count(n, size):
    """Return the number of chunks of `size` elements that cover n elements."""
    return (n + size - 1) // size


@inlined
def chunk_bounds(chunk, size, n):
    """Return the first element of a chunk, and one past its last, of n elements."""
    return chunk * size, min((chunk + 1) * size, n)


@part
def add_in_order(parts, total):
    """total += parts[0] + parts[1] + ...; parts: (chunks, C); total: (C,)."""
    for chunk in range(len(parts)):
        for j in range(len(total)):
            total[j] += parts[chunk, j]
