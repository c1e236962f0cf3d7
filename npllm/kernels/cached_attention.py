"""Attention of new positions to cached ones, for generation.

See `npllm.reference.attention` for the mathematics. The kernel takes one query at a
time, because there is usually just one: that of the next token. Its scores are dot
products with keys that are contiguous in the cache. Work that takes less time than
waking the threads is done by the caller's thread.
"""

from math import sqrt

import numpy as np
from numba import prange

from npllm.kernels.jit import parallel, part, serial
from npllm.kernels.row_softmax import row_exponentials, row_maximum
from npllm.kernels.vector_math import dot

SERIAL_PRODUCTS = 1 << 17  # about 50 microseconds


def cached_attention_forward(
    qkv, key_cache, value_cache, first_position, n_head, n_kv_head, *, starts=None, empty=np.empty
):
    """Attention of new positions to themselves and to all earlier, cached positions.

    qkv: (B, T, (H+2K)·D) of the positions first_position ... first_position + T - 1.
    key_cache, value_cache: (B, K, positions, D); the new keys and values are written
    into them. starts: (B,) int32, the first position of each row that is not padding;
    None = 0. A position of padding sees itself only.

    Returns y, (B, T, H·D). There is no backward: the operation serves generation.
    """
    (B, T, _), H = qkv.shape, n_head
    heads = qkv.reshape(B, T, H + 2 * n_kv_head, -1)
    D, end = heads.shape[-1], first_position + T
    y = empty((B, T, H * D), qkv.dtype)
    weights = empty((B, n_kv_head, end), qkv.dtype)
    if starts is None:
        starts = empty((B,), np.int32)
        starts[:] = 0
    kernel = _serial if B * T * H * D * end <= SERIAL_PRODUCTS else _parallel
    kernel(heads, key_cache, value_cache, first_position, starts, 1.0 / sqrt(D), weights, y.reshape(B, T, H, D))
    return y


@serial
def _serial(heads, key_cache, value_cache, first_position, starts, scale, weights, y):
    """Fill y in the caller's thread.

    heads: (B, T, H+2K, D). key_cache, value_cache: (B, K, positions, D). starts: (B,).
    weights: (B, K, end). y: (B, T, H, D).
    """
    B, K, _ = weights.shape
    for b in range(B):
        for kv in range(K):
            keys, values = key_cache[b, kv], value_cache[b, kv]
            _kv_head(heads[b], keys, values, first_position, starts[b], kv, K, scale, weights[b, kv], y[b])


@parallel
def _parallel(heads, key_cache, value_cache, first_position, starts, scale, weights, y):
    """Fill y in all threads; the arrays are those of `_serial`."""
    B, K, _ = weights.shape
    for unit in prange(B * K):
        b, kv = np.int64(unit // K), np.int64(unit % K)
        keys, values = key_cache[b, kv], value_cache[b, kv]
        _kv_head(heads[b], keys, values, first_position, starts[b], kv, K, scale, weights[b, kv], y[b])


@part
def _kv_head(heads, keys, values, first_position, start, kv, K, scale, weights, y):
    """Fill y for the queries that share the head kv, and store the new keys and values.

    heads: (T, H+2K, D). keys, values: (positions, D). weights: (end,), scratch. y:
    (T, H, D).
    """
    T, H, D = y.shape
    group = H // K
    for t in range(T):
        for d in range(D):
            keys[first_position + t, d] = heads[t, H + kv, d]
            values[first_position + t, d] = heads[t, H + K + kv, d]
    for t in range(T):
        position = first_position + t
        seen = slice(min(start, position), position + 1)
        for h in range(kv * group, (kv + 1) * group):
            _attend(heads[t, h], keys[seen], values[seen], scale, weights[seen], y[t, h])


@part
def _attend(query, keys, values, scale, weights, y):
    """Fill y for one query.

    query, y: (D,). keys, values: (n, D). weights: (n,), scratch.
    """
    real = query.dtype.type
    for j in range(len(weights)):
        weights[j] = dot(query, keys[j]) * real(scale)
    factor = real(1.0) / row_exponentials(weights, row_maximum(weights))
    y[:] = real(0.0)
    for j in range(len(weights)):
        value, weight = values[j], weights[j] * factor
        for d in range(len(y)):
            y[d] += weight * value[d]
