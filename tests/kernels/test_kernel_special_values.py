"""Kernels propagate NaN and infinity as the reference does, and only within their row.

Training relies on that. A spike that ends in NaN must reach the loss. A vector
instruction must neither drop it nor spread it to other rows.
"""

import numpy as np
import pytest

import npllm.kernels
import npllm.reference

N, C = 70, 35
BAD = [np.nan, np.inf, -np.inf]
SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e4, -1e4, 30.0, -30.0], np.float32)

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy warns about the values under test


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def with_bad(value, *shape):
    """A normal array with `value` at [3, -1], behind the whole vectors of the row."""
    array = normal(*shape)
    array[3, -1] = value
    return array


def assert_alike(computed, expected):
    np.testing.assert_allclose(computed, expected, rtol=1e-4, atol=1e-5, equal_nan=True)


def both(call):
    return call(npllm.kernels), call(npllm.reference)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_norm(norm, bad):
    x, weight, dy = with_bad(bad, N, C), normal(C), normal(N, C)

    def call(ops):
        forward, backward = getattr(ops, f"{norm}_forward"), getattr(ops, f"{norm}_backward")
        y, cache = forward(x, weight)
        return y, backward(dy, cache, weight, np.zeros(C, np.float32))

    for computed, expected in zip(*both(call), strict=True):
        assert_alike(computed, expected)
        assert np.isnan(computed[3]).any()
        assert np.isfinite(np.delete(computed, 3, axis=0)).all()


@pytest.mark.parametrize("bad", BAD)
def test_qk_norm(bad):
    """A bad query changes its own head only, and the gradient of the weight."""
    H, K, D = 2, 1, 7
    qkv, weight = normal(1, N, (H + 2 * K) * D), normal(D)
    qkv[0, 3, 2 * D - 1] = bad  # the last element of the second query

    def call(ops):
        dq_weight, dk_weight = np.zeros((2, D), np.float32)
        y, cache = ops.qk_norm_forward(qkv, weight, weight, H, K)
        dqkv = ops.qk_norm_backward(y, cache, weight, weight, dq_weight, dk_weight)
        return y.reshape(-1, D), dqkv.reshape(-1, D), dq_weight, dk_weight

    (y, dqkv, dq_weight, dk_weight), expected = both(call)
    head = 3 * (H + 2 * K) + 1
    for computed, by_the_book in zip((y, dqkv, dq_weight, dk_weight), expected, strict=True):
        assert_alike(computed, by_the_book)
    for rows in (y, dqkv):
        assert np.isnan(rows[head]).any()
        assert np.isfinite(np.delete(rows, head, axis=0)).all()
    assert np.isnan(dq_weight).any()
    assert np.isfinite(dk_weight).all()


@pytest.mark.parametrize("bad", BAD)
def test_column_sums(bad):
    dy = with_bad(bad, N, C)

    def call(ops):
        dbias = np.zeros(C, np.float32)
        ops.linear_backward(dy, normal(N, 4), normal(4, C), np.zeros((4, C), np.float32), dbias)
        return dbias

    computed, expected = both(call)
    assert_alike(computed, expected)
    assert not np.isfinite(computed[-1])


def test_elementwise():
    x = np.tile(SPECIAL, 7)  # so that each value occurs in a vector and in the remainder
    ones = np.ones_like(x)

    def call(ops):
        y, cache = ops.swiglu_forward(x, ones)
        activated = ops.gelu_forward(x), ops.relu2_forward(x), y
        return *activated, ops.gelu_backward(ones, x), ops.relu2_backward(ones, x), *ops.swiglu_backward(ones, cache)

    for computed, expected in zip(*both(call), strict=True):
        assert_alike(computed, expected)


@pytest.mark.parametrize("bad", BAD)
def test_loss(bad):
    x, weight, targets = with_bad(bad, N, C), normal(40, C), np.arange(N) % 40

    def call(ops):
        nll, _ = ops.lm_head_loss_forward(x, weight, targets)
        loss, dx = ops.lm_head_loss_and_grad(x, weight, targets, N, np.zeros_like(weight))
        log_probability, entropy, cache = ops.lm_head_policy_forward(x, weight, targets)
        dx_policy = ops.lm_head_policy_backward(np.ones_like(nll), nll, cache, weight, np.zeros_like(weight))
        return nll, dx, np.array(loss), log_probability, entropy, dx_policy

    for computed, expected in zip(*both(call), strict=True):
        np.testing.assert_array_equal(np.isnan(computed), np.isnan(expected))


@pytest.mark.parametrize("bad", BAD)
def test_attention(bad):
    B, T, H, D = 2, 40, 2, 5
    qkv = normal(B, T, 3 * H * D)
    qkv[1, 33, 2] = bad  # one query of the first head: it may change its own result only

    def call(ops):
        y, cache = ops.attention_forward(qkv, H, H)
        return y.reshape(B, T, H, D), ops.attention_backward(normal(B, T, H * D), cache, H, H).reshape(B, T, 3 * H, D)

    (y, dqkv), (expected_y, expected_dqkv) = both(call)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected_y))
    np.testing.assert_array_equal(np.isnan(dqkv), np.isnan(expected_dqkv))
    assert np.isnan(y[1, 33, 0]).all()


def test_optimizer_and_gradient_norm():
    grads = normal(20_000)
    grads[12_345] = np.nan
    assert np.isnan(npllm.kernels.gradient_norm(grads))
    params, m, v = normal(20_000), np.zeros(20_000, np.float32), np.zeros(20_000, np.float32)
    options = {"lr": 0.1, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "decoupled": True, "step": 1}
    npllm.kernels.adam_update(params, grads, m, v, **options)
    assert np.flatnonzero(np.isnan(params)).tolist() == [12_345]
