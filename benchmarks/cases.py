"""One call of every operation, at the shapes of a small model's training step.

Matrices are scaled so that activations are of order one, as in a model. GELU of large
negative numbers would be subnormal, which processors compute very slowly.
"""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from npllm.reference import DropoutKey
from npllm.reference.muon import LinearWeight

B, T, C, H, V = 12, 64, 128, 4, 65  # the shakespeare-char recipe
N, D, F = B * T, C // H, 4 * C
KEY = DropoutKey(seed=0, step=1, stream=2)


class Case(NamedTuple):
    """An operation to time.

    call(ops, empty) returns the arrays that a backend computes. flops: floating-point
    operations of its matrix products.
    """

    name: str
    shape: str
    call: Callable[[Any, Any], tuple]
    flops: float = 0.0


class Inputs:
    """The arguments of the operations."""

    def __init__(self, dtype):
        rng = np.random.default_rng(0)

        def normal(*shape):
            return rng.normal(size=shape).astype(dtype)

        self.x, self.branch, self.hidden = normal(N, C), normal(N, C), normal(N, F)
        self.weight, self.bias = normal(C), normal(C)
        self.up, self.up_bias, self.down = normal(C, F) / C**0.5, normal(F), normal(F, C) / F**0.5
        self.qkv, self.dy = normal(B, T, 3 * C), normal(B, T, C)
        self.table, self.positions, self.head = normal(V, C), normal(T, C), normal(V, C) / C**0.5
        self.tokens = rng.integers(0, V, (B, T)).astype(np.int32)
        self.new = normal(1, 1, 3 * C)  # the position that generation adds
        self.keys, self.values = normal(1, H, T, D), normal(1, H, T, D)
        # (optimiser, backend) -> four flat arrays of a small model's size; the call
        # changes them.
        self.flat = defaultdict(lambda: np.tile(np.abs(self.up).reshape(-1), (4, 12)))


def operation_cases(dtype) -> list[Case]:
    """Return all operations, forward and backward, on arrays of the dtype."""
    inputs = Inputs(dtype)
    into, out_of = (inputs.x, inputs.up, inputs.up_bias), (inputs.hidden, inputs.down, inputs.bias)
    linear_flops, attention_flops, head_flops = 6.0 * N * C * F, 6.0 * B * H * T * T * D, 6.0 * N * C * V
    rows, heads = f"{N}×{C}", f"{B}×{H}×{T}×{D}"
    cases = [
        ("linear", f"{N}×{C}×{F}", partial(_linear, *into), linear_flops),
        ("linear + GELU", f"{N}×{C}×{F}", partial(_linear, *into, epilogue="gelu"), linear_flops),
        (
            "linear + residual",
            f"{N}×{F}×{C}",
            partial(_linear, *out_of, epilogue="residual", residual=inputs.branch),
            linear_flops,
        ),
        ("GELU", f"{N}×{F}", partial(_gelu, inputs)),
        ("ReLU²", f"{N}×{F}", partial(_relu2, inputs)),
        ("LayerNorm", rows, partial(_layernorm, inputs)),
        ("RMSNorm", rows, partial(_rmsnorm, inputs)),
        ("add + LayerNorm", rows, partial(_add_norm, inputs)),
        ("SwiGLU", f"{N}×{F}", partial(_swiglu, inputs)),
        ("rotary", f"{B}×{T}×{3 * C}", partial(_rotary, inputs)),
        ("QK-norm", f"{B}×{T}×{3 * C}", partial(_qk_norm, inputs)),
        ("dropout", rows, partial(_dropout, inputs)),
        ("attention", heads, partial(_attention, inputs, rate=0.0), attention_flops),
        ("attention + dropout", heads, partial(_attention, inputs, rate=0.1), attention_flops),
        ("cached attention", f"1×{H}×1×{D}, {T} kept", partial(_cached_attention, inputs)),
        ("embedding", f"{B}×{T}×{C}", partial(_embedding, inputs)),
        ("head + cross-entropy", f"{N}×{C}×{V}", partial(_lm_head_loss, inputs), head_flops),
        ("head + entropy", f"{N}×{C}×{V}", partial(_lm_head_policy, inputs), 8.0 * N * C * V),
        ("gradient norm", f"{12 * C * F}", partial(_gradient_norm, inputs)),
        ("AdamW", f"{12 * C * F}", partial(_adamw, inputs)),
        ("Muon", f"{C}×{F}", partial(_muon, inputs)),
        ("SGD", f"{12 * C * F}", partial(_sgd, inputs)),
    ]
    return [Case(*case) for case in cases]


def _linear(x, weight, bias, ops, empty, epilogue="none", residual=None):
    y, z = ops.linear_forward(x, weight, bias, epilogue=epilogue, residual=residual, empty=empty)
    dweight, dbias = np.zeros_like(weight), np.zeros_like(bias)
    dx = ops.linear_backward(y, x, weight, dweight, dbias, pre_activation=z, empty=empty)
    return y, dx, dweight, dbias


def _gelu(inputs, ops, empty):
    return ops.gelu_forward(inputs.hidden, empty=empty), ops.gelu_backward(inputs.hidden, inputs.hidden, empty=empty)


