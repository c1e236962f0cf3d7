"""A case for each operation: it calls the operation with random arrays of any size.

A case takes `ops`, the operations of one backend, and returns all results by name. The
same sizes and seed give both backends the same numbers. Gradients of parameters start
from random numbers, not from zero, so that a kernel that overwrites them is seen.
Optional arguments are drawn too.
"""

from typing import NamedTuple

import numpy as np

from npllm.reference import DropoutKey
from npllm.reference.muon import LinearWeight


class Sizes(NamedTuple):
    B: int = 2
    T: int = 5
    K: int = 2  # key/value heads
    G: int = 2  # query heads for each key/value head
    D: int = 6
    F: int = 7
    V: int = 9

    @property
    def H(self):
        return self.K * self.G

    @property
    def C(self):
        return self.H * self.D

    @property
    def N(self):
        return self.B * self.T


class Draw:
    """draw(2, 3) returns a (2, 3) array of standard normal numbers.

    The same seed gives the same arrays in either dtype. The numbers are rounded to
    `dtype` and have the type `compute_dtype`.
    """

    def __init__(self, seed, dtype, compute_dtype=None):
        self.rng = np.random.default_rng(seed)
        self.dtype, self.compute_dtype = np.dtype(dtype), np.dtype(compute_dtype or dtype)

    def __call__(self, *shape):
        return self.rng.standard_normal(shape).astype(self.dtype).astype(self.compute_dtype)

    def integers(self, low, high, *shape):
        return self.rng.integers(low, high, shape).astype(self.rng.choice([np.int32, np.int64]))

    def maybe(self, *shape):
        """An array or None, each half of the time; the generator advances alike."""
        array = self(*shape)
        return array if self.rng.random() < 0.5 else None

    def starts(self, B, T):
        """Where the document of each position starts, (B, T) int32.

        The rows are cut into documents of about 20 positions.
        """
        cuts = self.rng.random((B, T)) < 0.05
        return np.maximum.accumulate(np.where(cuts, np.arange(T), 0), axis=1).astype(np.int32)

    def key(self):
        low, high, stream, step, first = (int(n) for n in self.rng.integers(0, 2**32, 5))
        return DropoutKey(seed=low + (high << 32), step=step, stream=stream, first=first)


def embedding(ops, s, draw, empty):
    tokens, dy = draw.integers(0, s.V, s.B, s.T), draw(s.B, s.T, s.C)
    dtable, table = draw(s.V, s.C), draw(s.V, s.C)
    position_table, dposition_table = draw.maybe(s.T + 3, s.C), draw(s.T + 3, s.C)
    first, positions = int(draw.integers(0, 4)), draw.integers(0, s.T + 3, s.B, s.T).astype(np.int32)
    options = {"first_position": first, "positions": positions if draw.rng.random() < 0.5 else None, "empty": empty}
    y, cache = ops.embedding_forward(tokens, table, position_table, **options)
    ops.embedding_backward(dy, cache, dtable, None if position_table is None else dposition_table, empty=empty)
    return {"y": y, "dtable": dtable, "dposition_table": dposition_table}


def linear(ops, s, draw, empty, epilogue="none"):
    x, weight, residual, dy = draw(s.N, s.C), draw(s.C, s.F), draw(s.N, s.F), draw(s.N, s.F)
    bias, dbias, dweight = draw.maybe(s.F), draw(s.F), draw(s.C, s.F)
    options = {"epilogue": epilogue, "residual": residual if epilogue == "residual" else None, "empty": empty}
    y, z = ops.linear_forward(x, weight, bias, **options)
    dbias_or_none = None if bias is None else dbias
    dx = ops.linear_backward(dy, x, weight, dweight, dbias_or_none, pre_activation=z, empty=empty)
    return {"y": y, "dx": dx, "dweight": dweight, "dbias": dbias}


def linear_gelu(ops, s, draw, empty):
    return linear(ops, s, draw, empty, "gelu")


def linear_residual(ops, s, draw, empty):
    return linear(ops, s, draw, empty, "residual")


def gelu(ops, s, draw, empty):
    x, dy = 3 * draw(s.B, s.T, s.F), draw(s.B, s.T, s.F)
    return {"y": ops.gelu_forward(x, empty=empty), "dx": ops.gelu_backward(dy, x, empty=empty)}


def relu2(ops, s, draw, empty):
    x, dy = 3 * draw(s.B, s.T, s.F), draw(s.B, s.T, s.F)
    return {"y": ops.relu2_forward(x, empty=empty), "dx": ops.relu2_backward(dy, x, empty=empty)}


