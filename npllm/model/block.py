"""One Transformer block, pre-norm, forward and backward, composed of the operations of a backend.

    x ──┬── norm_1 ── qkv ── (rotary) ── attention ── out ── dropout ──(+)──┬── norm_2 ── MLP ── dropout ──(+)── y
        └───────────────────────────────────────────────────────────────┘   └────────────────────────────────┘

`ops` is the backend, `npllm.reference` or `npllm.kernels`: the same functions, plain or fast.

The backward walks the same picture from right to left. Where the forward forks, gradients add; where it adds, the
gradient forks. So the residual stream carries dy past both branches untouched, and each branch adds its own part.
"""

from typing import Any, NamedTuple

import numpy as np

from npllm.model.config import ModelConfig
from npllm.reference import DropoutKey

NORM_EPS = 1e-5


class Context(NamedTuple):
    """What every block of one forward and backward pass has in common."""

    ops: Any  # the backend
    config: ModelConfig
    empty: Any  # the allocator of results
    rate: float  # of dropout: 0 unless training
    seed: int
    step: int
    first_row: int  # rows of the batch that came in earlier micro-batches: the masks do not depend on the split
    cos: np.ndarray | None = None  # (T, D/2), with rotary positions
    sin: np.ndarray | None = None
    kv_cache: Any = None  # keys, values: (L, B, K, positions, D), and length: positions filled; in generation only

    def dropout_key(self, site: int, elements_per_row: int) -> DropoutKey:
        """The address of the mask of one dropout of the network, for this micro-batch."""
        return DropoutKey(self.seed, self.step, site, first=self.first_row * elements_per_row)


class BlockCache(NamedTuple):
    norm_1: Any
    qkv: Any
    attention: Any
    out: Any
    norm_2: Any
    up: Any
    gate: Any  # None without SwiGLU
    swiglu: Any  # None without SwiGLU
    down: Any


class DropoutSites(NamedTuple):
    """The three dropouts of a block."""

    weights: int
    attention: int
    mlp: int


def dropout_sites(layer: int) -> DropoutSites:
    """Site 0 is the embedding's; each block has three."""
    return DropoutSites(1 + 3 * layer, 2 + 3 * layer, 3 + 3 * layer)


def norm_forward(context, x, weight, bias):
    """The norm that the config names, for rows x, (N, C)."""
    if context.config.norm == "rmsnorm":
        return context.ops.rmsnorm_forward(x, weight, NORM_EPS, empty=context.empty)
    return context.ops.layernorm_forward(x, weight, bias, NORM_EPS, empty=context.empty)


def norm_backward(context, dy, cache, weight, dweight, dbias):
    """The gradient of `norm_forward`."""
    if context.config.norm == "rmsnorm":
        return context.ops.rmsnorm_backward(dy, cache, weight, dweight, empty=context.empty)
    return context.ops.layernorm_backward(dy, cache, weight, dweight, dbias, empty=context.empty)


def mlp_forward(context, p, x, residual):
    """x: (N, C), normalised. residual: (N, C), added to the result, or None. Returns y, (N, C), and its caches."""
    ops, empty = context.ops, context.empty
    if context.config.mlp == "gelu":
        hidden, up = ops.linear_forward(x, p["mlp.up.weight"], p.get("mlp.up.bias"), epilogue="gelu", empty=empty)
        gate = swiglu = None
    else:
        up_half, up = ops.linear_forward(x, p["mlp.up.weight"], p.get("mlp.up.bias"), empty=empty)
        gate_half, gate = ops.linear_forward(x, p["mlp.gate.weight"], p.get("mlp.gate.bias"), empty=empty)
        hidden, swiglu = ops.swiglu_forward(gate_half, up_half, empty=empty)
    y, down = ops.linear_forward(
        hidden,
        p["mlp.down.weight"],
        p.get("mlp.down.bias"),
        epilogue="none" if residual is None else "residual",
        residual=residual,
        empty=empty,
    )
    return y, (up, gate, swiglu, down)


def mlp_backward(context, p, dp, dy, cache):
    """The gradient of `mlp_forward`, apart from its residual's, which is dy. Returns dx, (N, C)."""
    ops, empty = context.ops, context.empty

    def linear_backward(dz, linear_cache, name):
        return ops.linear_backward(
            dz, linear_cache, p[f"{name}.weight"], dp[f"{name}.weight"], dp.get(f"{name}.bias"), empty=empty
        )

    dhidden = linear_backward(dy, cache.down, "mlp.down")
    if cache.swiglu is None:
        return linear_backward(dhidden, cache.up, "mlp.up")
    dgate, dup = ops.swiglu_backward(dhidden, cache.swiglu, empty=empty)
    dx = linear_backward(dup, cache.up, "mlp.up")
    dx += linear_backward(dgate, cache.gate, "mlp.gate")
    return dx


