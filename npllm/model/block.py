"""One pre-norm Transformer block, forward and backward, with a backend's operations.

    ┌ norm_1 ─ q, k, v ─ attention ─ out ─ dropout ┐ ┌ norm_2 ─ MLP ─ dropout ┐
  x ┴──────────────────────────────────────────────+─┴────────────────────────+ y

  q, k, v:  qkv ─ (norm of q, k) ─ (rotary)

`ops` is the backend, `npllm.reference` or `npllm.kernels`: the same functions, plain or
fast. The plain network of the same shape is `npllm/reference/block.py`; read it first.

Memory. The cache of a block holds what its backward cannot compute cheaply from the
rest of the cache: 11 numbers for each number of x, with an MLP four times as wide, and
3 more with QK-norm, which needs q, k and v before the norm as well. The results of the
activation and the first norm are computed twice instead, in `scratch`.
"Lifetimes" in `threads.py` tells how long arrays of `empty` and `scratch` are valid.

The backward goes through the same picture from right to left. Where the forward forks,
gradients add up; where it adds, the gradient goes both ways. So the residual stream
carries dy past both branches unchanged, and each branch adds its own part.
"""

from typing import Any, NamedTuple

import numpy as np

from npllm.memory.arena import Arena
from npllm.model.config import ModelConfig
from npllm.model.views import Block
from npllm.reference import DropoutKey
from npllm.reference.random_streams import BLOCK_DROPOUT


class Context(NamedTuple):
    """What all blocks of one forward and backward pass have in common."""

    ops: Any  # the backend
    config: ModelConfig
    empty: Any  # the allocator of what is kept for the backward
    scratch: Arena  # for everything else
    rate: float  # of dropout: 0 unless training
    seed: int
    step: int
    first_row: int  # the number of rows in earlier micro-batches, for the dropout masks
    cos: np.ndarray | None = None  # (T, D/2), with rotary positions
    sin: np.ndarray | None = None
    starts: np.ndarray | None = None  # (B, T): the start of each position's document in its row; None = 0
    kv_cache: Any = None  # a KVCache or JoinedCaches, in generation only

    def dropout_key(self, stream: int, elements_per_row: int) -> DropoutKey:
        """Return the address of one dropout's mask, for this micro-batch."""
        return DropoutKey(self.seed, self.step, stream, first=self.first_row * elements_per_row)


class BlockCache(NamedTuple):
    x: np.ndarray  # (N, C), the residual stream before the block
    qk_norm: Any  # None without QK-norm
    attention: Any
    attended: np.ndarray  # (N, H·D)
    norm_2: Any
    normed_2: np.ndarray  # (N, C)
    up: np.ndarray  # (N, F), before GELU or ReLU² or, with SwiGLU, to be multiplied with silu(gate)
    gate: np.ndarray | None  # (N, F), with SwiGLU


class DropoutStreams(NamedTuple):
    """The random streams of the three dropouts of a block."""

    weights: int
    attention: int
    mlp: int


def dropout_streams(layer: int) -> DropoutStreams:
    """Return the DropoutStreams of a block."""
    return DropoutStreams(*BLOCK_DROPOUT[3 * layer : 3 * layer + 3])


def norm_forward(context, x, weight, bias, *, empty):
    """Apply the norm that the config names to rows x, (N, C).

    Returns y, (N, C), and the cache.
    """
    if context.config.norm == "rmsnorm":
        return context.ops.rmsnorm_forward(x, weight, context.config.norm_eps, empty=empty)
    return context.ops.layernorm_forward(x, weight, bias, context.config.norm_eps, empty=empty)


def norm_backward(context, dy, cache, weight, dweight, dbias):
    """Return dx, (N, C), the gradient of `norm_forward`.

    Adds to dweight and dbias, (C,).
    """
    if context.config.norm == "rmsnorm":
        return context.ops.rmsnorm_backward(dy, cache, weight, dweight, empty=context.empty)
    return context.ops.layernorm_backward(dy, cache, weight, dweight, dbias, empty=context.empty)


