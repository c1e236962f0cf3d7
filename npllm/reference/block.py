"""One block of the Transformer, forward and backward: the heart of the plain network.

A block has two branches. Attention carries information from one position to another;
the MLP works on each position alone. Each branch reads the normalised residual stream
and adds what it found to the stream.

Forward, from x to y:

      ┌► norm_1 ─► attention ─┐       ┌► norm_2 ─► MLP ─┐
  x ──┴───────────────────────+─ mid ─┴─────────────────+─► y

  attention:         qkv ─► (norm of q, k) ─► (rotary) ─► attention ─► out
  MLP with GELU:     up ─► GELU ─► down               down(gelu(up(x))); relu2 alike
  MLP with SwiGLU:   gate, up ─► SwiGLU ─► down       down(silu(gate(x)) · up(x))

Backward, from dy to dx: the same picture with the arrows turned round.

      ┌─ norm_1 ◄─ attention ◄┐       ┌─ norm_2 ◄─ MLP ◄┐
 dx ◄─+───────────────────────┴ dmid ◄+─────────────────┴── dy

Where the forward adds, the gradient goes both ways unchanged: $d(a + b) = da + db$.
Where the forward forks, the gradients of the two ways add up: the chain rule.
So dy reaches dx along the lower line and passes no matrix, however deep the network.

Parameters and their gradients are plain dicts of arrays, by name: `p`, `dp`. Input
gradients are returned; parameter gradients are added to the arrays of `dp`. Dropout is
left out here: `dropout.py` has it, and `npllm/model/block.py` uses it.

Letters: B sequences of T tokens make $N = B T$ rows; C is the width of the stream, H
the number of query heads, K that of key/value heads, D the width of a head, F that of
the MLP.

Sources: Radford et al., 2019 (GPT-2); rmsnorm, rotary, swiglu: Touvron et al., 2023
(LLaMA); relu2: So et al., 2021 (Primer); qk_norm: Yang et al., 2025 (Qwen3).
"""

from typing import Any, NamedTuple

import numpy as np

from npllm.reference.attention import attention_backward, attention_forward
from npllm.reference.gelu import gelu_backward, gelu_forward
from npllm.reference.layernorm import layernorm_backward, layernorm_forward
from npllm.reference.linear import linear_backward, linear_forward
from npllm.reference.qk_norm import qk_norm_backward, qk_norm_forward
from npllm.reference.relu2 import relu2_backward, relu2_forward
from npllm.reference.rmsnorm import rmsnorm_backward, rmsnorm_forward
from npllm.reference.rotary import rotary_backward, rotary_forward, rotary_tables
from npllm.reference.swiglu import swiglu_backward, swiglu_forward


class AttendCache(NamedTuple):
    x: np.ndarray  # (N, C), normalised
    qk_norm: Any  # the cache of qk_norm_forward, or None
    attention: Any  # the cache of attention_forward
    attended: np.ndarray  # (N, H·D), before `out`


class MLPCache(NamedTuple):
    x: np.ndarray  # (N, C), normalised
    before: Any  # what the activation was applied to: up, (N, F), or SwiGLU's cache
    hidden: np.ndarray  # (N, F), after the activation


class BlockCache(NamedTuple):
    """What the backward needs, in the order in which the forward makes it."""

    norm_1: Any
    attention: AttendCache
    norm_2: Any
    mlp: MLPCache


def block_forward(config, p, name, x, T):
    """x: (N, C), rows of sequences of T tokens each. name: "blocks.0", "blocks.1", ...

    Returns y, (N, C), and the cache.
    """
    normed, norm_1 = norm_forward(config, p, f"{name}.norm_1", x)
    branch, attention = attend_forward(config, p, f"{name}.attention", normed, T)
    mid = x + branch
    normed, norm_2 = norm_forward(config, p, f"{name}.norm_2", mid)
    branch, mlp = mlp_forward(config, p, f"{name}.mlp", normed)
    return mid + branch, BlockCache(norm_1, attention, norm_2, mlp)


def block_backward(config, p, dp, name, dy, cache):
    """dx, (N, C), for the gradient dy, (N, C): `block_forward` read from below."""
    dnormed = mlp_backward(config, p, dp, f"{name}.mlp", dy, cache.mlp)
    dmid = dy + norm_backward(config, p, dp, f"{name}.norm_2", dnormed, cache.norm_2)
    dnormed = attend_backward(config, p, dp, f"{name}.attention", dmid, cache.attention)
    return dmid + norm_backward(config, p, dp, f"{name}.norm_1", dnormed, cache.norm_1)


