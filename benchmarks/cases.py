"""One call of every operation, at the shapes of a small model's training step.

Matrices are scaled so that activations are of order one, as in a model: GELU of large negative numbers is subnormal,
and processors are very slow with those.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from npllm.reference import DropoutKey

B, T, C, H, V = 12, 64, 128, 4, 65  # the shakespeare-char recipe
N, D, F = B * T, C // H, 4 * C


class Case(NamedTuple):
    """An operation. call(ops, empty) returns the arrays that a backend computes; flops: of its matrix products."""

    name: str
    shape: str
    call: Callable[[Any, Any], tuple]
    flops: float = 0.0


def operation_cases(dtype) -> list[Case]:
    """All operations with O(1) inputs of the dtype."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape).astype(dtype)

    x, branch, hidden = normal(N, C), normal(N, C), normal(N, F)
    weight, bias = normal(C), normal(C)
    up, up_bias, down = normal(C, F) / C**0.5, normal(F), normal(F, C) / F**0.5
    qkv, dy = normal(B, T, 3 * C), normal(B, T, C)
    table, positions, head = normal(V, C), normal(T, C), normal(V, C) / C**0.5
    tokens = rng.integers(0, V, (B, T)).astype(np.int32)
    targets = tokens.reshape(-1)
    key = DropoutKey(seed=0, step=1, site=2)

    def linear(ops, empty, inputs, matrix, offset, epilogue="none", residual=None):
        y, cache = ops.linear_forward(inputs, matrix, offset, epilogue=epilogue, residual=residual, empty=empty)
        dmatrix, doffset = np.zeros_like(matrix), np.zeros_like(offset)
        return y, ops.linear_backward(y, cache, matrix, dmatrix, doffset, empty=empty), dmatrix, doffset

    def layernorm(ops, empty):
        y, cache = ops.layernorm_forward(x, weight, bias, empty=empty)
        dweight, dbias = np.zeros_like(weight), np.zeros_like(bias)
        return y, ops.layernorm_backward(branch, cache, weight, dweight, dbias, empty=empty), dweight, dbias

    def rmsnorm(ops, empty):
        y, cache = ops.rmsnorm_forward(x, weight, empty=empty)
        dweight = np.zeros_like(weight)
        return y, ops.rmsnorm_backward(branch, cache, weight, dweight, empty=empty), dweight

    def add_norm(ops, empty):
        total, y, cache = ops.add_norm_forward(x, branch, weight, bias, empty=empty)
        dweight, dbias = np.zeros_like(weight), np.zeros_like(bias)
        return total, y, ops.add_norm_backward(x, branch, cache, weight, dweight, dbias, empty=empty), dweight, dbias

    def swiglu(ops, empty):
        y, cache = ops.swiglu_forward(hidden, hidden, empty=empty)
        return (y, *ops.swiglu_backward(hidden, cache, empty=empty))

    def attention(ops, empty, rate=0.0):
        y, cache = ops.attention_forward(qkv, H, H, rate=rate, key=key, empty=empty)
        return y, ops.attention_backward(dy, cache, H, H, rate=rate, key=key, empty=empty)

    def rotary(ops, empty):
        cos, sin = ops.rotary_tables(T, D, dtype)
        y = ops.rotary_forward(qkv, cos, sin, H, H, empty=empty)
        return y, ops.rotary_backward(y, cos, sin, H, H, empty=empty)

    def embedding(ops, empty):
        y, cache = ops.embedding_forward(tokens, table, positions, empty=empty)
        dtable, dpositions = np.zeros_like(table), np.zeros_like(positions)
        ops.embedding_backward(dy, cache, dtable, dpositions, empty=empty)
        return y, dtable, dpositions

    def lm_head_loss(ops, empty):
        dhead = np.zeros_like(head)
        loss, dx = ops.lm_head_loss_and_grad(x, head, targets, N, dhead, empty=empty)
        return np.asarray(loss), dx, dhead

    flat = {}  # of each backend: params, grads, m, v

    def adamw(ops, empty):
        params, grads, m, v = flat.setdefault(ops, np.tile(np.abs(up).reshape(-1), (4, 12)))
        rates = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
        ops.adam_update(params, grads, m, v, **rates, decoupled=True, step=3)
        return params, grads, m, v

    linear_flops, attention_flops, head_flops = 6.0 * N * C * F, 6.0 * B * H * T * T * D, 6.0 * N * C * V
    rows = f"{N}×{C}"
    return [
        Case("linear", f"{N}×{C}×{F}", lambda ops, empty: linear(ops, empty, x, up, up_bias), linear_flops),
        Case(
            "linear + GELU", f"{N}×{C}×{F}", lambda ops, empty: linear(ops, empty, x, up, up_bias, "gelu"), linear_flops
        ),
        Case(
            "linear + residual",
            f"{N}×{F}×{C}",
            lambda ops, empty: linear(ops, empty, hidden, down, bias, "residual", branch),
            linear_flops,
        ),
        Case("LayerNorm", rows, layernorm),
        Case("RMSNorm", rows, rmsnorm),
        Case("add + LayerNorm", rows, add_norm),
        Case("SwiGLU", f"{N}×{F}", swiglu),
        Case("rotary", f"{B}×{T}×{3 * C}", rotary),
        Case("dropout", rows, lambda ops, empty: (ops.dropout_forward(x, 0.1, key, empty=empty),)),
        Case("attention", f"{B}×{H}×{T}×{D}", attention, attention_flops),
        Case("attention + dropout", f"{B}×{H}×{T}×{D}", lambda ops, empty: attention(ops, empty, 0.1), attention_flops),
        Case("embedding", f"{B}×{T}×{C}", embedding),
        Case("head + cross-entropy", f"{N}×{C}×{V}", lm_head_loss, head_flops),
        Case("AdamW", f"{12 * C * F}", adamw),
    ]