def qkv_forward(context, w: Block, x, T):
    """Return q, k and v for the attention, (B, T, (H+2K)·D), and QK-norm's cache.

    x: (N, C), normalised. The attention keeps its input, so that lies in `empty`.
    """
    ops, config, empty, scratch = context.ops, context.config, context.empty, context.scratch.empty
    H, K, rotary, cache = config.n_head, config.kv_heads, context.cos is not None, None
    before_rotary = scratch if rotary else empty
    qkv, _ = ops.linear_forward(x, *w.qkv, empty=empty if config.qk_norm else before_rotary)
    qkv = qkv.reshape(-1, T, qkv.shape[1])
    if config.qk_norm:
        weights = w.q_norm, w.k_norm
        qkv, cache = ops.qk_norm_forward(qkv, *weights, H, K, config.norm_eps, empty=empty, empty_y=before_rotary)
    if rotary:
        qkv = ops.rotary_forward(qkv, context.cos, context.sin, H, K, empty=empty)
    return qkv, cache


def qkv_backward(context, w: Block, dw: Block, dqkv, x, qk_norm):
    """Return dx, (N, C), the gradient of `qkv_forward`.

    dqkv: (B, T, (H+2K)·D). x: (N, C), normalised. qk_norm: QK-norm's cache. Adds to dw.
    """
    ops, config, scratch = context.ops, context.config, context.scratch.empty
    if context.cos is not None:
        dqkv = ops.rotary_backward(dqkv, context.cos, context.sin, config.n_head, config.kv_heads, empty=scratch)
    if config.qk_norm:
        dqkv = ops.qk_norm_backward(dqkv, qk_norm, w.q_norm, w.k_norm, dw.q_norm, dw.k_norm, empty=scratch)
    return ops.linear_backward(dqkv.reshape(len(x), -1), x, w.qkv.weight, *dw.qkv, empty=scratch)


def mlp_forward(context, w: Block, x, residual, *, empty_y):
    """Return y, (N, C), and up and gate, (N, F), for the backward; gate may be None.

    x: (N, C). residual: (N, C), added to the result, or None. empty_y: allocates y.
    """
    ops, empty, scratch = context.ops, context.empty, context.scratch.empty
    gate = None
    if context.config.mlp == "gelu":
        hidden, up = ops.linear_forward(x, *w.up, epilogue="gelu", empty=empty, empty_y=scratch)
    elif context.config.mlp == "relu2":
        up, _ = ops.linear_forward(x, *w.up, empty=empty)
        hidden = ops.relu2_forward(up, empty=scratch)
    else:
        up, _ = ops.linear_forward(x, *w.up, empty=empty)
        gate, _ = ops.linear_forward(x, *w.gate, empty=empty)
        hidden, _ = ops.swiglu_forward(gate, up, empty=scratch)
    epilogue = "none" if residual is None else "residual"
    y, _ = ops.linear_forward(hidden, *w.down, epilogue=epilogue, residual=residual, empty=empty_y)
    return y, up, gate


def mlp_backward(context, w: Block, dw: Block, dy, cache):
    """Return dx, (N, C), the gradient of `mlp_forward`.

    The residual's gradient is dy. Adds to dw.
    """
    ops, scratch, x, up = context.ops, context.scratch.empty, cache.normed_2, cache.up
    if context.config.mlp == "gelu":
        hidden = ops.gelu_forward(up, empty=scratch)
        dhidden = ops.linear_backward(dy, hidden, w.down.weight, *dw.down, empty=scratch)
        return ops.linear_backward(dhidden, x, w.up.weight, *dw.up, pre_activation=up, empty=scratch)
    if context.config.mlp == "relu2":
        hidden = ops.relu2_forward(up, empty=scratch)
        dhidden = ops.linear_backward(dy, hidden, w.down.weight, *dw.down, empty=scratch)
        dup = ops.relu2_backward(dhidden, up, empty=scratch)
        return ops.linear_backward(dup, x, w.up.weight, *dw.up, empty=scratch)
    hidden, swiglu = ops.swiglu_forward(cache.gate, up, empty=scratch)
    dhidden = ops.linear_backward(dy, hidden, w.down.weight, *dw.down, empty=scratch)
    dgate, dup = ops.swiglu_backward(dhidden, swiglu, empty=scratch)
    dx = ops.linear_backward(dup, x, w.up.weight, *dw.up, empty=scratch)
    dx += ops.linear_backward(dgate, x, w.gate.weight, *dw.gate, empty=scratch)
    return dx


def block_forward(context: Context, w: Block, x, layer: int):
    """Return the new residual stream, (B, T, C), and the cache of a block.

    x: (B, T, C), the residual stream. w: the block's weights.
    """
    with context.scratch.scope():
        return _block_forward(context, w, x, layer)


