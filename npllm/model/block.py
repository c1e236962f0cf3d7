"""One Transformer block, pre-norm, forward and backward, composed of the operations of a backend.

    x ──┬── norm_1 ── qkv ── (rotary) ── attention ── out ── dropout ──(+)──┬── norm_2 ── MLP ── dropout ──(+)── y
        └───────────────────────────────────────────────────────────────┘   └────────────────────────────────┘

`ops` is the backend, `npllm.reference` or `npllm.kernels`: the same functions, plain or fast. The plain network of
the same shape is `npllm/reference/block.py`: read it first.

Memory: the cache of a block is what its backward cannot make again from something else in it at little cost: 11 numbers
for each one of x, with the MLP four times as wide. What GELU, SwiGLU and the first norm give is made twice instead, in
`scratch`, which is free again after each block.

The backward walks the same picture from right to left. Where the forward forks, gradients add; where it adds, the
gradient forks. So the residual stream carries dy past both branches untouched, and each branch adds its own part.
"""

from typing import Any, NamedTuple

import numpy as np

from npllm.memory.arena import Arena
from npllm.model.config import ModelConfig
from npllm.reference import DropoutKey
from npllm.reference.random_streams import BLOCK_DROPOUT

NORM_EPS = 1e-5


class Context(NamedTuple):
    """What every block of one forward and backward pass has in common."""

    ops: Any  # the backend
    config: ModelConfig
    empty: Any  # the allocator of what is kept for the backward
    scratch: Arena  # for everything else
    rate: float  # of dropout: 0 unless training
    seed: int
    step: int
    first_row: int  # rows of the batch that came in earlier micro-batches: the masks do not depend on the split
    cos: np.ndarray | None = None  # (T, D/2), with rotary positions
    sin: np.ndarray | None = None
    starts: np.ndarray | None = None  # (B, T): where the document of each position begins in its row; None = at 0
    kv_cache: Any = None  # keys, values: (L, B, K, positions, D), and length: positions filled; in generation only

    def dropout_key(self, site: int, elements_per_row: int) -> DropoutKey:
        """The address of the mask of one dropout of the network, for this micro-batch."""
        return DropoutKey(self.seed, self.step, site, first=self.first_row * elements_per_row)


class BlockCache(NamedTuple):
    x: np.ndarray  # (N, C), the residual stream before the block
    attention: Any
    attended: np.ndarray  # (N, C)
    norm_2: Any
    normed_2: np.ndarray  # (N, C)
    up: np.ndarray  # (N, F), before GELU or, with SwiGLU, to be multiplied with silu(gate)
    gate: np.ndarray | None  # (N, F), with SwiGLU


class DropoutSites(NamedTuple):
    """The three dropouts of a block."""

    weights: int
    attention: int
    mlp: int


def dropout_sites(layer: int) -> DropoutSites:
    """Each block has three."""
    return DropoutSites(*BLOCK_DROPOUT[3 * layer : 3 * layer + 3])


def norm_forward(context, x, weight, bias, *, empty):
    """The norm that the config names, for rows x, (N, C)."""
    if context.config.norm == "rmsnorm":
        return context.ops.rmsnorm_forward(x, weight, NORM_EPS, empty=empty)
    return context.ops.layernorm_forward(x, weight, bias, NORM_EPS, empty=empty)


def norm_backward(context, dy, cache, weight, dweight, dbias):
    """The gradient of `norm_forward`."""
    if context.config.norm == "rmsnorm":
        return context.ops.rmsnorm_backward(dy, cache, weight, dweight, empty=context.empty)
    return context.ops.layernorm_backward(dy, cache, weight, dweight, dbias, empty=context.empty)


def mlp_forward(context, p, x, residual, *, empty_y):
    """x: (N, C), normalised. residual: (N, C), added to the result, or None. Returns y, (N, C), up and gate."""
    ops, empty, scratch = context.ops, context.empty, context.scratch.empty
    up_weight, up_bias, gate = p["mlp.up.weight"], p.get("mlp.up.bias"), None
    if context.config.mlp == "gelu":
        hidden, up = ops.linear_forward(x, up_weight, up_bias, epilogue="gelu", empty=empty, empty_y=scratch)
    else:
        up, _ = ops.linear_forward(x, up_weight, up_bias, empty=empty)
        gate, _ = ops.linear_forward(x, p["mlp.gate.weight"], p.get("mlp.gate.bias"), empty=empty)
        hidden, _ = ops.swiglu_forward(gate, up, empty=scratch)
    y, _ = ops.linear_forward(
        hidden,
        p["mlp.down.weight"],
        p.get("mlp.down.bias"),
        epilogue="none" if residual is None else "residual",
        residual=residual,
        empty=empty_y,
    )
    return y, up, gate


def mlp_backward(context, p, dp, dy, cache):
    """The gradient of `mlp_forward`, apart from its residual's, which is dy. Returns dx, (N, C)."""
    ops, scratch = context.ops, context.scratch.empty

    def linear_backward(dz, x, name, **options):
        weight, dweight = p[f"{name}.weight"], dp[f"{name}.weight"]
        return ops.linear_backward(dz, x, weight, dweight, dp.get(f"{name}.bias"), empty=scratch, **options)

    if cache.gate is None:
        hidden = ops.gelu_forward(cache.up, empty=scratch)
        dhidden = linear_backward(dy, hidden, "mlp.down")
        return linear_backward(dhidden, cache.normed_2, "mlp.up", pre_activation=cache.up)
    hidden, swiglu = ops.swiglu_forward(cache.gate, cache.up, empty=scratch)
    dhidden = linear_backward(dy, hidden, "mlp.down")
    dgate, dup = ops.swiglu_backward(dhidden, swiglu, empty=scratch)
    dx = linear_backward(dup, cache.normed_2, "mlp.up")
    dx += linear_backward(dgate, cache.normed_2, "mlp.gate")
    return dx


