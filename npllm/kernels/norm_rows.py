"""The kernels that LayerNorm, RMSNorm and add_norm share.

RMSNorm is LayerNorm with a mean of zero, forward and backward. A norm without a bias is
a norm with a bias of zero. One kernel therefore serves all: `centred` tells which norm
it is, and zeros replace missing arrays. Only `branch` (forward) and `dtotal`
(backward), which are as large as x, may be None in a kernel. Numba then compiles the
kernel once more, without the lines that use them.

A row is read from memory once; later passes over it hit the cache.
"""

import numpy as np
from numba import prange

from npllm.kernels.chunks import CHUNK_ROWS, add_in_order, chunk_bounds, chunk_count, zeros
from npllm.kernels.jit import inlined, parallel, part, serial, summing


def norm_forward(x, branch, weight, bias, eps, centred, empty):
    """Normalise the rows of x + branch, or of x where branch is None.

    x, branch: (N, C). weight: (C,). bias: (C,) or None. centred: subtract the mean.

    Returns total, (N, C), which is x + branch, or x itself where branch is None; y,
    (N, C); and the statistics mean and rstd, (N,) each.
    """
    total = x if branch is None else empty(x.shape, x.dtype)
    y, mean, rstd = empty(x.shape, x.dtype), empty(x.shape[:1], x.dtype), empty(x.shape[:1], x.dtype)
    bias = zeros(weight.shape, x.dtype, empty) if bias is None else bias
    if len(x) <= CHUNK_ROWS:
        _forward_rows(0, len(x), x, branch, weight, bias, eps, centred, total, y, mean, rstd)
    else:
        _forward(x, branch, weight, bias, eps, centred, total, y, mean, rstd)
    return total, y, mean, rstd


def norm_backward(dtotal, dy, x, mean, rstd, weight, dweight, dbias, empty):
    """Return dx, (N, C), the gradient of `norm_forward`.

    dtotal: (N, C), added to dx, or None. dy: (N, C). x: (N, C), the rows that were
    normalised. mean: (N,), or None where it was not subtracted. rstd: (N,). Adds to
    dweight and dbias, (C,) each; dbias may be None.
    """
    (N, C), dtype = dy.shape, dy.dtype
    dx, parts = empty((N, C), dtype), empty((2, -(-N // CHUNK_ROWS), C), dtype)
    centred = mean is not None
    mean = mean if centred else zeros((N,), dtype, empty)
    dbias = zeros((C,), dtype, empty) if dbias is None else dbias
    _backward(dtotal, dy, x, mean, rstd, weight, centred, dx, parts, dweight, dbias)
    return dx


@parallel
def _forward(x, branch, weight, bias, eps, centred, total, y, mean, rstd):
    for c in prange(chunk_count(len(x), CHUNK_ROWS)):
        start, stop = chunk_bounds(c, CHUNK_ROWS, len(x))
        _forward_rows(start, stop, x, branch, weight, bias, eps, centred, total, y, mean, rstd)


@serial
def _forward_rows(start, stop, x, branch, weight, bias, eps, centred, total, y, mean, rstd):
    real = x.dtype.type
    per_column = real(1.0 / x.shape[1])
    for n in range(start, stop):
        row, y_row = total[n], y[n]
        if branch is not None:
            _add(x[n], branch[n], row)
        mean_n = _sum(row) * per_column if centred else real(0.0)
        rstd_n = real(1.0) / np.sqrt(sum_of_squares(row, mean_n) * per_column + real(eps))
        for j in range(len(row)):
            y_row[j] = (row[j] - mean_n) * rstd_n * weight[j] + bias[j]
        mean[n], rstd[n] = mean_n, rstd_n


@inlined
def _add(a, b, out):
    for j in range(len(out)):
        out[j] = a[j] + b[j]


@summing
def _sum(row):
    total = row.dtype.type(0.0)
    for j in range(len(row)):
        total += row[j]
    return total


@summing
def sum_of_squares(row, mean):
    total = row.dtype.type(0.0)
    for j in range(len(row)):
        total += (row[j] - mean) * (row[j] - mean)
    return total


@parallel
def _backward(dtotal, dy, x, mean, rstd, weight, centred, dx, parts, dweight, dbias):
    """parts: (2, chunks, C), scratch for what each chunk adds to dweight and dbias."""
    for c in prange(parts.shape[1]):
        start, stop = chunk_bounds(c, CHUNK_ROWS, len(x))
        _backward_rows(start, stop, dtotal, dy, x, mean, rstd, weight, centred, dx, parts[0, c], parts[1, c])
    add_in_order(parts[0], dweight)
    add_in_order(parts[1], dbias)


@part
def _backward_rows(start, stop, dtotal, dy, x, mean, rstd, weight, centred, dx, dweight_part, dbias_part):
    real = x.dtype.type
    per_column = real(1.0 / x.shape[1])
    dweight_part[:] = real(0.0)
    dbias_part[:] = real(0.0)
    for n in range(start, stop):
        mean_n, rstd_n, dx_row = mean[n], rstd[n], dx[n]
        ones, x_hat = _row_sums(dy[n], x[n], mean_n, rstd_n, weight, dweight_part, dbias_part)
        along_ones = ones * per_column if centred else real(0.0)
        along_x_hat = x_hat * per_column
        for j in range(len(dx_row)):
            g = dy[n, j] * weight[j]
            dx_j = rstd_n * (g - along_ones - (x[n, j] - mean_n) * rstd_n * along_x_hat)
            dx_row[j] = dx_j if dtotal is None else dx_j + dtotal[n, j]


@summing
def _row_sums(dy, x, mean, rstd, weight, dweight_part, dbias_part):
    """Return the sums of g and of g x_hat over one row, where g = dy weight.

    Also adds the row to dweight_part and dbias_part, (C,) each.
    """
    sum_of_g = sum_of_g_x_hat = x.dtype.type(0.0)
    for j in range(len(x)):
        x_hat = (x[j] - mean) * rstd
        g = dy[j] * weight[j]
        sum_of_g += g
        sum_of_g_x_hat += g * x_hat
        dweight_part[j] += dy[j] * x_hat
        dbias_part[j] += dy[j]
    return sum_of_g, sum_of_g_x_hat