def _block_forward(context, w, x, layer):
    ops, config, empty, scratch = context.ops, context.config, context.empty, context.scratch.empty
    H, K, rate, streams = config.n_head, config.kv_heads, context.rate, dropout_streams(layer)
    B, T, C = x.shape
    x = x.reshape(B * T, C)

    normed, _ = norm_forward(context, x, *w.norm_1, empty=scratch)
    qkv, qk_norm = qkv_forward(context, w, normed, T)
    if context.kv_cache is None:
        weights_key = context.dropout_key(streams.weights, H * T * T)
        attended, attention = ops.attention_forward(
            qkv, H, K, rate=rate, key=weights_key, starts=context.starts, empty=empty
        )
    else:
        attended, attention = context.kv_cache.attend(ops, qkv, layer, H, K, empty=empty), None
    attended = attended.reshape(B * T, -1)
    branch, _ = ops.linear_forward(attended, *w.out, empty=scratch)
    if rate > 0:
        branch = ops.dropout_forward(branch, rate, context.dropout_key(streams.attention, T * C), empty=scratch)

    stream, normed, norm_2 = ops.add_norm_forward(x, branch, *w.norm_2, config.norm_eps, norm=config.norm, empty=empty)
    if rate > 0:
        branch, up, gate = mlp_forward(context, w, normed, residual=None, empty_y=scratch)
        y = ops.dropout_forward(branch, rate, context.dropout_key(streams.mlp, T * C), empty=empty)
        y += stream
    else:
        y, up, gate = mlp_forward(context, w, normed, residual=stream, empty_y=empty)
    return y.reshape(B, T, C), BlockCache(x, qk_norm, attention, attended, norm_2, normed, up, gate)


def block_backward(context: Context, w: Block, dw: Block, dy, cache: BlockCache, layer: int):
    """Return dx, (B, T, C), the gradient of `block_forward`.

    dy: (B, T, C). dw: the gradients of the block's weights; the block's are added to
    them.
    """
    rows = dy.reshape(-1, dy.shape[-1])
    with context.scratch.scope():
        dx = _second_half_backward(context, w, dw, rows, cache, layer, dy.shape)
    with context.scratch.scope():
        return _first_half_backward(context, w, dw, dx, cache, layer, dy.shape).reshape(dy.shape)


def _second_half_backward(context, w, dw, dy, cache, layer, shape):
    """Return the gradient of the stream between attention and MLP, (N, C).

    dy: (N, C).
    """
    ops, rate, (_, T, C) = context.ops, context.rate, shape
    dbranch = dy
    if rate > 0:
        key = context.dropout_key(dropout_streams(layer).mlp, T * C)
        dbranch = ops.dropout_backward(dy, rate, key, empty=context.scratch.empty)
    dnormed = mlp_backward(context, w, dw, dbranch, cache)
    return ops.add_norm_backward(
        dy, dnormed, cache.norm_2, w.norm_2.weight, *dw.norm_2, norm=context.config.norm, empty=context.empty
    )


def _first_half_backward(context, w, dw, dy, cache, layer, shape):
    """Return dx, (N, C).

    dy: (N, C), the gradient of the stream between attention and MLP.
    """
    ops, config, scratch = context.ops, context.config, context.scratch.empty
    H, K, rate, streams = config.n_head, config.kv_heads, context.rate, dropout_streams(layer)
    B, T, C = shape
    dbranch = dy
    if rate > 0:
        dbranch = ops.dropout_backward(dy, rate, context.dropout_key(streams.attention, T * C), empty=scratch)
    dattended = ops.linear_backward(dbranch, cache.attended, w.out.weight, *dw.out, empty=scratch)
    weights_key = context.dropout_key(streams.weights, H * T * T)
    dqkv = ops.attention_backward(
        dattended.reshape(B, T, -1), cache.attention, H, K, rate=rate, key=weights_key, empty=scratch
    )
    normed, norm_1 = norm_forward(context, cache.x, *w.norm_1, empty=scratch)
    dnormed = qkv_backward(context, w, dw, dqkv, normed, cache.qk_norm)
    # The stream forks at norm_1 as at norm_2: dy goes past it, dnormed through it.
    return ops.add_norm_backward(
        dy, dnormed, norm_1, w.norm_1.weight, *dw.norm_1, norm=config.norm, empty=context.empty
    )