def swiglu(ops, s, draw, empty):
    gate, up, dy = 3 * draw(s.N, s.F), draw(s.N, s.F), draw(s.N, s.F)
    y, cache = ops.swiglu_forward(gate, up, empty=empty)
    dgate, dup = ops.swiglu_backward(dy, cache, empty=empty)
    return {"y": y, "dgate": dgate, "dup": dup}


def layernorm(ops, s, draw, empty):
    x, weight, bias, dy = draw(s.N, s.C), draw(s.C), draw.maybe(s.C), draw(s.N, s.C)
    dweight, dbias = draw(s.C), draw(s.C)
    y, cache = ops.layernorm_forward(x, weight, bias, empty=empty)
    dx = ops.layernorm_backward(dy, cache, weight, dweight, None if bias is None else dbias, empty=empty)
    return {"y": y, "rstd": cache.rstd, "dx": dx, "dweight": dweight, "dbias": dbias}


def rmsnorm(ops, s, draw, empty):
    x, weight, dy, dweight = draw(s.N, s.C), draw(s.C), draw(s.N, s.C), draw(s.C)
    y, cache = ops.rmsnorm_forward(x, weight, empty=empty)
    dx = ops.rmsnorm_backward(dy, cache, weight, dweight, empty=empty)
    return {"y": y, "rstd": cache.rstd, "dx": dx, "dweight": dweight}


def add_norm(ops, s, draw, empty, norm="layernorm"):
    x, branch, dtotal, dy = draw(s.N, s.C), draw(s.N, s.C), draw(s.N, s.C), draw(s.N, s.C)
    weight, bias, dweight, dbias = draw(s.C), draw.maybe(s.C), draw(s.C), draw(s.C)
    if norm == "rmsnorm":
        bias = None
    total, y, cache = ops.add_norm_forward(x, branch, weight, bias, norm=norm, empty=empty)
    dbias_or_none = None if bias is None else dbias
    dx = ops.add_norm_backward(dtotal, dy, cache, weight, dweight, dbias_or_none, norm=norm, empty=empty)
    return {"total": total, "y": y, "rstd": cache.rstd, "dx": dx, "dweight": dweight, "dbias": dbias}


def add_rmsnorm(ops, s, draw, empty):
    return add_norm(ops, s, draw, empty, "rmsnorm")


def attention(ops, s, draw, empty, rate=0.0, packed=False):
    qkv, dy = draw(s.B, s.T, (s.H + 2 * s.K) * s.D), draw(s.B, s.T, s.C)
    options = {"rate": rate, "key": draw.key() if rate else None, "empty": empty}
    y, cache = ops.attention_forward(qkv, s.H, s.K, starts=draw.starts(s.B, s.T) if packed else None, **options)
    return {"y": y, "dqkv": ops.attention_backward(dy, cache, s.H, s.K, **options)}


def attention_dropout(ops, s, draw, empty):
    return attention(ops, s, draw, empty, rate=0.3)


def attention_packed_dropout(ops, s, draw, empty):
    return attention(ops, s, draw, empty, rate=0.3, packed=True)


def cached_attention(ops, s, draw, empty):
    qkv, first = draw(s.B, s.T, (s.H + 2 * s.K) * s.D), int(draw.integers(0, 4))
    keys, values = draw(s.B, s.K, s.T + 5, s.D), draw(s.B, s.K, s.T + 5, s.D)
    starts = draw.integers(0, first + s.T, s.B).astype(np.int32) if draw.rng.random() < 0.5 else None
    y = ops.cached_attention_forward(qkv, keys, values, first, s.H, s.K, starts=starts, empty=empty)
    return {"y": y, "keys": keys, "values": values}


def rotary(ops, s, draw, empty):
    D = 2 * s.D
    qkv, dy = draw(s.B, s.T, (s.H + 2 * s.K) * D), draw(s.B, s.T, (s.H + 2 * s.K) * D)
    cos, sin = ops.rotary_tables(s.T, D, qkv.dtype)
    y = ops.rotary_forward(qkv, cos, sin, s.H, s.K, empty=empty)
    return {"y": y, "dqkv": ops.rotary_backward(dy, cos, sin, s.H, s.K, empty=empty)}


