"""y = softmax of every row of x.

The kernel consists of the two passes that the loss and generation use. Both are
vectorised, and the row stays in the cache between them. NumPy makes every pass over the
whole matrix, which goes through memory each time.
"""

import numba
import numpy as np
from numba import prange

import npllm.reference.attention
from benchmarks.ladder.task import Task, blank, normal
from npllm.kernels.row_softmax import row_exponentials, row_maximum

SMALL = (16, 512)  # sizes for the loop in Python


def loop(x, y):
    for n in prange(x.shape[0]):
        maximum = x[n, 0]
        for j in range(x.shape[1]):
            maximum = max(maximum, x[n, j])
        total = x.dtype.type(0.0)
        for j in range(x.shape[1]):
            y[n, j] = np.exp(x[n, j] - maximum)
            total += y[n, j]
        for j in range(x.shape[1]):
            y[n, j] /= total


def numpy(x):
    return (npllm.reference.attention.softmax(x),)


def kernel(empty, x):
    y = empty(x.shape, x.dtype)
    _softmax_rows(x, y)
    return (y,)


@numba.njit(parallel=True, error_model="numpy")
def _softmax_rows(x, y):
    for n in prange(x.shape[0]):
        row = y[n]
        row[:] = x[n]
        factor = np.float32(1.0) / row_exponentials(row, row_maximum(row))
        for j in range(len(row)):
            row[j] *= factor


def task(N=4096, C=4096) -> Task:
    return Task(
        operation="softmax",
        shape=f"{N}×{C}",
        flops=5.0 * N * C,
        n_bytes=8.0 * N * C,
        inputs=(normal(N, C),),
        outputs=(blank(N, C),),
        loop=loop,
        numpy=numpy,
        kernel=kernel,
        in_torch="softmax",
    )
