r"""QK-norm: RMSNorm of every query and every key head, before rotary and attention.

Forward, for one head x of width D (`rmsnorm.py` with a head for the row):

$$
rstd = 1 / \sqrt{\sum_i x_i^2 / D + eps}
x_hat = x rstd
y = weight \cdot x_hat
$$

All query heads of a layer share one weight, (D,), and all its key heads another one.
Values are not normalised.

Whatever the projections grow to, a query and a key then have the length $\sqrt{D}$
before their weights. Without a norm the scores can grow during training until the
softmax of each row has one probability near 1, where it has no gradient.

Backward, with $g = dy \cdot weight$:

$$
dx = rstd (g - x_hat mean(g x_hat))
dweight = \sum_n dy_n x_hat_n
$$

The sum runs over all positions and all heads that share the weight. The gradient of v
is that of its output, unchanged.

Sources: Dehghani et al., "Scaling vision transformers to 22 billion parameters", 2023
(with LayerNorm); as here: "Qwen3 technical report", 2025; RMSNorm: Zhang & Sennrich,
2019.
"""

from typing import NamedTuple

import numpy as np


class QKNormCache(NamedTuple):
    qkv: np.ndarray  # (B, T, (H+2K)·D), before the norm
    rstd: np.ndarray  # (B, T, H+K), of the heads of q, then k


def qk_norm_forward(qkv, q_weight, k_weight, n_head, n_kv_head, eps=1e-5):
    """Normalise the queries and keys of a packed array, head by head.

    qkv: (B, T, (H+2K)·D), the heads of q, then k, then v. q_weight, k_weight: (D,).
    Returns an array of the shape and dtype of qkv, and the cache for the backward.
    """
    B, T, _ = qkv.shape
    heads = qkv.reshape(B, T, n_head + 2 * n_kv_head, -1)
    x, v = np.split(heads, [n_head + n_kv_head], axis=2)  # x: (B, T, H+K, D)
    weights = weight_of_each_head(q_weight, k_weight, n_head, n_kv_head)
    rstd = 1.0 / np.sqrt((x**2).mean(axis=-1) + eps)
    y = np.concatenate([x * rstd[..., None] * weights, v], axis=2)
    return y.reshape(qkv.shape), QKNormCache(qkv, rstd)


def qk_norm_backward(dy, cache, q_weight, k_weight, dq_weight, dk_weight):
    """Return dqkv, (B, T, (H+2K)·D), the gradient of `qk_norm_forward`.

    dy: (B, T, (H+2K)·D). Adds to dq_weight and dk_weight, (D,) each.
    """
    B, T, n_normed = cache.rstd.shape  # H+K
    heads, dheads = (array.reshape(B, T, -1, len(q_weight)) for array in (cache.qkv, dy))
    n_kv_head = heads.shape[2] - n_normed
    n_head = n_normed - n_kv_head
    rstd = cache.rstd[..., None]
    x_hat = heads[:, :, :n_normed] * rstd
    dy_normed, dv = np.split(dheads, [n_normed], axis=2)

    dweights = (dy_normed * x_hat).sum(axis=(0, 1))  # (H+K, D): of each head
    dq_weight += dweights[:n_head].sum(axis=0)
    dk_weight += dweights[n_head:].sum(axis=0)
    g = dy_normed * weight_of_each_head(q_weight, k_weight, n_head, n_kv_head)
    dx = rstd * (g - x_hat * (g * x_hat).mean(axis=-1, keepdims=True))
    return np.concatenate([dx, dv], axis=2).reshape(dy.shape)


def weight_of_each_head(q_weight, k_weight, n_head, n_kv_head):
    """Return (H+K, D): q_weight for each query head, k_weight for each key head."""
    return np.repeat([q_weight, k_weight], [n_head, n_kv_head], axis=0)
