"""Causal multi-head attention in blocks.

See `npllm.reference.attention` for the mathematics. The whole (T, T) matrix of scores
is never in memory: only the scores of a block of L queries with all their keys, (T, L),
are. The softmax needs the largest score and the sum of the exponentials of each query.
The forward keeps their combination, lse, the log of the softmax's denominator. The
backward computes the probabilities again from it:

    P[i,j] = exp(scale q[i] · k[j] - lse[i])

For one block of queries i and all keys j that it may see (A = P without dropout):

    forward    S = k q        P = softmax S    A = dropout P          y = v A
    backward   P as above     dA = v dy        dP = dropout of dA     dS = from P and dP
               dv += A dy     dk += dS q       dq = k dS

dS is the softmax's backward. Keys after the block's last query are skipped, which saves
nearly half of the work. Keys before the start of the first query's document are skipped
too. `gemm.micro_kernel` computes all products, in the layouts of `attention_tiles`.

A worker takes every `workers`-th head of keys, with all its queries. Workers share no
results, so the results do not depend on their number.

Source: Dao et al., "FlashAttention", 2022.
"""

from math import sqrt
from typing import NamedTuple

import numpy as np
from numba import get_num_threads, prange

from npllm.kernels.attention_tiles import (
    GROUP,
    add_scores_times_rows,
    divide_columns,
    fill_dropout_factors,
    fill_zeros,
    load_lse,
    mask_unseen,
    multiply,
    pack_head,
    pack_query_columns,
    pack_query_rows,
    pack_transposed,
    probabilities,
    query_block,
    rows_times_columns,
    softmax_backward,
    softmax_numerators,
    store_columns,
    store_lse,
    store_rows,
    transposed_times_scores,
)
from npllm.kernels.dropout import NO_DROPOUT, mask_of
from npllm.kernels.gemm.tile import tile_columns, whole_tiles
from npllm.kernels.jit import parallel, part


class AttentionCache(NamedTuple):
    qkv: np.ndarray  # (B, T, (H+2K)·D)
    lse: np.ndarray  # (B, H, T)
    starts: np.ndarray  # (B, T), or (B, 0): all 0


class ForwardScratch(NamedTuple):
    """The memory of one worker, or, with a leading axis, of all workers.

    T and D are rounded up to whole tiles; D' is the width of a head.
    """

    k_rows: np.ndarray  # (T, D')
    v_panels: np.ndarray  # (D, T)
    q_columns: np.ndarray  # (D', L)
    weights: np.ndarray  # (T, L): scores, then the softmax's numerators, with dropout
    maximum: np.ndarray  # (G, L): the largest score of each query
    total: np.ndarray  # (G, L): the sum of its numerators
    y_columns: np.ndarray  # (D, L)
    factors: np.ndarray  # (T, L), of dropout; without it (0, L)
    words: np.ndarray  # (T+7,): random words; without dropout (0,)


class BackwardScratch(NamedTuple):
    """The memory of one worker in the backward, as `ForwardScratch`.

    P = ceil(D' / L): a head has P pieces of L columns.
    """

    k_rows: np.ndarray  # (T, D')
    v_rows: np.ndarray  # (T, D')
    k_panels: np.ndarray  # (D, T)
    q_columns: np.ndarray  # (D', L)
    q_rows: np.ndarray  # (P, L, L)
    dy_columns: np.ndarray  # (D', L)
    dy_rows: np.ndarray  # (P, L, L)
    lse: np.ndarray  # (G, L)
    weights: np.ndarray  # (T, L): scores, then probabilities, then these with dropout
    dscores: np.ndarray  # (T, L): dweights, then dprobabilities, then dscores
    delta: np.ndarray  # (G, L): the sum over the keys of probabilities · dprobabilities
    dq_columns: np.ndarray  # (D, L)
    dk: np.ndarray  # (P, T, L)
    dv: np.ndarray  # (P, T, L)
    factors: np.ndarray  # (T, L), of dropout; without it (0, L)
    words: np.ndarray  # (T+7,): random words; without dropout (0,)


