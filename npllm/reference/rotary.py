"""Rotary positions: turn queries and keys by an angle proportional to their position.

Split a head of width D into D/2 pairs (first half i, second half i + D/2). Pair i at position t is a point in the
plane and is turned by the angle t theta^(-2i/D):

    y1 = x1 cos - x2 sin              y2 = x1 sin + x2 cos

The dot product of a query turned by its angle and a key turned by its own depends only on the difference of the two
angles, so attention sees how far apart two tokens are and not where they stand.

Backward: a rotation matrix is orthogonal, its transpose is the rotation by the opposite angle. So dx is dy turned back:

    dx1 = dy1 cos + dy2 sin           dx2 = -dy1 sin + dy2 cos

Nothing is cached but the two tables, which depend on the position only. Values are not turned.

Source: Su et al., "RoFormer: enhanced Transformer with rotary position embedding", 2021. The pairing of halves is the
one of the Llama files.
"""

import numpy as np


def rotary_tables(n_positions, head_width, dtype, theta=10000.0):
    """cos and sin of every position and pair, (n_positions, D/2) each. head_width must be even."""
    frequency = theta ** (-np.arange(0, head_width, 2) / head_width)
    angle = np.arange(n_positions)[:, None] * frequency
    return np.cos(angle).astype(dtype), np.sin(angle).astype(dtype)


def rotary_forward(qkv, cos, sin, n_head, n_kv_head):
    """Rotate the queries and keys of a packed array.

    qkv: (B, T, (H+2K)·D), the heads of q, then k, then v. cos, sin: (T, D/2), the rows of the T positions.
    Returns an array like qkv.
    """
    B, T, _ = qkv.shape
    heads = qkv.reshape(B, T, n_head + 2 * n_kv_head, -1)
    half = heads.shape[-1] // 2
    x1 = heads[:, :, : n_head + n_kv_head, :half]
    x2 = heads[:, :, : n_head + n_kv_head, half:]
    cos, sin = cos[:, None, :], sin[:, None, :]  # (T, 1, D/2): the same for every head
    y = heads.copy()
    y[:, :, : n_head + n_kv_head, :half] = x1 * cos - x2 * sin
    y[:, :, : n_head + n_kv_head, half:] = x1 * sin + x2 * cos
    return y.reshape(qkv.shape)


def rotary_backward(dy, cos, sin, n_head, n_kv_head):
    """dqkv for the gradient dy of `rotary_forward`'s result: the opposite rotation."""
    return rotary_forward(dy, cos, -sin, n_head, n_kv_head)
