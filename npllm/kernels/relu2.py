"""ReLU². See `npllm.reference.relu2` for the mathematics.

It is an operation of its own and no epilogue of the matrix product: without an
exponential to hide, one pass over memory is all that it costs.
"""

import numpy as np
from numba import prange

from npllm.kernels.chunks import ELEMENTS, chunk_count
from npllm.kernels.jit import parallel, serial
from npllm.kernels.vector_math import larger


def relu2_forward(x, *, empty=np.empty):
    """y = max(x, 0)^2, element by element, for an x of any shape and float dtype."""
    y = empty(x.shape, x.dtype)
    kernel = _forward_chunk if x.size <= ELEMENTS else _forward
    kernel(x.reshape(-1), y.reshape(-1))
    return y


def relu2_backward(dy, x, *, empty=np.empty):
    """dx for the gradient dy of y = max(x, 0)^2; both of x's shape."""
    dx = empty(x.shape, x.dtype)
    kernel = _backward_chunk if x.size <= ELEMENTS else _backward
    kernel(dy.reshape(-1), x.reshape(-1), dx.reshape(-1))
    return dx


@parallel
def _forward(x, y):
    for c in prange(chunk_count(len(x), ELEMENTS)):
        start, stop = c * ELEMENTS, (c + 1) * ELEMENTS
        _forward_chunk(x[start:stop], y[start:stop])


@serial
def _forward_chunk(x, y):
    zero = x.dtype.type(0.0)
    for i in range(len(x)):
        positive = larger(x[i], zero)
        y[i] = positive * positive


@parallel
def _backward(dy, x, dx):
    for c in prange(chunk_count(len(x), ELEMENTS)):
        start, stop = c * ELEMENTS, (c + 1) * ELEMENTS
        _backward_chunk(dy[start:stop], x[start:stop], dx[start:stop])


@serial
def _backward_chunk(dy, x, dx):
    zero, two = x.dtype.type(0.0), x.dtype.type(2.0)
    for i in range(len(x)):
        dx[i] = dy[i] * (two * larger(x[i], zero))
