"""GELU in its tanh form. See `npllm.reference.gelu` for the mathematics.

With the logistic function sigma, (1 + tanh u) / 2 = sigma(2u). So forward and backward
need one exponential and one division each, and no digits are lost where tanh u is close
to -1:

    y = x sigma(2u)                 dy/dx = sigma + x sigma (1 - sigma) 2 du/dx
"""

import numpy as np
from numba import prange

from npllm.kernels.chunks import ELEMENTS, chunk_count
from npllm.kernels.jit import inlined, parallel, serial
from npllm.kernels.vector_math import sigmoid
from npllm.reference.gelu import CUBIC, SQRT_2_OVER_PI


def gelu_forward(x, *, empty=np.empty):
    """Return y = GELU(x), element by element; x: any shape and float dtype."""
    y = empty(x.shape, x.dtype)
    kernel = gelu_each if x.size <= ELEMENTS else _forward
    kernel(x.reshape(-1), y.reshape(-1))
    return y


def gelu_backward(dy, x, *, empty=np.empty):
    """Return dx for the gradient dy of y = GELU(x); both have x's shape."""
    dx = empty(x.shape, x.dtype)
    kernel = _backward_chunk if x.size <= ELEMENTS else _backward
    kernel(dy.reshape(-1), x.reshape(-1), dx.reshape(-1))
    return dx


@inlined
def gelu(x):
    """Return the GELU of a scalar."""
    real = type(x)
    return x * sigmoid(real(2.0 * SQRT_2_OVER_PI) * (x + real(CUBIC) * x * x * x))


@inlined
def gelu_derivative(x):
    """Return dy/dx at the scalar x."""
    real = type(x)
    sigma = sigmoid(real(2.0 * SQRT_2_OVER_PI) * (x + real(CUBIC) * x * x * x))
    return sigma + x * sigma * (real(1.0) - sigma) * real(2.0 * SQRT_2_OVER_PI) * (
        real(1.0) + real(3.0 * CUBIC) * x * x
    )


@parallel
def _forward(x, y):
    for c in prange(chunk_count(len(x), ELEMENTS)):
        start, stop = c * ELEMENTS, (c + 1) * ELEMENTS
        gelu_each(x[start:stop], y[start:stop])


@serial
def gelu_each(x, y):
    for i in range(len(x)):
        y[i] = gelu(x[i])


@parallel
def _backward(dy, x, dx):
    for c in prange(chunk_count(len(x), ELEMENTS)):
        start, stop = c * ELEMENTS, (c + 1) * ELEMENTS
        _backward_chunk(dy[start:stop], x[start:stop], dx[start:stop])


@serial
def _backward_chunk(dy, x, dx):
    for i in range(len(x)):
        dx[i] = dy[i] * gelu_derivative(x[i])
