"""Every result, cached array and gradient has the dtype of the input.

A NumPy scalar of float64 among float32 arrays, such as np.sqrt(n), makes everything
after it float64. That takes twice the memory and half the speed, and raises no error.
"""

import numpy as np
import pytest

N, C, F, V = 6, 4, 5, 7
B, T, K, G, D = 2, 3, 2, 2, 4
H = K * G


def run_embedding(ops, array):
    tokens = np.array([[0, 1, 1], [2, 0, 1]])
    y, cache = ops.embedding_forward(tokens, array(V, C), array(T, C))
    return y, cache, ops.embedding_backward(y, cache, array(V, C), array(T, C))


def run_linear(ops, array, epilogue="none"):
    weight = array(C, F)
    x = array(N, C)
    y, z = ops.linear_forward(x, weight, array(F), epilogue=epilogue, residual=array(N, F))
    return y, z, ops.linear_backward(y, x, weight, array(C, F), array(F), pre_activation=z)


def run_linear_gelu(ops, array):
    return run_linear(ops, array, "gelu")


def run_linear_residual(ops, array):
    return run_linear(ops, array, "residual")


def run_gelu(ops, array):
    return ops.gelu_forward(array(N, F)), ops.gelu_backward(array(N, F), array(N, F))


def run_relu2(ops, array):
    return ops.relu2_forward(array(N, F)), ops.relu2_backward(array(N, F), array(N, F))


def run_swiglu(ops, array):
    y, cache = ops.swiglu_forward(array(N, F), array(N, F))
    return y, cache, ops.swiglu_backward(y, cache)


def run_layernorm(ops, array):
    y, cache = ops.layernorm_forward(array(N, C), array(C), array(C))
    return y, cache, ops.layernorm_backward(y, cache, array(C), array(C), array(C))


def run_rmsnorm(ops, array):
    y, cache = ops.rmsnorm_forward(array(N, C), array(C))
    return y, cache, ops.rmsnorm_backward(y, cache, array(C), array(C))


def run_add_norm(ops, array):
    total, y, cache = ops.add_norm_forward(array(N, C), array(N, C), array(C), array(C))
    return total, y, cache, ops.add_norm_backward(total, y, cache, array(C), array(C), array(C))


def run_add_rmsnorm(ops, array):
    total, y, cache = ops.add_norm_forward(array(N, C), array(N, C), array(C), norm="rmsnorm")
    return total, y, cache, ops.add_norm_backward(total, y, cache, array(C), array(C), norm="rmsnorm")


def run_rotary(ops, array):
    qkv = array(B, T, (H + 2 * K) * D)
    cos, sin = ops.rotary_tables(T, D, qkv.dtype)
    return cos, sin, ops.rotary_forward(qkv, cos, sin, H, K), ops.rotary_backward(qkv, cos, sin, H, K)


def run_qk_norm(ops, array):
    y, cache = ops.qk_norm_forward(array(B, T, (H + 2 * K) * D), array(D), array(D), H, K)
    return y, cache, ops.qk_norm_backward(y, cache, array(D), array(D), array(D), array(D))


def run_dropout(ops, array):
    key = ops.DropoutKey(1, 2, 3)
    return ops.dropout_forward(array(N, C), 0.1, key), ops.dropout_backward(array(N, C), 0.1, key)


def run_attention(ops, array, rate=0.0, starts=None):
    options = {"rate": rate, "key": ops.DropoutKey(1, 2, 3)}
    y, cache = ops.attention_forward(array(B, T, (H + 2 * K) * D), H, K, starts=starts, **options)
    return y, cache, ops.attention_backward(y, cache, H, K, **options)


def run_attention_dropout(ops, array):
    return run_attention(ops, array, rate=0.1)


def run_attention_packed(ops, array):
    return run_attention(ops, array, starts=np.array([[0, 1, 1], [0, 0, 2]], np.int32))


def run_cached_attention(ops, array):
    return ops.cached_attention_forward(array(B, T, (H + 2 * K) * D), array(B, K, 9, D), array(B, K, 9, D), 4, H, K)


def run_lm_head_loss(ops, array):
    weight, targets = array(V, C), np.array([0, 6, -1, 2, 2, 3])
    nll, cache = ops.lm_head_loss_forward(array(N, C), weight, targets)
    return nll, cache, ops.lm_head_loss_backward(nll, cache, weight, array(V, C))


def run_lm_head_policy(ops, array, dentropy=None):
    weight, targets = array(V, C), np.array([0, 6, -1, 2, 2, 3])
    log_probability, entropy, cache = ops.lm_head_policy_forward(array(N, C), weight, targets)
    dx = ops.lm_head_policy_backward(log_probability, dentropy, cache, weight, array(V, C))
    return log_probability, entropy, cache, dx


def run_lm_head_policy_entropy(ops, array):
    return run_lm_head_policy(ops, array, dentropy=array(N))


def run_lm_head_loss_and_grad(ops, array):
    targets = np.array([0, 6, -1, 2, 2, 3])
    _, dx = ops.lm_head_loss_and_grad(array(N, C), array(V, C), targets, 5, array(V, C))  # the loss is a Python float
    return dx


RUNS = [value for name, value in list(globals().items()) if name.startswith("run_")]


def float_dtypes(value):
    """The dtypes of all float arrays and NumPy scalars in nested tuples, as a set."""
    if isinstance(value, tuple):
        return {dtype for part in value for dtype in float_dtypes(part)}
    is_float = isinstance(value, np.ndarray | np.generic) and np.issubdtype(value.dtype, np.floating)
    return {value.dtype} if is_float else set()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.__name__.removeprefix("run_"))
def test_everything_has_the_dtype_of_the_input(ops, run, dtype):
    rng = np.random.default_rng(0)
    results = run(ops, lambda *shape: rng.standard_normal(shape).astype(dtype))
    assert float_dtypes(results) == {np.dtype(dtype)}
