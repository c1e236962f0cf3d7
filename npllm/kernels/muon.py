"""Muon. See `npllm.reference.muon` for the mathematics.

Nearly all the time is in the matrix products, which `gemm` computes. A tall matrix is
multiplied from the right, so that nothing is transposed.
"""

import numpy as np
from numba import prange

from npllm.kernels.chunks import ELEMENTS, chunk_count
from npllm.kernels.gemm import matmul
from npllm.kernels.gradient_norm import gradient_norm
from npllm.kernels.jit import parallel, serial
from npllm.reference.muon import COEFFICIENTS, ITERATIONS, SMALLEST_NORM


def muon_update(params, grads, m, *, lr, momentum, weight_decay, grad_scale=1.0, empty=np.empty):
    """Update one matrix in place.

    params, grads, m: (in, out), of one dtype. grad_scale: the clipping factor,
    multiplied into the gradients. Sets grads to zero.
    """
    n_in, n_out = params.shape
    u = empty(params.shape, params.dtype)
    _momentum(grads.reshape(-1), m.reshape(-1), u.reshape(-1), float(momentum), float(grad_scale))
    step = orthogonal(u, empty=empty)
    length = lr * max(1.0, n_out / n_in) ** 0.5
    _step(params.reshape(-1), step.reshape(-1), 1.0 - lr * weight_decay, float(length))


def orthogonal(u, *, empty=np.empty):
    """Return about U V^T of u = U S V^T, (in, out): all singular values near 1.

    u is overwritten.
    """
    tall = len(u) > u.shape[1]
    a, b, c = COEFFICIENTS
    u *= u.dtype.type(1.0 / (gradient_norm(u.reshape(-1)) + SMALLEST_NORM))
    x, other = u, empty(u.shape, u.dtype)
    square, inner, outer = (empty((min(u.shape),) * 2, u.dtype) for _ in range(3))
    for _ in range(ITERATIONS):
        matmul(x.T, x, square) if tall else matmul(x, x.T, square)
        _polynomial(square, b, c, inner)
        matmul(square, inner, outer)
        _polynomial(outer, a, 1.0, outer)
        matmul(x, outer, other) if tall else matmul(outer, x, other)
        x, other = other, x
    return x


@parallel
def _momentum(grads, m, u, momentum, grad_scale):
    for chunk in prange(chunk_count(len(m), ELEMENTS)):
        part = slice(chunk * ELEMENTS, (chunk + 1) * ELEMENTS)
        _momentum_chunk(grads[part], m[part], u[part], momentum, grad_scale)


@serial
def _momentum_chunk(grads, m, u, momentum, grad_scale):
    real = m.dtype.type
    old, new, grad_scale = real(momentum), real(1.0 - momentum), real(grad_scale)
    for i in range(len(m)):
        g = grads[i] * grad_scale
        m[i] = old * m[i] + new * g
        u[i] = old * m[i] + new * g
        grads[i] = real(0.0)


@serial
def _polynomial(square, constant, factor, out):
    """out = constant I + factor square, each (n, n)."""
    constant, factor = square.dtype.type(constant), square.dtype.type(factor)
    for i in range(len(square)):
        for j in range(len(square)):
            out[i, j] = factor * square[i, j]
        out[i, i] += constant


@serial
def _step(params, step, shrink, length):
    shrink, length = params.dtype.type(shrink), params.dtype.type(length)
    for i in range(len(params)):
        params[i] = shrink * params[i] - length * step[i]
