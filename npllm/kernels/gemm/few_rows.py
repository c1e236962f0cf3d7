"""The product of a few rows with a matrix.

Generation multiplies the activations of one token by every weight. Each weight is used
once per row, so the speed of the memory decides. The matrix is read once, in its own
order, from one end to the other, and nothing is packed.

Where the columns of B are the fast index, rows of B are added up, each multiplied by an
element of A. If each thread owned columns, it would read short pieces of rows, and the
start of each piece is slow to arrive from memory. Here alone, the sum over K is
therefore cut into `PARTS` partial sums. Their number does not depend on the number of
threads, and they are added in order, so the bits do not depend on it either.

`python -m benchmarks generate` compares the speed with Hugging Face Transformers.
"""

import numpy as np
from numba import prange, uint32

from npllm.kernels.bfloat16 import dot_of_pairs
from npllm.kernels.gelu import gelu_each
from npllm.kernels.jit import inlined, parallel, part, replacing
from npllm.kernels.vector_math import dot

MOST_ROWS = 4  # more rows take less time in tiles
PARTS = 8


@parallel
def multiply_rows(a, b, c, addend, bias, activated, sums):
    """Compute c = a @ b + addend + bias, and activated = gelu(c).

    a: (M, K) and b: (K, N), C-contiguous. addend, bias, activated: as in
    `driver.Epilogue`. sums: (PARTS, M, N), scratch.
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
    """Compute the same as `multiply_rows`, with b: (N, K), the transpose of the matrix.

    Each thread owns whole columns of C. a and b have c's dtype, or they are bfloat16,
    two numbers in each uint32.
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
    """Return the dot product of two rows."""
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
    """Fill row m of C with the addend, which may be C itself, plus the bias.

    An array without elements stands for none.
    """
    # Not row[:] = addend[m]: Numba would compile the text of the error that it raises
    # where the lengths differ, which takes longer than the rest of the kernel.
    for j in range(len(row)):
        row[j] = row.dtype.type(0.0) if addend.size == 0 else addend[m, j]
    if bias.size > 0:
        _add(bias, row)


@part
def _activate(c, activated):
    for m in range(len(activated) if activated.size > 0 else 0):
        gelu_each(c[m], activated[m])