def _relu2(inputs, ops, empty):
    return ops.relu2_forward(inputs.hidden, empty=empty), ops.relu2_backward(inputs.hidden, inputs.hidden, empty=empty)


def _layernorm(inputs, ops, empty):
    y, cache = ops.layernorm_forward(inputs.x, inputs.weight, inputs.bias, empty=empty)
    dweight, dbias = np.zeros_like(inputs.weight), np.zeros_like(inputs.bias)
    return y, ops.layernorm_backward(inputs.branch, cache, inputs.weight, dweight, dbias, empty=empty), dweight, dbias


def _rmsnorm(inputs, ops, empty):
    y, cache = ops.rmsnorm_forward(inputs.x, inputs.weight, empty=empty)
    dweight = np.zeros_like(inputs.weight)
    return y, ops.rmsnorm_backward(inputs.branch, cache, inputs.weight, dweight, empty=empty), dweight


def _add_norm(inputs, ops, empty):
    x, branch, weight = inputs.x, inputs.branch, inputs.weight
    total, y, cache = ops.add_norm_forward(x, branch, weight, inputs.bias, empty=empty)
    dweight, dbias = np.zeros_like(weight), np.zeros_like(inputs.bias)
    return total, y, ops.add_norm_backward(x, branch, cache, weight, dweight, dbias, empty=empty), dweight, dbias


def _swiglu(inputs, ops, empty):
    y, cache = ops.swiglu_forward(inputs.hidden, inputs.hidden, empty=empty)
    return (y, *ops.swiglu_backward(inputs.hidden, cache, empty=empty))


def _rotary(inputs, ops, empty):
    cos, sin = ops.rotary_tables(T, D, inputs.qkv.dtype)
    y = ops.rotary_forward(inputs.qkv, cos, sin, H, H, empty=empty)
    return y, ops.rotary_backward(y, cos, sin, H, H, empty=empty)


def _qk_norm(inputs, ops, empty):
    weight, dq_weight, dk_weight = inputs.weight[:D], np.zeros_like(inputs.weight[:D]), np.zeros_like(inputs.weight[:D])
    y, cache = ops.qk_norm_forward(inputs.qkv, weight, weight, H, H, empty=empty)
    dqkv = ops.qk_norm_backward(inputs.qkv, cache, weight, weight, dq_weight, dk_weight, empty=empty)
    return y, dqkv, dq_weight, dk_weight


def _dropout(inputs, ops, empty):
    y = ops.dropout_forward(inputs.x, 0.1, KEY, empty=empty)
    return y, ops.dropout_backward(y, 0.1, KEY, empty=empty)


def _attention(inputs, ops, empty, rate):
    y, cache = ops.attention_forward(inputs.qkv, H, H, rate=rate, key=KEY, empty=empty)
    return y, ops.attention_backward(inputs.dy, cache, H, H, rate=rate, key=KEY, empty=empty)


def _cached_attention(inputs, ops, empty):
    return (ops.cached_attention_forward(inputs.new, inputs.keys, inputs.values, T - 1, H, H, empty=empty),)


def _embedding(inputs, ops, empty):
    y, cache = ops.embedding_forward(inputs.tokens, inputs.table, inputs.positions, empty=empty)
    dtable, dpositions = np.zeros_like(inputs.table), np.zeros_like(inputs.positions)
    ops.embedding_backward(inputs.dy, cache, dtable, dpositions, empty=empty)
    return y, dtable, dpositions


def _lm_head_loss(inputs, ops, empty):
    dhead = np.zeros_like(inputs.head)
    loss, dx = ops.lm_head_loss_and_grad(inputs.x, inputs.head, inputs.tokens.reshape(-1), N, dhead, empty=empty)
    return np.asarray(loss), dx, dhead


def _lm_head_policy(inputs, ops, empty):
    """Its backward recomputes the logits: one product more than the cross-entropy's."""
    dhead = np.zeros_like(inputs.head)
    *outputs, cache = ops.lm_head_policy_forward(inputs.x, inputs.head, inputs.tokens.reshape(-1), empty=empty)
    return *outputs, ops.lm_head_policy_backward(*outputs, cache, inputs.head, dhead, empty=empty), dhead


def _gradient_norm(inputs, ops, empty):
    return (np.asarray(ops.gradient_norm(inputs.flat[None][0])),)


def _adamw(inputs, ops, empty):
    params, grads, m, v = inputs.flat["adam", ops]
    rates = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
    ops.adam_update(params, grads, m, v, **rates, decoupled=True, step=3)
    return params, grads, m, v


def _muon(inputs, ops, empty):
    params, grads, m = (flat[: C * F] for flat in inputs.flat["muon", ops][:3])
    weight = LinearWeight(0, C, (F,))
    ops.muon_update(params, grads, m, [weight], lr=1e-3, momentum=0.95, weight_decay=0.1, empty=empty)
    return params, grads, m


def _sgd(inputs, ops, empty):
    params, grads, velocity, _ = inputs.flat["sgd", ops]
    ops.sgd_update(params, grads, velocity, lr=1e-3, momentum=0.9, weight_decay=0.1)
    return params, grads, velocity
