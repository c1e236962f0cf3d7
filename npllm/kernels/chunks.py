"""Fixed pieces of work: their size never depends on the number of threads, so neither does any result.

Starting a parallel loop takes 2 to 70 microseconds, by whether the threads are awake. What fits in one chunk is
therefore done by the caller's thread alone.
"""

from npllm.kernels.jit import inlined, part

ELEMENTS = 8192  # of a flat array: 32 KB of float32
CHUNK_ROWS = 64


def zeros(shape, dtype, empty):
    """Zeros in place of an optional array, so that a kernel need not be compiled with and without it."""
    array = empty(shape, dtype)
    array.fill(0.0)
    return array


@inlined
def chunk_count(n, size):
    """How many chunks of `size` cover n."""
    return (n + size - 1) // size


@inlined
def chunk_bounds(chunk, size, n):
    """First and one past the last of n that belong to the chunk."""
    return chunk * size, min((chunk + 1) * size, n)


@part
def add_in_order(parts, total):
    """total += parts[0] + parts[1] + ...; parts: (chunks, C), total: (C,)."""
    for chunk in range(len(parts)):
        for j in range(len(total)):
            total[j] += parts[chunk, j]