def block_forward(context: Context, p, x, layer: int):
    """x: (B, T, C), the residual stream. p: the block's parameters. Returns the new stream and the cache."""
    ops, config, empty = context.ops, context.config, context.empty
    H, K, rate, sites = config.n_head, config.kv_heads, context.rate, dropout_sites(layer)
    B, T, C = x.shape
    x = x.reshape(B * T, C)

    normed, norm_1 = norm_forward(context, x, p["norm_1.weight"], p.get("norm_1.bias"))
    qkv, qkv_cache = ops.linear_forward(normed, p["attention.qkv.weight"], p.get("attention.qkv.bias"), empty=empty)
    qkv = qkv.reshape(B, T, -1)
    if context.cos is not None:
        qkv = ops.rotary_forward(qkv, context.cos, context.sin, H, K, empty=empty)
    if context.kv_cache is None:
        weights_key = context.dropout_key(sites.weights, H * T * T)
        attended, attention = ops.attention_forward(qkv, H, K, rate=rate, key=weights_key, empty=empty)
    else:
        keys, values = context.kv_cache.keys[layer], context.kv_cache.values[layer]
        attended = ops.cached_attention_forward(qkv, keys, values, context.kv_cache.length, H, K, empty=empty)
        attention = None
    branch, out = ops.linear_forward(
        attended.reshape(B * T, C), p["attention.out.weight"], p.get("attention.out.bias"), empty=empty
    )
    if rate > 0:
        branch = ops.dropout_forward(branch, rate, context.dropout_key(sites.attention, T * C), empty=empty)

    x, normed, norm_2 = ops.add_norm_forward(
        x, branch, p["norm_2.weight"], p.get("norm_2.bias"), NORM_EPS, norm=config.norm, empty=empty
    )
    if rate > 0:
        branch, mlp = mlp_forward(context, p, normed, residual=None)
        y = ops.dropout_forward(branch, rate, context.dropout_key(sites.mlp, T * C), empty=empty)
        y += x
    else:
        y, mlp = mlp_forward(context, p, normed, residual=x)
    return y.reshape(B, T, C), BlockCache(norm_1, qkv_cache, attention, out, norm_2, *mlp)


def block_backward(context: Context, p, dp, dy, cache: BlockCache, layer: int):
    """dy: (B, T, C). dp: the gradients of the block's parameters, which are added to. Returns dx, (B, T, C)."""
    ops, config, empty = context.ops, context.config, context.empty
    H, K, rate, sites = config.n_head, config.kv_heads, context.rate, dropout_sites(layer)
    B, T, C = dy.shape
    dy = dy.reshape(B * T, C)

    dbranch = dy
    if rate > 0:
        dbranch = ops.dropout_backward(dy, rate, context.dropout_key(sites.mlp, T * C), empty=empty)
    dnormed = mlp_backward(context, p, dp, dbranch, cache)
    dx = ops.add_norm_backward(
        dy, dnormed, cache.norm_2, p["norm_2.weight"], dp["norm_2.weight"], dp.get("norm_2.bias"),
        norm=config.norm, empty=empty,
    )  # fmt: skip

    dbranch = dx
    if rate > 0:
        dbranch = ops.dropout_backward(dx, rate, context.dropout_key(sites.attention, T * C), empty=empty)
    dattended = ops.linear_backward(
        dbranch, cache.out, p["attention.out.weight"], dp["attention.out.weight"], dp.get("attention.out.bias"),
        empty=empty,
    )  # fmt: skip
    weights_key = context.dropout_key(sites.weights, H * T * T)
    dqkv = ops.attention_backward(
        dattended.reshape(B, T, C), cache.attention, H, K, rate=rate, key=weights_key, empty=empty
    )
    if context.cos is not None:
        dqkv = ops.rotary_backward(dqkv, context.cos, context.sin, H, K, empty=empty)
    dnormed = ops.linear_backward(
        dqkv.reshape(B * T, -1), cache.qkv, p["attention.qkv.weight"], dp["attention.qkv.weight"],
        dp.get("attention.qkv.bias"), empty=empty,
    )  # fmt: skip
    # norm_1 is a fork of the stream like norm_2: past it goes dx, through it dnormed.
    dx = ops.add_norm_backward(
        dx, dnormed, cache.norm_1, p["norm_1.weight"], dp["norm_1.weight"], dp.get("norm_1.bias"),
        norm=config.norm, empty=empty,
    )  # fmt: skip
    return dx.reshape(B, T, C)
