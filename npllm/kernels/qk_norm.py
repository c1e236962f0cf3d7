"""RMSNorm of every query and key head: mathematics in `npllm.reference.qk_norm`.

The loops over a head, which is a row of width D, are vectorised. The heads of one
position follow each other, so a row of qkv is read and written once.
"""

import numpy as np
from numba import prange

from npllm.kernels.chunks import CHUNK_ROWS, add_in_order, chunk_bounds, chunk_count
from npllm.kernels.jit import parallel, part, serial, summing
from npllm.kernels.norm_rows import sum_of_squares
from npllm.reference.qk_norm import QKNormCache


def qk_norm_forward(qkv, q_weight, k_weight, n_head, n_kv_head, eps=1e-5, *, empty=np.empty, empty_y=None):
    """Normalise the queries and keys of a packed array, head by head.

    qkv: (B, T, (H+2K)·D), the heads of q, then k, then v. q_weight, k_weight: (D,).
    empty_y: allocates y, which the backward does not need; None = `empty`.

    Returns an array of the shape and dtype of qkv, and the cache for the backward.
    """
    B, T, _ = qkv.shape
    y, rstd = (empty_y or empty)(qkv.shape, qkv.dtype), empty((B, T, n_head + n_kv_head), qkv.dtype)
    heads, y_heads = (array.reshape(B * T, n_head + 2 * n_kv_head, -1) for array in (qkv, y))
    arguments = heads, q_weight, k_weight, n_head, eps, y_heads, rstd.reshape(B * T, -1)
    if B * T <= CHUNK_ROWS:
        _forward_rows(0, B * T, *arguments)
    else:
        _forward(*arguments)
    return y, QKNormCache(qkv, rstd)


def qk_norm_backward(dy, cache, q_weight, k_weight, dq_weight, dk_weight, *, empty=np.empty):
    """Return dqkv, (B, T, (H+2K)·D), the gradient of `qk_norm_forward`.

    dy: (B, T, (H+2K)·D). Adds to dq_weight and dk_weight, (D,) each.
    """
    (B, T, _), D = dy.shape, len(q_weight)
    dqkv, parts = empty(dy.shape, dy.dtype), empty((2, -(-B * T // CHUNK_ROWS), D), dy.dtype)
    dy_heads, heads, dheads = (array.reshape(B * T, -1, D) for array in (dy, cache.qkv, dqkv))
    rstd = cache.rstd.reshape(B * T, -1)
    _backward(dy_heads, heads, rstd, q_weight, k_weight, dheads, parts, dq_weight, dk_weight)
    return dqkv


@parallel
def _forward(x, q_weight, k_weight, n_head, eps, y, rstd):
    for c in prange(chunk_count(len(x), CHUNK_ROWS)):
        start, stop = chunk_bounds(c, CHUNK_ROWS, len(x))
        _forward_rows(start, stop, x, q_weight, k_weight, n_head, eps, y, rstd)


@serial
def _forward_rows(start, stop, x, q_weight, k_weight, n_head, eps, y, rstd):
    """x, y: (N, H+2K, D). rstd: (N, H+K)."""
    n_normed = rstd.shape[1]
    for n in range(start, stop):
        _normalise_heads(0, n_head, x[n], q_weight, eps, y[n], rstd[n])
        _normalise_heads(n_head, n_normed, x[n], k_weight, eps, y[n], rstd[n])
        _copy_heads(n_normed, x[n], y[n])


@part
def _normalise_heads(first, end, x, weight, eps, y, rstd):
    """Normalise the heads from first to end of one row.

    x, y: (H+2K, D). rstd: (H+K,).
    """
    real = x.dtype.type
    per_element = real(1.0 / x.shape[1])
    for h in range(first, end):
        head, y_head = x[h], y[h]
        rstd_h = real(1.0) / np.sqrt(sum_of_squares(head, real(0.0)) * per_element + real(eps))
        for d in range(len(head)):
            y_head[d] = head[d] * rstd_h * weight[d]
        rstd[h] = rstd_h


@part
def _copy_heads(first, x, y):
    """Copy the heads from first on, the values, of one row."""
    for h in range(first, len(x)):
        for d in range(x.shape[1]):
            y[h, d] = x[h, d]


@parallel
def _backward(dy, x, rstd, q_weight, k_weight, dx, parts, dq_weight, dk_weight):
    """parts: (2, chunks, D), scratch for what each chunk adds to both weights."""
    for c in prange(parts.shape[1]):
        start, stop = chunk_bounds(c, CHUNK_ROWS, len(x))
        _backward_rows(start, stop, dy, x, rstd, q_weight, k_weight, dx, parts[0, c], parts[1, c])
    add_in_order(parts[0], dq_weight)
    add_in_order(parts[1], dk_weight)


@part
def _backward_rows(start, stop, dy, x, rstd, q_weight, k_weight, dx, dq_weight_part, dk_weight_part):
    """dy, x, dx: (N, H+2K, D). rstd: (N, H+K)."""
    n_normed = rstd.shape[1]
    n_head = 2 * n_normed - x.shape[1]  # H = 2(H+K) - (H+2K)
    dq_weight_part[:] = x.dtype.type(0.0)
    dk_weight_part[:] = x.dtype.type(0.0)
    for n in range(start, stop):
        _heads_backward(0, n_head, dy[n], x[n], rstd[n], q_weight, dx[n], dq_weight_part)
        _heads_backward(n_head, n_normed, dy[n], x[n], rstd[n], k_weight, dx[n], dk_weight_part)
        _copy_heads(n_normed, dy[n], dx[n])


@part
def _heads_backward(first, end, dy, x, rstd, weight, dx, dweight_part):
    """Compute dx for the heads from first to end of one row, (H+2K, D)."""
    per_element = x.dtype.type(1.0 / x.shape[1])
    for h in range(first, end):
        dy_head, head, dx_head, rstd_h = dy[h], x[h], dx[h], rstd[h]
        along_x_hat = _row_sum(dy_head, head, rstd_h, weight, dweight_part) * per_element
        for d in range(len(head)):
            dx_head[d] = rstd_h * (dy_head[d] * weight[d] - head[d] * rstd_h * along_x_hat)


@summing
def _row_sum(dy, x, rstd, weight, dweight_part):
    """Return the sum of g x_hat over one head, where g = dy weight.

    Also adds the head to dweight_part, (D,).
    """
    total = x.dtype.type(0.0)
    for d in range(len(x)):
        dy_x_hat = dy[d] * (x[d] * rstd)
        total += dy_x_hat * weight[d]
        dweight_part[d] += dy_x_hat
    return total