def qk_norm(ops, s, draw, empty):
    qkv, dy = draw(s.B, s.T, (s.H + 2 * s.K) * s.D), draw(s.B, s.T, (s.H + 2 * s.K) * s.D)
    q_weight, k_weight, dq_weight, dk_weight = draw(s.D), draw(s.D), draw(s.D), draw(s.D)
    y, cache = ops.qk_norm_forward(qkv, q_weight, k_weight, s.H, s.K, empty=empty)
    dqkv = ops.qk_norm_backward(dy, cache, q_weight, k_weight, dq_weight, dk_weight, empty=empty)
    return {"y": y, "rstd": cache.rstd, "dqkv": dqkv, "dq_weight": dq_weight, "dk_weight": dk_weight}


def dropout(ops, s, draw, empty):
    x, dy, key = draw(s.B, s.T, s.C), draw(s.B, s.T, s.C), draw.key()
    y = ops.dropout_forward(x, 0.3, key, empty=empty)
    return {"y": y, "dx": ops.dropout_backward(dy, 0.3, key, empty=empty)}


def lm_head_loss(ops, s, draw, empty):
    x, weight, dnll, dweight = draw(s.N, s.C), draw(s.V, s.C), draw(s.N), draw(s.V, s.C)
    weight *= s.C**-0.5  # otherwise nearly all probabilities would be 0 or 1
    targets = draw.integers(-1, s.V, s.N)
    nll, cache = ops.lm_head_loss_forward(x, weight, targets, empty=empty)
    dx = ops.lm_head_loss_backward(dnll, cache, weight, dweight, empty=empty)
    return {"nll": nll, "dx": dx, "dweight": dweight}


def lm_head_loss_and_grad(ops, s, draw, empty):
    x, weight, dweight, targets = draw(s.N, s.C), draw(s.V, s.C), draw(s.V, s.C), draw.integers(-1, s.V, s.N)
    weight *= s.C**-0.5
    loss, dx = ops.lm_head_loss_and_grad(x, weight, targets, s.N + 3, dweight, empty=empty)
    return {"loss": np.array(loss), "dx": dx, "dweight": dweight}


def lm_head_policy(ops, s, draw, empty):
    x, weight, dweight, targets = draw(s.N, s.C), draw(s.V, s.C), draw(s.V, s.C), draw.integers(-1, s.V, s.N)
    weight *= s.C**-0.5
    dlog_probability, dentropy = draw(s.N), draw.maybe(s.N)
    log_probability, entropy, cache = ops.lm_head_policy_forward(x, weight, targets, empty=empty)
    dx = ops.lm_head_policy_backward(dlog_probability, dentropy, cache, weight, dweight, empty=empty)
    return {"log_probability": log_probability, "entropy": entropy, "dx": dx, "dweight": dweight}


def gradient_norm(ops, s, draw, empty):
    grads = draw(s.N * s.C)
    return {"norm": np.array(ops.gradient_norm(grads)), "sums": ops.sums_of_squares(grads)}


def adam(ops, s, draw, empty):
    params, grads, m, v = draw(s.N * s.C), draw(s.N * s.C), draw(s.N * s.C), draw(s.N * s.C) ** 2
    options = {"lr": 0.1, "beta1": 0.9, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.2, "grad_scale": 0.7}
    decoupled, step = bool(draw.integers(0, 2)), int(draw.integers(1, 9))
    ops.adam_update(params, grads, m, v, **options, decoupled=decoupled, step=step)
    return {"params": params, "grads": grads, "m": m, "v": v}


def sgd(ops, s, draw, empty):
    params, grads, velocity = draw(s.N * s.C), draw(s.N * s.C), draw(s.N * s.C)
    ops.sgd_update(params, grads, velocity, lr=0.1, momentum=0.9, weight_decay=0.2, grad_scale=0.7)
    return {"params": params, "grads": grads, "velocity": velocity}


def muon(ops, s, draw, empty):
    """Three matrices, wide or tall, whichever the sizes say."""
    size = s.N * s.C
    params, grads, m = draw(2 * size), draw(2 * size), draw(2 * size)
    weights = LinearWeight(0, s.N, (s.C - s.C // 2, s.C // 2)), LinearWeight(size, s.N, (s.C,), 0.5)
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.2, "grad_scale": 0.7}
    ops.muon_update(params, grads, m, weights, **options, empty=empty)
    return {"params": params, "grads": grads, "m": m}


CASES = {
    case.__name__: case
    for case in (
        embedding, linear, linear_gelu, linear_residual, gelu, relu2, swiglu, layernorm, rmsnorm, add_norm,
        add_rmsnorm, attention, attention_dropout, attention_packed_dropout, cached_attention, rotary, qk_norm,
        dropout, lm_head_loss, lm_head_loss_and_grad, lm_head_policy, gradient_norm, adam, muon, sgd,
    )
}  # fmt: skip
