"""The rows of LayerNorm and RMSNorm, of one array or of the sum of two: what the kernels of three files share.

The two norms differ by the mean, and RMSNorm is what is left of either direction when the mean is taken as zero. So
`mean` is None for RMSNorm, and Numba compiles each use (a branch or none, a mean or none, a bias or none) without the
lines that it does not need.

A row comes from memory once; the later passes over it hit the cache.

TODO numbers
"""

import numpy as np
from numba import prange

from npllm.kernels.chunks import ROWS, add_in_order, chunk_bounds, chunk_count
from npllm.kernels.jit import inlined, parallel, serial, summing


def norm_forward(x, branch, weight, bias, eps, total, y, mean, rstd):
    """total = x + branch and y = norm(total), row by row, with the statistics; all results are arrays to fill.

    x, branch, total, y: (N, C). mean, rstd: (N,). branch: None, and then total is x. mean: None for RMSNorm.
    """
    if len(x) <= ROWS:
        _forward_rows(0, len(x), x, branch, weight, bias, eps, total, y, mean, rstd)
    else:
        _forward(x, branch, weight, bias, eps, total, y, mean, rstd)


def norm_backward(dtotal, dy, x, mean, rstd, weight, dweight, dbias, empty):
    """Adds to dweight and dbias and returns dx, (N, C), to which dtotal, (N, C), is added unless it is None."""
    N, C = dy.shape
    dx = empty((N, C), dy.dtype)
    n_chunks = -(-N // ROWS)
    dweight_parts = empty((n_chunks, C), dy.dtype)
    dbias_parts = None if dbias is None else empty((n_chunks, C), dy.dtype)
    _backward(dtotal, dy, x, mean, rstd, weight, dx, dweight_parts, dbias_parts, dweight, dbias)
    return dx


@parallel
def _forward(x, branch, weight, bias, eps, total, y, mean, rstd):
    for c in prange(chunk_count(len(x), ROWS)):
        start, stop = chunk_bounds(c, ROWS, len(x))
        _forward_rows(start, stop, x, branch, weight, bias, eps, total, y, mean, rstd)


@serial
def _forward_rows(start, stop, x, branch, weight, bias, eps, total, y, mean, rstd):
    real = x.dtype.type
    per_column = real(1.0 / x.shape[1])
    for n in range(start, stop):
        row = x[n]
        if branch is not None:
            row = total[n]
            _add(x[n], branch[n], row)
        mean_n = real(0.0)
        if mean is not None:
            mean_n = mean[n] = _sum(row) * per_column
        rstd_n = rstd[n] = real(1.0) / np.sqrt(_sum_of_squares(row, mean_n) * per_column + real(eps))
        y_row = y[n]
        for j in range(len(row)):
            scaled = (row[j] - mean_n) * rstd_n * weight[j]
            y_row[j] = scaled if bias is None else scaled + bias[j]


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
def _sum_of_squares(row, mean):
    total = row.dtype.type(0.0)
    for j in range(len(row)):
        total += (row[j] - mean) * (row[j] - mean)
    return total


@parallel
def _backward(dtotal, dy, x, mean, rstd, weight, dx, dweight_parts, dbias_parts, dweight, dbias):
    for c in prange(len(dweight_parts)):
        start, stop = chunk_bounds(c, ROWS, len(x))
        dbias_part = None if dbias_parts is None else dbias_parts[c]
        _backward_rows(start, stop, dtotal, dy, x, mean, rstd, weight, dx, dweight_parts[c], dbias_part)
    add_in_order(dweight_parts, dweight)
    if dbias is not None:
        add_in_order(dbias_parts, dbias)


@serial
def _backward_rows(start, stop, dtotal, dy, x, mean, rstd, weight, dx, dweight_part, dbias_part):
    real = x.dtype.type
    per_column = real(1.0 / x.shape[1])
    dweight_part[:] = real(0.0)
    if dbias_part is not None:
        dbias_part[:] = real(0.0)
    for n in range(start, stop):
        mean_n, rstd_n = real(0.0) if mean is None else mean[n], rstd[n]
        ones, x_hat = _row_sums(dy[n], x[n], mean_n, rstd_n, weight, dweight_part, dbias_part)
        along_ones = real(0.0) if mean is None else ones * per_column
        along_x_hat = x_hat * per_column
        dx_row = dx[n]
        for j in range(len(dx_row)):
            g = dy[n, j] * weight[j]
            dx_j = rstd_n * (g - along_ones - (x[n, j] - mean_n) * rstd_n * along_x_hat)
            dx_row[j] = dx_j if dtotal is None else dx_j + dtotal[n, j]


@summing
def _row_sums(dy, x, mean, rstd, weight, dweight_part, dbias_part):
    """The row's sums of g and g x_hat. Adds its part of dweight and dbias on the way."""
    sum_of_g = sum_of_g_x_hat = x.dtype.type(0.0)
    for j in range(len(x)):
        x_hat = (x[j] - mean) * rstd
        g = dy[j] * weight[j]
        sum_of_g += g
        sum_of_g_x_hat += g * x_hat
        dweight_part[j] += dy[j] * x_hat
        if dbias_part is not None:
            dbias_part[j] += dy[j]
    return sum_of_g, sum_of_g_x_hat