def forward_scratch(workers, T, D, dropout, dtype, empty):
    """Return the ForwardScratch of all workers, for heads of width D."""
    L, rows, columns = tile_columns(dtype.itemsize), whole_tiles(T), whole_tiles(D)
    shapes = (rows, D), (columns, T), (D, L), (rows, L), (GROUP, L), (GROUP, L), (columns, L)
    return ForwardScratch(*_arrays(workers, shapes, dtype, empty), *_for_dropout(workers, T, dropout, dtype, empty))


def backward_scratch(workers, T, D, dropout, dtype, empty):
    """Return the BackwardScratch of all workers, for heads of width D."""
    L, rows, columns = tile_columns(dtype.itemsize), whole_tiles(T), whole_tiles(D)
    P = -(-D // L)
    inputs = (rows, D), (rows, D), (columns, T), (D, L), (P, L, L), (D, L), (P, L, L), (GROUP, L)
    results = (rows, L), (rows, L), (GROUP, L), (columns, L), (P, rows, L), (P, rows, L)
    return BackwardScratch(
        *_arrays(workers, inputs + results, dtype, empty), *_for_dropout(workers, T, dropout, dtype, empty)
    )


def _arrays(workers, shapes, dtype, empty):
    return [empty((workers, *shape), dtype) for shape in shapes]


def _for_dropout(workers, T, dropout, dtype, empty):
    """Return the arrays factors and words, which are empty without dropout."""
    rows, n_words = (whole_tiles(T), T + 7) if dropout else (0, 0)
    return empty((workers, rows, tile_columns(dtype.itemsize)), dtype), empty((workers, n_words), np.uint32)


def attention_forward(qkv, n_head, n_kv_head, *, rate=0.0, key=None, starts=None, empty=np.empty):
    """Attention within each sequence, or within each document of it.

    qkv: (B, T, (H+2K)·D), the heads of q, then k, then v; H is a multiple of K. rate:
    dropout of the weights. key: a DropoutKey, needed where rate > 0; the weight
    (b,h,i,j) is element ((b·H + h)·T + i)·T + j of its random stream. starts: (B, T)
    int32, the first position that each query may see, which is the start of its
    document in the row: 0 <= starts[b,t] <= t; None = 0.

    Returns y, (B, T, H·D), and the cache.
    """
    (B, T, _), dtype, H = qkv.shape, qkv.dtype, n_head
    heads = qkv.reshape(B, T, H + 2 * n_kv_head, -1)
    D = heads.shape[-1]
    y, lse = empty((B, T, H * D), dtype), empty((B, H, T), dtype)
    mask = mask_of(rate, key) if rate > 0 else NO_DROPOUT
    starts = empty((B, 0), np.int32) if starts is None else starts
    scratch = forward_scratch(min(get_num_threads(), B * n_kv_head), T, D, rate > 0, dtype, empty)
    _forward(heads, starts, y.reshape(B, T, H, D), lse, mask, scratch)
    return y, AttentionCache(qkv, lse, starts)


def attention_backward(dy, cache, n_head, n_kv_head, *, rate=0.0, key=None, empty=np.empty):
    """Return dqkv, (B, T, (H+2K)·D), for the gradient dy, (B, T, H·D)."""
    (B, T, _), dtype, H = dy.shape, dy.dtype, n_head
    dqkv = empty(cache.qkv.shape, dtype)
    heads, dheads = (array.reshape(B, T, H + 2 * n_kv_head, -1) for array in (cache.qkv, dqkv))
    D = heads.shape[-1]
    mask = mask_of(rate, key) if rate > 0 else NO_DROPOUT
    scratch = backward_scratch(min(get_num_threads(), B * n_kv_head), T, D, rate > 0, dtype, empty)
    _backward(heads, cache.starts, cache.lse, dy.reshape(B, T, H, D), dheads, mask, scratch)
    return dqkv


class ForwardArrays(NamedTuple):
    """The arrays of one sequence that the forward reads and writes."""

    heads: np.ndarray  # (T, H+2K, D): q, k, v
    starts: np.ndarray  # (T,) or (0,)
    y: np.ndarray  # (T, H, D)
    lse: np.ndarray  # (H, T)


class BackwardArrays(NamedTuple):
    """The arrays of one sequence that the backward reads and writes."""

    heads: np.ndarray  # (T, H+2K, D): q, k, v
    starts: np.ndarray  # (T,) or (0,)
    lse: np.ndarray  # (H, T)
    dy: np.ndarray  # (T, H, D)
    dheads: np.ndarray  # (T, H+2K, D): dq, dk, dv


@parallel
def _forward(heads, starts, y, lse, mask, scratch):
    """heads: (B, T, H+2K, D); starts: (B, T) or (B, 0); y: (B, T, H, D); lse:
    (B, H, T).
    """
    K = (heads.shape[2] - lse.shape[1]) // 2
    units, workers = len(heads) * K, len(scratch.weights)
    for w in prange(workers):
        own = _own_forward_scratch(scratch, np.int64(w))
        for unit in range(np.int64(w), units, workers):
            b, kv = unit // K, unit % K
            _forward_kv_head(ForwardArrays(heads[b], starts[b], y[b], lse[b]), b, kv, mask, own)


@part
def _own_forward_scratch(s, w):
    return ForwardScratch(
        s.k_rows[w], s.v_panels[w], s.q_columns[w], s.weights[w], s.maximum[w], s.total[w], s.y_columns[w],
        s.factors[w], s.words[w],
    )  # fmt: skip


@part
def _forward_kv_head(arrays, b, kv, mask, scratch):
    """Compute all queries of sequence b that share the head kv of keys and values."""
    heads, (H, T), L = arrays.heads, arrays.lse.shape, scratch.weights.shape[1]
    K = (heads.shape[1] - H) // 2
    group = H // K
    pack_head(heads, H + kv, scratch.k_rows)
    pack_transposed(heads, H + K + kv, scratch.v_panels)
    for h in range(kv * group, (kv + 1) * group):
        for first_query in range(0, T, L):
            block = query_block(arrays.starts, arrays.lse, b, h, first_query, L)
            _forward_block(arrays, block, mask, scratch)


@part
def _forward_block(arrays, block, mask, scratch):
    """Compute y and lse of a block of queries."""
    scale, keys = _scale(arrays.heads), slice(block.first_key, block.end)
    weights = scratch.weights[keys]
    pack_query_columns(arrays.heads, block, scratch.q_columns)
    whole = scratch.weights[block.first_key : whole_tiles(block.end)]
    rows_times_columns(scratch.k_rows[block.first_key :], scratch.q_columns, whole)
    mask_unseen(weights, arrays.starts, block)
    softmax_numerators(weights, scale, scratch.maximum, scratch.total)
    store_lse(scratch.maximum, scratch.total, scale, block, arrays.lse[block.head])
    if len(scratch.words) > 0:
        fill_dropout_factors(scratch.factors[: block.end], block, mask, scratch.words)
        multiply(weights, scratch.factors[keys])
    transposed_times_scores(scratch.v_panels, block.first_key, weights, scratch.y_columns)
    divide_columns(scratch.y_columns, scratch.total)
    store_columns(scratch.y_columns, arrays.y, block)


@part
def _scale(heads):
    """Return 1 / sqrt(D), in the dtype of the heads, (·, ·, D)."""
    return heads.dtype.type(1.0 / sqrt(heads.shape[2]))


@parallel
def _backward(heads, starts, lse, dy, dheads, mask, scratch):
    """heads, dheads: (B, T, H+2K, D); starts: (B, T) or (B, 0); lse: (B, H, T); dy:
    (B, T, H, D).
    """
    K = (heads.shape[2] - lse.shape[1]) // 2
    units, workers = len(heads) * K, len(scratch.weights)
    for w in prange(workers):
        own = _own_backward_scratch(scratch, np.int64(w))
        for unit in range(np.int64(w), units, workers):
            b, kv = unit // K, unit % K
            _backward_kv_head(BackwardArrays(heads[b], starts[b], lse[b], dy[b], dheads[b]), b, kv, mask, own)


@part
def _own_backward_scratch(s, w):
    return BackwardScratch(
        s.k_rows[w], s.v_rows[w], s.k_panels[w], s.q_columns[w], s.q_rows[w], s.dy_columns[w], s.dy_rows[w], s.lse[w],
        s.weights[w], s.dscores[w], s.delta[w], s.dq_columns[w], s.dk[w], s.dv[w], s.factors[w], s.words[w],
    )  # fmt: skip


@part
def _backward_kv_head(arrays, b, kv, mask, scratch):
    """Compute dk and dv of the head kv of sequence b, and dq of its queries."""
    heads, (H, T), L = arrays.heads, arrays.lse.shape, scratch.weights.shape[1]
    K = (heads.shape[1] - H) // 2
    group, k, v = H // K, H + kv, H + K + kv
    pack_head(heads, k, scratch.k_rows)
    pack_head(heads, v, scratch.v_rows)
    pack_transposed(heads, k, scratch.k_panels)
    fill_zeros(scratch.dk)
    fill_zeros(scratch.dv)
    for h in range(kv * group, (kv + 1) * group):
        for first_query in range(0, T, L):
            block = query_block(arrays.starts, arrays.lse, b, h, first_query, L)
            _weights_and_dscores(arrays, block, mask, scratch)
            _add_to_dk_and_dv(arrays, block, scratch)
            _store_dq(block, scratch, arrays.dheads)
    store_rows(scratch.dk, arrays.dheads, k)
    store_rows(scratch.dv, arrays.dheads, v)


@part
def _weights_and_dscores(arrays, block, mask, scratch):
    """Fill scratch.weights and scratch.dscores of a block, from its first key on.

    The rows after the block's last key are zero, up to whole tiles.
    """
    scale, keys = _scale(arrays.heads), slice(block.first_key, whole_tiles(block.end))
    weights, dscores = scratch.weights[keys], scratch.dscores[keys]
    pack_query_columns(arrays.heads, block, scratch.q_columns)
    pack_query_columns(arrays.dy, block, scratch.dy_columns)
    rows_times_columns(scratch.k_rows[block.first_key :], scratch.q_columns, weights)
    rows_times_columns(scratch.v_rows[block.first_key :], scratch.dy_columns, dscores)
    load_lse(arrays.lse[block.head], block, scratch.lse)
    mask_unseen(weights, arrays.starts, block)
    probabilities(weights, scale, scratch.lse)
    if len(scratch.words) > 0:
        fill_dropout_factors(scratch.factors[: whole_tiles(block.end)], block, mask, scratch.words)
        multiply(dscores, scratch.factors[keys])
    softmax_backward(weights, scale, dscores, scratch.delta)
    if len(scratch.words) > 0:
        multiply(weights, scratch.factors[keys])
    fill_zeros(scratch.weights[block.end : whole_tiles(block.end)])
    fill_zeros(scratch.dscores[block.end : whole_tiles(block.end)])


@part
def _add_to_dk_and_dv(arrays, block, scratch):
    """Add the block's queries to the gradients of their keys and values."""
    keys = slice(block.first_key, whole_tiles(block.end))
    pack_query_rows(arrays.heads, block, scratch.q_rows)
    pack_query_rows(arrays.dy, block, scratch.dy_rows)
    add_scores_times_rows(scratch.weights[keys], scratch.dy_rows, block, scratch.dv)
    add_scores_times_rows(scratch.dscores[keys], scratch.q_rows, block, scratch.dk)


@part
def _store_dq(block, scratch, dheads):
    dscores = scratch.dscores[block.first_key : block.end]
    transposed_times_scores(scratch.k_panels, block.first_key, dscores, scratch.dq_columns)
    store_columns(scratch.dq_columns, dheads, block)
