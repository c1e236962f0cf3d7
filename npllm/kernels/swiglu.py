"""SwiGLU. See `npllm.reference.swiglu` for the mathematics.

Forward and backward are one pass each, with one exponential per element.
"""

import numpy as np
from numba import prange

from npllm.kernels.chunks import ELEMENTS, chunk_count
from npllm.kernels.jit import parallel, serial
from npllm.kernels.vector_math import sigmoid
from npllm.reference.swiglu import SwiGLUCache


def swiglu_forward(gate, up, *, empty=np.empty):
    """Return y = silu(gate) * up, element by element, and the cache.

    gate, up: two arrays of one shape and float dtype; y has the same.
    """
    y = empty(gate.shape, gate.dtype)
    kernel = _forward_chunk if gate.size <= ELEMENTS else _forward
    kernel(gate.reshape(-1), up.reshape(-1), y.reshape(-1))
    return y, SwiGLUCache(gate, up)


def swiglu_backward(dy, cache, *, empty=np.empty):
    """Return dgate and dup, each of dy's shape."""
    dgate, dup = empty(dy.shape, dy.dtype), empty(dy.shape, dy.dtype)
    kernel = _backward_chunk if dy.size <= ELEMENTS else _backward
    kernel(dy.reshape(-1), cache.gate.reshape(-1), cache.up.reshape(-1), dgate.reshape(-1), dup.reshape(-1))
    return dgate, dup


@parallel
def _forward(gate, up, y):
    for c in prange(chunk_count(len(y), ELEMENTS)):
        start, stop = c * ELEMENTS, (c + 1) * ELEMENTS
        _forward_chunk(gate[start:stop], up[start:stop], y[start:stop])


@serial
def _forward_chunk(gate, up, y):
    for i in range(len(y)):
        y[i] = gate[i] * sigmoid(gate[i]) * up[i]


@parallel
def _backward(dy, gate, up, dgate, dup):
    for c in prange(chunk_count(len(dy), ELEMENTS)):
        start, stop = c * ELEMENTS, (c + 1) * ELEMENTS
        _backward_chunk(dy[start:stop], gate[start:stop], up[start:stop], dgate[start:stop], dup[start:stop])


@serial
def _backward_chunk(dy, gate, up, dgate, dup):
    one = dy.dtype.type(1.0)
    for i in range(len(dy)):
        sigma = sigmoid(gate[i])
        dgate[i] = dy[i] * up[i] * sigma * (one + gate[i] * (one - sigma))
        dup[i] = dy[i] * gate[i] * sigma
