"""The product of a few rows with a matrix, as generation makes them: a token's activations times every weight.

Each weight is used once for each row, so the memory sets the pace: the matrix is read once, in its own order, and
nothing is packed. A thread owns whole columns of C; every sum runs over k in an order that is fixed when the kernel is
compiled.
"""

import numpy as np
from numba import prange

from npllm.kernels.chunks import chunk_count
from npllm.kernels.gelu import gelu_each
from npllm.kernels.gemm.tile import tile_columns
from npllm.kernels.jit import inlined, parallel, part
from npllm.kernels.vector_math import dot

MOST_ROWS = 4  # more than these take less time in tiles


@parallel
def multiply_few_rows(a, b, b_row_step, b_column_step, c, addend, bias, activated, threads):
    """c = a @ b + addend + bias, and activated = gelu(c); arguments as in `driver.multiply`, but a: (M, K)."""
    N, width = c.shape[1], tile_columns(c.itemsize)
    panels = chunk_count(N, width)
    for t in prange(threads):
        thread = np.int64(t)
        first, end = panels * thread // threads * width, min(panels * (thread + 1) // threads * width, N)
        for m in range(len(a)):
            _begin_row(c[m, first:end], addend[m, first:end] if addend.size > 0 else addend[0], bias[first:end])
        if b_column_step == 1:
            _add_rows(a, b, b_row_step, c, first, end)
        else:
            _add_dot_products(a, b, b_column_step, c, first, end)
        for m in range(len(a) if activated.size > 0 else 0):
            gelu_each(c[m, first:end], activated[m, first:end])


@part
def _begin_row(c, addend, bias):
    """c = addend + bias, each of which may have no elements."""
    for j in range(len(c)):
        c_j = addend[j] if len(addend) > 0 else c.dtype.type(0.0)
        c[j] = c_j + bias[j] if len(bias) > 0 else c_j


@part
def _add_rows(a, b, row_step, c, first, end):
    """Where the columns of B are the fast index: row k of B, times a[m, k], is added to row m of C; four k at a time,
    because C is read and written each time."""
    K = a.shape[1]
    whole = K - K % 4
    for k in range(0, whole, 4):
        start = k * row_step
        b_0, b_1 = b[start + first : start + end], b[start + row_step + first : start + row_step + end]
        start += 2 * row_step
        b_2, b_3 = b[start + first : start + end], b[start + row_step + first : start + row_step + end]
        for m in range(len(a)):
            _add_four(a[m, k : k + 4], b_0, b_1, b_2, b_3, c[m, first:end])
    for k in range(whole, K):
        for m in range(len(a)):
            _add_one(a[m, k], b[k * row_step + first : k * row_step + end], c[m, first:end])


@inlined
def _add_four(a, b_0, b_1, b_2, b_3, c):
    a_0, a_1, a_2, a_3 = a[0], a[1], a[2], a[3]
    for j in range(len(c)):
        c[j] = c[j] + a_0 * b_0[j] + a_1 * b_1[j] + a_2 * b_2[j] + a_3 * b_3[j]


@inlined
def _add_one(a_k, b_k, c):
    for j in range(len(c)):
        c[j] += a_k * b_k[j]


@part
def _add_dot_products(a, b, column_step, c, first, end):
    """Where k is the fast index."""
    K = a.shape[1]
    for j in range(first, end):
        for m in range(len(a)):
            c[m, j] += dot(a[m], b[j * column_step : j * column_step + K])
