"""Muon. See `npllm.reference.muon` for the mathematics.

Nearly all the time is in the matrix products, which `gemm` computes. A tall matrix is
multiplied from the right, so that nothing is transposed.
"""

import numpy as np
from numba import prange

from npllm.kernels.chunks import CHUNK_ROWS, chunk_bounds, chunk_count
from npllm.kernels.gemm import matmul
from npllm.kernels.gradient_norm import gradient_norm
from npllm.kernels.jit import parallel, serial
from npllm.reference.muon import COEFFICIENTS, ITERATIONS, SMALLEST_NORM


def muon_update(params, grads, m, widths, *, lr, momentum, weight_decay, grad_scale=1.0, empty=np.empty):
    """Update matrices that stand side by side, in place.

    params, grads, m: (in, sum of widths), of one dtype. widths: those of the matrices;
    each has a step of its own. grad_scale: the clipping factor, multiplied into the
    gradients. Sets grads to zero.
    """
    start, n_in = 0, len(params)
    for width in widths:
        columns = slice(start, start + width)
        u = empty((n_in, width), params.dtype)
        _momentum(grads[:, columns], m[:, columns], u, float(momentum), float(grad_scale))
        length = lr * max(1.0, width / n_in) ** 0.5
        _step(params[:, columns], orthogonal(u, empty=empty), 1.0 - lr * weight_decay, float(length))
        start += width


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
    """Update m; u is the momentum one gradient ahead; grads are set to zero."""
    for c in prange(chunk_count(len(m), CHUNK_ROWS)):
        start, stop = chunk_bounds(c, CHUNK_ROWS, len(m))
        _momentum_rows(grads[start:stop], m[start:stop], u[start:stop], momentum, grad_scale)


@serial
def _momentum_rows(grads, m, u, momentum, grad_scale):
    real = m.dtype.type
    old, new, grad_scale = real(momentum), real(1.0 - momentum), real(grad_scale)
    for i in range(len(m)):
        for j in range(m.shape[1]):
            g = grads[i, j] * grad_scale
            m[i, j] = old * m[i, j] + new * g
            u[i, j] = old * m[i, j] + new * g
            grads[i, j] = real(0.0)


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
        for j in range(params.shape[1]):
            params[i, j] = shrink * params[i, j] - length * step[i, j]