def attend_forward(config, p, name, x, T):
    """x: (N, C), normalised. Returns what the branch adds, (N, C), and its cache."""
    H, K, D = config.n_head, config.kv_heads, config.head_width
    qkv, qk_norm = linear(p, f"{name}.qkv", x).reshape(-1, T, (H + 2 * K) * D), None
    if config.qk_norm:
        qkv, qk_norm = qk_norm_forward(qkv, *qk_norm_weights(p, name), H, K, config.norm_eps)
    if config.position == "rotary":
        qkv = rotary_forward(qkv, *rotary_tables(T, D, x.dtype, config.rope_theta), H, K)
    attended, attention = attention_forward(qkv, H, K)
    attended = attended.reshape(len(x), -1)
    return linear(p, f"{name}.out", attended), AttendCache(x, qk_norm, attention, attended)


def attend_backward(config, p, dp, name, dy, cache):
    """dx, (N, C), for the gradient dy, (N, C), of what the branch adds."""
    H, K, D = config.n_head, config.kv_heads, config.head_width
    B, T, _ = cache.attention.qkv.shape
    dattended = linear_gradient(p, dp, f"{name}.out", dy, cache.attended)
    dqkv = attention_backward(dattended.reshape(B, T, -1), cache.attention, H, K)
    if config.position == "rotary":
        dqkv = rotary_backward(dqkv, *rotary_tables(T, D, dy.dtype, config.rope_theta), H, K)
    if config.qk_norm:
        dqkv = qk_norm_backward(dqkv, cache.qk_norm, *qk_norm_weights(p, name), *qk_norm_weights(dp, name))
    return linear_gradient(p, dp, f"{name}.qkv", dqkv.reshape(B * T, -1), cache.x)


def mlp_forward(config, p, name, x):
    """x: (N, C), normalised. Returns what the branch adds, (N, C), and its cache."""
    up = linear(p, f"{name}.up", x)
    if config.mlp == "swiglu":
        hidden, before = swiglu_forward(linear(p, f"{name}.gate", x), up)
    else:
        forward = gelu_forward if config.mlp == "gelu" else relu2_forward
        hidden, before = forward(up), up
    return linear(p, f"{name}.down", hidden), MLPCache(x, before, hidden)


def mlp_backward(config, p, dp, name, dy, cache):
    """dx, (N, C), for the gradient dy, (N, C), of what the branch adds."""
    dhidden = linear_gradient(p, dp, f"{name}.down", dy, cache.hidden)
    if config.mlp != "swiglu":
        backward = gelu_backward if config.mlp == "gelu" else relu2_backward
        return linear_gradient(p, dp, f"{name}.up", backward(dhidden, cache.before), cache.x)
    dgate, dup = swiglu_backward(dhidden, cache.before)
    # x forks into gate and up, so their gradients add.
    dx = linear_gradient(p, dp, f"{name}.up", dup, cache.x)
    return dx + linear_gradient(p, dp, f"{name}.gate", dgate, cache.x)


# The operations with their parameters by name.


def linear(p, name, x):
    """x: (N, in). Returns y, (N, out)."""
    y, _ = linear_forward(x, p[f"{name}.weight"], p.get(f"{name}.bias"))
    return y


def linear_gradient(p, dp, name, dy, x):
    """dx, (N, in), for dy, (N, out), and the x that the layer was given."""
    return linear_backward(dy, x, p[f"{name}.weight"], dp[f"{name}.weight"], dp.get(f"{name}.bias"))


def qk_norm_weights(p, name):
    """The weights of the norms of queries and keys, (D,) each; of dp, the gradients."""
    return p[f"{name}.q_norm.weight"], p[f"{name}.k_norm.weight"]


def norm_forward(config, p, name, x):
    """x: (N, C). Returns y, (N, C), and the norm's cache."""
    if config.norm == "rmsnorm":
        return rmsnorm_forward(x, p[f"{name}.weight"], config.norm_eps)
    return layernorm_forward(x, p[f"{name}.weight"], p.get(f"{name}.bias"), config.norm_eps)


def norm_backward(config, p, dp, name, dy, cache):
    weight, dweight = p[f"{name}.weight"], dp[f"{name}.weight"]
    if config.norm == "rmsnorm":
        return rmsnorm_backward(dy, cache, weight, dweight)
    return layernorm_backward(dy, cache, weight, dweight, dp.get(f"{name}.bias"))
