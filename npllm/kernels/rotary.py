"""Rotary positions. See `npllm.reference.rotary` for the mathematics.

`rotary_tables` is the function of that file.
"""

import numpy as np
from numba import prange

from npllm.kernels.chunks import CHUNK_ROWS, chunk_bounds, chunk_count
from npllm.kernels.jit import parallel, serial
from npllm.reference.rotary import rotary_tables

__all__ = ["rotary_backward", "rotary_forward", "rotary_tables"]


def rotary_forward(qkv, cos, sin, n_head, n_kv_head, *, empty=np.empty):
    """Rotate the queries and keys of a packed array.

    qkv: (B, T, (H+2K)·D), the heads of q, then k, then v. cos, sin: (T, D/2), the rows
    of the T positions. Returns an array of the shape and dtype of qkv.
    """
    return _rotated(qkv, cos, sin, n_head, n_kv_head, 1.0, empty)


def rotary_backward(dy, cos, sin, n_head, n_kv_head, *, empty=np.empty):
    """Return dqkv for the gradient dy of `rotary_forward`: the opposite rotation.

    dy, dqkv: (B, T, (H+2K)·D).
    """
    return _rotated(dy, cos, sin, n_head, n_kv_head, -1.0, empty)


def _rotated(qkv, cos, sin, n_head, n_kv_head, direction, empty):
    B, T, _ = qkv.shape
    y = empty(qkv.shape, qkv.dtype)
    heads, y_heads = (array.reshape(B * T, n_head + 2 * n_kv_head, -1) for array in (qkv, y))
    n_turned = n_head + n_kv_head
    if B * T <= CHUNK_ROWS:
        _rows(0, B * T, heads, cos, sin, n_turned, direction, y_heads)
    else:
        _all_rows(heads, cos, sin, n_turned, direction, y_heads)
    return y


@parallel
def _all_rows(x, cos, sin, n_turned, direction, y):
    for c in prange(chunk_count(len(x), CHUNK_ROWS)):
        start, stop = chunk_bounds(c, CHUNK_ROWS, len(x))
        _rows(start, stop, x, cos, sin, n_turned, direction, y)


@serial
def _rows(start, stop, x, cos, sin, n_turned, direction, y):
    """Rotate the first n_turned heads of the rows from start to stop; copy the others.

    x, y: (N, H+2K, D).
    """
    T, half = cos.shape
    direction = x.dtype.type(direction)
    for n in range(start, stop):
        cos_t, sin_t = cos[n % T], sin[n % T]
        for h in range(n_turned):
            x1, x2, y1, y2 = x[n, h, :half], x[n, h, half:], y[n, h, :half], y[n, h, half:]
            for i in range(half):
                sine = direction * sin_t[i]
                y1[i] = x1[i] * cos_t[i] - x2[i] * sine
                y2[i] = x1[i] * sine + x2[i] * cos_t[i]
        for h in range(n_turned, x.shape[1]):
            for d in range(x.shape[2]):
                y[n, h, d] = x[n, h, d]
