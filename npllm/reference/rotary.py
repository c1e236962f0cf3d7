r"""Rotary positions: rotate queries and keys by angles proportional to their position.

A head of width D is split into D/2 pairs: element i of the first half with element i of
the second half. Pair i at position t is a point in the plane, which is rotated by the
angle $\phi = t \theta^{-2i/D}$:

$$
y_1 = x_1 \cos \phi - x_2 \sin \phi
y_2 = x_1 \sin \phi + x_2 \cos \phi
$$

The dot product of a rotated query and a rotated key depends only on the difference of
their two angles. So attention depends on the distance of two tokens and not on their
positions.

Backward: a rotation matrix is orthogonal, so its transpose is the rotation by the
opposite angle. dx is dy rotated back:

$$
dx_1 = dy_1 \cos \phi + dy_2 \sin \phi
dx_2 = -dy_1 \sin \phi + dy_2 \cos \phi
$$

The backward needs only the tables of cos and sin, which depend on the positions alone.
Values are not rotated.

Source: Su et al., "RoFormer: enhanced Transformer with rotary position embedding",
2021. The pairs of halves are those of the Llama files.
"""

import numpy as np


def rotary_tables(n_positions, head_width, dtype, theta=10000.0):
    """Return cos and sin of every position and pair, (n_positions, D/2) each.

    head_width: D, an even number.
    """
    frequency = theta ** (-np.arange(0, head_width, 2) / head_width)
    angle = np.arange(n_positions)[:, None] * frequency
    return np.cos(angle).astype(dtype), np.sin(angle).astype(dtype)


def rotary_forward(qkv, cos, sin, n_head, n_kv_head):
    """Rotate the queries and keys of a packed array.

    qkv: (B, T, (H+2K)·D), the heads of q, then k, then v. cos, sin: (T, D/2), the rows
    of the T positions. Returns an array of the shape and dtype of qkv.
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
    """Return dqkv for the gradient dy of `rotary_forward`: the opposite rotation.

    dy, dqkv: (B, T, (H+2K)·D).
    """
    return rotary_forward(dy, cos, -sin, n_head, n_kv_head)
