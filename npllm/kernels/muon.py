"""Muon. See `npllm.reference.muon` for the mathematics.

Nearly all the time is in products of small matrices. To split one of them between the
threads would take longer than to compute it. So a thread takes whole matrices of the
model, and a step of the optimiser is one call of one kernel. A tall matrix is
multiplied from the right, so that nothing is transposed.
"""

import numpy as np
from numba import get_num_threads, prange

from npllm.kernels.gemm.driver import Epilogue, Matrix, Range, multiply_part
from npllm.kernels.gemm.matmul import panels_and_tiles
from npllm.kernels.jit import parallel, part
from npllm.kernels.norm_rows import sum_of_squares
from npllm.reference.muon import COEFFICIENTS, ITERATIONS, SMALLEST_NORM

A, B, C = COEFFICIENTS


def muon_update(params, grads, m, weights, *, lr, momentum, weight_decay, grad_scale=1.0, empty=np.empty):
    """Update weights of linear layers, in place.

    params, grads, m: (n,), flat, of one dtype. weights: where they lie in these arrays,
    a sequence of `LinearWeight`. grad_scale: the clipping factor, multiplied into the
    gradients. Sets the gradients of the weights to zero.
    """
    matrices, rates = [], []
    for start, n_in, widths, lr_scale in weights:
        for place, width in enumerate(widths):
            rate = lr * lr_scale
            matrices.append((start + sum(widths[:place]), sum(widths), n_in, width))
            rates.append((1.0 - rate * weight_decay, rate * max(1.0, width / n_in) ** 0.5))
    pairs, squares = scratch_shapes(weights)
    threads, dtype = pairs[0], params.dtype
    _update(
        params,
        grads,
        m,
        np.array(matrices),
        np.array(rates, dtype),
        dtype.type(momentum),
        dtype.type(1.0 - momentum),
        dtype.type(grad_scale),
        empty(pairs, dtype),
        empty(squares, dtype),
        empty((1, 0), dtype),
        *panels_and_tiles(threads, dtype, dtype),
    )


def scratch_shapes(weights):
    """Return the shapes of two arrays that an update takes: for each thread, two
    matrices and three square ones."""
    sizes = [(n_in, width) for _, n_in, widths, _ in weights for width in widths]
    threads = min(get_num_threads(), len(sizes))
    largest, side = max(n_in * width for n_in, width in sizes), max(map(min, sizes))
    return (threads, 2, largest), (threads, 3, side * side)


@parallel
def _update(params, grads, m, matrices, rates, old, new, grad_scale, pairs, squares, nothing, panels, tiles):
    """matrices: (n, 4), the first element, the step from row to row, in and out of each
    one. rates: (n, 2), the factor of its weight decay and the length of its step.
    Scratch of each thread: pairs, for two matrices; squares, for three square ones;
    panels and tiles, as `gemm` needs them."""
    threads = len(panels)
    for t in prange(threads):
        thread = np.int64(t)
        scratch = squares[thread], nothing, panels[thread], tiles[thread]
        for i in range(thread, len(matrices), threads):
            start, row_step, n_in, width = matrices[i]
            x = pairs[thread, 0, : n_in * width].reshape(n_in, width)
            other = pairs[thread, 1, : n_in * width].reshape(n_in, width)
            _momentum(grads, m, start, row_step, old, new, grad_scale, x)
            x = _orthogonal(x, other, scratch)
            for row in range(n_in):
                for column in range(width):
                    place = start + row * row_step + column
                    params[place] = rates[i, 0] * params[place] - rates[i, 1] * x[row, column]


@part
def _momentum(grads, m, start, row_step, old, new, grad_scale, u):
    """Update m; u is the momentum one gradient ahead; grads are set to zero."""
    zero = u.dtype.type(0.0)
    for row in range(u.shape[0]):
        for column in range(u.shape[1]):
            place = start + row * row_step + column
            g = grads[place] * grad_scale
            m[place] = old * m[place] + new * g
            u[row, column] = old * m[place] + new * g
            grads[place] = zero


@part
def _orthogonal(x, other, scratch):
    """Return about U V^T of x = U S V^T, (in, out): all singular values near 1.

    It is in the memory of x or of `other`; both are overwritten.
    """
    real, zero = x.dtype.type, x.dtype.type(0.0)
    squares, nothing, panels, tile = scratch
    (n_in, width), total = x.shape, 0.0
    for row in range(n_in):
        total += sum_of_squares(x[row], zero)
    x *= real(1.0 / (np.sqrt(total) + SMALLEST_NORM))
    side = min(n_in, width)
    square = squares[0, : side * side].reshape(side, side)
    inner = squares[1, : side * side].reshape(side, side)
    outer = squares[2, : side * side].reshape(side, side)
    for _ in range(ITERATIONS):
        plain, transposed = Matrix(x.reshape(-1), width, 1), Matrix(x.reshape(-1), 1, width)
        if n_in > width:
            _product(transposed, plain, n_in, square, nothing, panels, tile)
        else:
            _product(plain, transposed, width, square, nothing, panels, tile)
        _polynomial(square, real(B), real(C), inner)
        of_square, of_inner = Matrix(square.reshape(-1), side, 1), Matrix(inner.reshape(-1), side, 1)
        _product(of_square, of_inner, side, outer, nothing, panels, tile)
        _polynomial(outer, real(A), real(1.0), outer)
        of_outer = Matrix(outer.reshape(-1), side, 1)
        if n_in > width:
            _product(plain, of_outer, side, other, nothing, panels, tile)
        else:
            _product(of_outer, plain, side, other, nothing, panels, tile)
        x, other = other, x
    return x


@part
def _product(a, b, depth, c, nothing, panels, tile):
    """c = a b"""
    rows, columns = Range(0, c.shape[0]), Range(0, c.shape[1])
    multiply_part(a, b, depth, c, Epilogue(nothing, nothing[0], nothing), rows, columns, panels, tile)


@part
def _polynomial(square, constant, factor, out):
    """out = constant I + factor square, each (n, n)."""
    for i in range(len(square)):
        for j in range(len(square)):
            out[i, j] = factor * square[i, j]
        out[i, i] += constant
