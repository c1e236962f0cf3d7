r"""Causal multi-head attention with grouped key/value heads.

Each position has a query, a key and a value. Its result is the mean of the values of
itself and all positions before it, weighted by how well their keys match its query.

Forward, for one head and the query position i, over the keys $j \le i$:

$$
S_{i,j} = q_i \cdot k_j / \sqrt{D}                % scores
P_{i,j} = \exp S_{i,j} / \sum_l \exp S_{i,l}      % softmax over j; 0 for $j > i$
A = dropout(P)                                    % the weights that are used
y_i = \sum_j A_{i,j} v_j
$$

The scale of the scores keeps their variance at 1 for q and k of unit variance.

In a row of several documents a query sees only its own document, which starts at
$start_i$: $P_{i,j} = 0$ for $j < start_i$ too. A probability of zero has no gradient,
so the backward is the same.

Grouped heads: H query heads share $K \le H$ key/value heads, $G = H / K$ to each. So
the gradients of k and v are sums over G.

Backward, from the end:

$$
dA_{i,j} = dy_i \cdot v_j
dv_j = \sum_i A_{i,j} dy_i
dP = dropout_backward(dA)
dS_{i,j} = P_{i,j} (dP_{i,j} - \sum_l P_{i,l} dP_{i,l})
dq_i = \sum_j dS_{i,j} k_j / \sqrt{D}
dk_j = \sum_i dS_{i,j} q_i / \sqrt{D}
$$

dv uses A, the weights after dropout, because the forward multiplies v by these. The
line of dS is the softmax: $\partial P_l / \partial S_j = P_l (\delta_{l,j} - P_j)$. dS
sums to zero over j, because a constant added to all scores leaves the softmax
unchanged. dk is the transpose of dS times q: key j receives a gradient from every query
i that saw it.

Why cache P: it is the simplest choice. It costs (B, H, T, T). The kernel of the same
name therefore keeps only the log of the softmax's denominator, (B, H, T), and computes
P again in blocks. A is computed again from P and the dropout key.

Sources: Vaswani et al., "Attention is all you need", 2017; Ainslie et al., "GQA", 2023.
"""

from typing import NamedTuple

import numpy as np

from npllm.reference.dropout import dropout_scale


class AttentionCache(NamedTuple):
    qkv: np.ndarray  # (B, T, (H+2K)·D)
    probabilities: np.ndarray  # (B, K, G, T, T), before dropout


