"""The product of a few rows with a matrix, as generation makes them: a token's activations times every weight.

Each weight is used once for each row, so the memory sets the pace: the matrix is read once, in its own order, from one
end to the other, and nothing is packed.

Where the columns of B are the fast index, rows of B are added up, each times an element of A. A thread that owned
columns would read pieces of rows, and memory is slow to begin; so K is cut, here alone, into as many parts as `PARTS`
says. It does not depend on the number of threads, and the parts are added in order: the bits are the same for any.

`python -m benchmarks generate` on 2 cores of an AMD EPYC (Zen 3), GPT-2's size, one text: 1.9 times as many tokens a
second as Hugging Face Transformers; with the tiles of `driver` it was 0.8 times as many.
"""

import numpy as np
from numba import prange, uint32

from npllm.kernels.bfloat16 import dot_of_pairs
from npllm.kernels.gelu import gelu_each
from npllm.kernels.jit import inlined, parallel, part, replacing
from npllm.kernels.vector_math import dot

MOST_ROWS = 4  # more than these take less time in tiles
PARTS = 8


@parallel
def multiply_rows(a, b, c, addend, bias, activated, sums):
    """c = a @ b + addend + bias, and activated = gelu(c).

    a: (M, K), b: (K, N), C-contiguous; the others as in `driver.multiply`. sums: (PARTS, M, N), scratch.
    """
    for p in prange(PARTS):
        of_part, K = np.int64(p), len(b)
        _sum_rows(a, b, K * of_part // PARTS, K * (of_part + 1) // PARTS, sums[of_part])
    for m in range(len(c)):
        _begin_row(m, c[m], addend, bias)
        for p in range(PARTS):
            _add(sums[p, m], c[m])
    _activate(c, activated)


@parallel
def multiply_dots(a, b, c, addend, bias, activated, threads):
    """As `multiply_rows`, for b: (N, K), the transpose of the matrix; a thread owns whole columns of C.

    a, b: of c's dtype, or bfloat16, two of them in a uint32.
    """
    for m in range(len(c)):
        _begin_row(m, c[m], addend, bias)
    for t in prange(threads):
        thread, N = np.int64(t), len(b)
        for j in range(N * thread // threads, N * (thread + 1) // threads):
            for m in range(len(a)):
                c[m, j] += dot_product(a[m], b[j])
    _activate(c, activated)


def dot_product(a, b):
    """Of two rows."""
    return dot_of_pairs(a, b) if a.dtype == np.uint32 else dot(a, b)  # without Numba


@replacing(dot_product)
def _(a, b):
    return (lambda a, b: dot_of_pairs(a, b)) if a.dtype == uint32 else (lambda a, b: dot(a, b))


@part
def _sum_rows(a, b, first, end, sums):
    """sums = a[:, first:end] @ b[first:end], two rows of B at a time."""
    sums[:] = sums.dtype.type(0.0)
    whole = end - (end - first) % 2
    for k in range(first, whole, 2):
        for m in range(len(a)):
            _add_two(a[m, k], a[m, k + 1], b[k], b[k + 1], sums[m])
    if whole < end:
        for m in range(len(a)):
            _add_one(a[m, whole], b[whole], sums[m])


@inlined
def _add_two(a_0, a_1, b_0, b_1, c):
    for j in range(len(c)):
        c[j] = c[j] + a_0 * b_0[j] + a_1 * b_1[j]


@inlined
def _add_one(a_0, b_0, c):
    for j in range(len(c)):
        c[j] += a_0 * b_0[j]


@inlined
def _add(row, c):
    for j in range(len(c)):
        c[j] += row[j]


@part
def _begin_row(m, row, addend, bias):
    """Row m of C: the addend, which may be the row itself, and the bias; an array without elements stands for none."""
    if addend.size == 0:
        row[:] = row.dtype.type(0.0)
    else:
        row[:] = addend[m]
    if bias.size > 0:
        _add(bias, row)


@part
def _activate(c, activated):
    for m in range(len(activated) if activated.size > 0 else 0):
        gelu_each(c[m], activated[m])