def block_forward(context: Context, p, x, layer: int):
    """x: (B, T, C), the residual stream. p: the block's parameters. Returns the new stream and the cache."""
    with context.scratch.scope():
        return _block_forward(context, p, x, layer)


def _block_forward(context, p, x, layer):
    ops, config, empty, scratch = context.ops, context.config, context.empty, context.scratch.empty
    H, K, rate, sites = config.n_head, config.kv_heads, context.rate, dropout_sites(layer)
    B, T, C = x.shape
    x = x.reshape(B * T, C)

    normed, _ = norm_forward(context, x, p["norm_1.weight"], p.get("norm_1.bias"), empty=scratch)
    empty_qkv = empty if context.cos is None else scratch
    qkv, _ = ops.linear_forward(normed, p["attention.qkv.weight"], p.get("attention.qkv.bias"), empty=empty_qkv)
    qkv = qkv.reshape(B, T, -1)
    if context.cos is not None:
        qkv = ops.rotary_forward(qkv, context.cos, context.sin, H, K, empty=empty)
    if context.kv_cache is None:
        weights_key = context.dropout_key(sites.weights, H * T * T)
        attended, attention = ops.attention_forward(
            qkv, H, K, rate=rate, key=weights_key, starts=context.starts, empty=empty
        )
    else:
        cache = context.kv_cache
        attended = ops.cached_attention_forward(
            qkv, cache.keys[layer], cache.values[layer], cache.length, H, K, starts=cache.starts, empty=empty
        )
        attention = None
    attended = attended.reshape(B * T, C)
    branch, _ = ops.linear_forward(attended, p["attention.out.weight"], p.get("attention.out.bias"), empty=scratch)
    if rate > 0:
        branch = ops.dropout_forward(branch, rate, context.dropout_key(sites.attention, T * C), empty=scratch)

    stream, normed, norm_2 = ops.add_norm_forward(
        x, branch, p["norm_2.weight"], p.get("norm_2.bias"), NORM_EPS, norm=config.norm, empty=empty
    )
    if rate > 0:
        branch, up, gate = mlp_forward(context, p, normed, residual=None, empty_y=scratch)
        y = ops.dropout_forward(branch, rate, context.dropout_key(sites.mlp, T * C), empty=empty)
        y += stream
    else:
        y, up, gate = mlp_forward(context, p, normed, residual=stream, empty_y=empty)
    return y.reshape(B, T, C), BlockCache(x, attention, attended, norm_2, normed, up, gate)


def block_backward(context: Context, p, dp, dy, cache: BlockCache, layer: int):
    """dy: (B, T, C). dp: the gradients of the block's parameters, which are added to. Returns dx, (B, T, C)."""
    rows = dy.reshape(-1, dy.shape[-1])
    with context.scratch.scope():
        dx = _second_half_backward(context, p, dp, rows, cache, layer, dy.shape)
    with context.scratch.scope():
        return _first_half_backward(context, p, dp, dx, cache, layer, dy.shape).reshape(dy.shape)


def _second_half_backward(context, p, dp, dy, cache, layer, shape):
    """From y to the stream between attention and MLP; dy, dx: (N, C)."""
    ops, config, rate, (_, T, C) = context.ops, context.config, context.rate, shape
    dbranch = dy
    if rate > 0:
        key = context.dropout_key(dropout_sites(layer).mlp, T * C)
        dbranch = ops.dropout_backward(dy, rate, key, empty=context.scratch.empty)
    dnormed = mlp_backward(context, p, dp, dbranch, cache)
    return ops.add_norm_backward(
        dy, dnormed, cache.norm_2, p["norm_2.weight"], dp["norm_2.weight"], dp.get("norm_2.bias"),
        norm=config.norm, empty=context.empty,
    )  # fmt: skip


def _first_half_backward(context, p, dp, dy, cache, layer, shape):
    """From the stream between attention and MLP to x; dy, dx: (N, C)."""
    ops, config, scratch = context.ops, context.config, context.scratch.empty
    H, K, rate, sites = config.n_head, config.kv_heads, context.rate, dropout_sites(layer)
    B, T, C = shape
    dbranch = dy
    if rate > 0:
        dbranch = ops.dropout_backward(dy, rate, context.dropout_key(sites.attention, T * C), empty=scratch)
    dattended = ops.linear_backward(
        dbranch, cache.attended, p["attention.out.weight"],
        dp["attention.out.weight"], dp.get("attention.out.bias"), empty=scratch,
    )  # fmt: skip
    weights_key = context.dropout_key(sites.weights, H * T * T)
    dqkv = ops.attention_backward(
        dattended.reshape(B, T, C), cache.attention, H, K, rate=rate, key=weights_key, empty=scratch
    )
    if context.cos is not None:
        dqkv = ops.rotary_backward(dqkv, context.cos, context.sin, H, K, empty=scratch)
    normed, norm_1 = norm_forward(context, cache.x, p["norm_1.weight"], p.get("norm_1.bias"), empty=scratch)
    dnormed = ops.linear_backward(
        dqkv.reshape(B * T, -1), normed, p["attention.qkv.weight"],
        dp["attention.qkv.weight"], dp.get("attention.qkv.bias"), empty=scratch,
    )  # fmt: skip
    # norm_1 is a fork of the stream like norm_2: past it goes dy, through it dnormed.
    return ops.add_norm_backward(
        dy, dnormed, norm_1, p["norm_1.weight"], dp["norm_1.weight"], dp.get("norm_1.bias"),
        norm=config.norm, empty=context.empty,
    )  # fmt: skip