def split_heads(qkv, n_head, n_kv_head):
    """Return views of the packed array qkv, (B, T, (H+2K)·D), as q, k and v.

    q: (B, K, G, T, D). k, v: (B, K, 1, T, D).
    """
    B, T, _ = qkv.shape
    heads = qkv.reshape(B, T, n_head + 2 * n_kv_head, -1).transpose(0, 2, 1, 3)  # (B, H+2K, T, D)
    q = heads[:, :n_head].reshape(B, n_kv_head, n_head // n_kv_head, T, -1)
    k = heads[:, n_head : n_head + n_kv_head, None]
    v = heads[:, n_head + n_kv_head :, None]
    return q, k, v


def merge_heads(y):
    """Return the heads y, (B, K, G, T, D), side by side: (B, T, H·D)."""
    B, K, G, T, D = y.shape
    return y.transpose(0, 3, 1, 2, 4).reshape(B, T, K * G * D)


def softmax(scores):
    """Return the softmax over the last axis.

    Subtracting the maximum leaves the result unchanged and keeps exp from overflowing.
    """
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def causal_scores(q, k, first_position, starts):
    """Return the scores, (B, K, G, T, S), -inf where a query may not see the key.

    q: (B, K, G, T, D), at the positions from first_position on. k: (B, K, 1, S, D), at
    the positions from 0 on. starts: (B, T), the first position that each query may see,
    or None = 0.
    """
    scores = q @ k.swapaxes(-1, -2) * (1.0 / float(np.sqrt(q.shape[-1])))
    T, S = scores.shape[-2:]
    seen = np.arange(S) <= first_position + np.arange(T)[:, None]  # (T, S)
    if starts is not None:
        seen = seen & (np.arange(S) >= starts[:, None, None, :, None])  # (B, 1, 1, T, S)
    np.copyto(scores, -np.inf, where=~seen)
    return scores


def attention_forward(qkv, n_head, n_kv_head, *, rate=0.0, key=None, starts=None):
    r"""Attention within each sequence, or within each document of it.

    qkv: (B, T, (H+2K)·D), the heads of q, then k, then v; H is a multiple of K. rate:
    dropout of the weights. key: a DropoutKey, needed where rate > 0; the weight
    (b, h, i, j) is element $((b H + h) T + i) T + j$ of its random stream. starts:
    (B, T) int32, the first position that each query may see, which is the start of its
    document in the row: $0 \le starts_{b,t} \le t$; None = 0.

    Returns y, (B, T, H·D), and the cache.
    """
    q, k, v = split_heads(qkv, n_head, n_kv_head)
    probabilities = softmax(causal_scores(q, k, 0, starts))  # (B, K, G, T, T)
    weights = probabilities
    if rate > 0.0:
        weights = probabilities * dropout_scale(probabilities.shape, rate, key, qkv.dtype)
    return merge_heads(weights @ v), AttentionCache(qkv, probabilities)


def attention_backward(dy, cache, n_head, n_kv_head, *, rate=0.0, key=None):
    """Return dqkv, (B, T, (H+2K)·D), for the gradient dy, (B, T, H·D)."""
    q, k, v = split_heads(cache.qkv, n_head, n_kv_head)
    scale = 1.0 / float(np.sqrt(q.shape[-1]))
    probabilities = cache.probabilities
    B, T, _ = dy.shape
    dy = dy.reshape(B, T, n_kv_head, n_head // n_kv_head, -1).transpose(0, 2, 3, 1, 4)  # (B, K, G, T, D)

    weights, dprobabilities = probabilities, dy @ v.swapaxes(-1, -2)  # (B, K, G, T, T)
    if rate > 0.0:
        factor = dropout_scale(probabilities.shape, rate, key, dy.dtype)
        weights, dprobabilities = probabilities * factor, dprobabilities * factor
    dv = (weights.swapaxes(-1, -2) @ dy).sum(axis=2)  # over the G queries that share the head: (B, K, T, D)

    dscores = probabilities * (dprobabilities - (probabilities * dprobabilities).sum(axis=-1, keepdims=True))
    dq = dscores @ k * scale
    dk = (dscores.swapaxes(-1, -2) @ q).sum(axis=2) * scale

    dheads = np.concatenate([dq.reshape(B, n_head, T, -1), dk, dv], axis=1)  # (B, H+2K, T, D)
    return dheads.transpose(0, 2, 1, 3).reshape(cache.qkv.shape)


def cached_attention_forward(qkv, key_cache, value_cache, first_position, n_head, n_kv_head, *, starts=None):
    """Attention of new positions to themselves and to all earlier, cached positions.

    qkv: (B, T, (H+2K)·D) of the T positions from first_position on.
    key_cache, value_cache: (B, K, positions, D); the new keys and values are written
    into them. starts: (B,) int32, the first position of each row that is not padding;
    None = 0. A position of padding sees itself only.

    Returns y, (B, T, H·D). There is no backward: the operation serves generation.
    """
    q, k, v = split_heads(qkv, n_head, n_kv_head)
    end = first_position + qkv.shape[1]
    key_cache[:, :, first_position:end] = k[:, :, 0]
    value_cache[:, :, first_position:end] = v[:, :, 0]
    if starts is not None:
        starts = np.minimum(starts[:, None], np.arange(first_position, end))  # (B, T)
    scores = causal_scores(q, key_cache[:, :, None, :end], first_position, starts)
    return merge_heads(softmax(scores) @ value_cache[:, :, None, :end])
