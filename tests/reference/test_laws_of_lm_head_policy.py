"""Log-probability and entropy of the last layer: known answers, and their laws."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from op_checks import Draw, draw_targets


def test_two_tokens_by_hand(ops):
    """Row 0 has logits 0 and ln 3: probabilities 1/4 and 3/4. Row 1 is ignored."""
    x, weight, targets = np.array([[1.0], [5.0]]), np.array([[0.0], [math.log(3)]]), np.array([1, -1])
    log_probability, entropy, cache = ops.lm_head_policy_forward(x, weight, targets)
    H = math.log(4) / 4 + 3 * math.log(4 / 3) / 4
    np.testing.assert_allclose(log_probability, [math.log(3 / 4), 0], rtol=1e-14)
    np.testing.assert_allclose(entropy, [H, 0], rtol=1e-14)

    dweight = np.zeros((2, 1))
    dx = ops.lm_head_policy_backward(np.array([1.0, np.nan]), np.array([10.0, np.nan]), cache, weight, dweight)
    # dlogits: (-1/4, 1 - 3/4) - 10 (1/4 (-ln 4 + H), 3/4 (ln 3/4 + H)),
    # where -ln 4 + H = -3/4 ln 3.
    to_second = 1 / 4 - 10 * 3 / 16 * math.log(3)
    np.testing.assert_allclose(dweight, [[-to_second], [to_second]], rtol=1e-13)
    np.testing.assert_allclose(dx, [[to_second * math.log(3)], [0]], rtol=1e-13)


@pytest.mark.parametrize("V", [2, 65, 257])
def test_equal_logits_have_the_largest_entropy(ops, V):
    x, weight, targets = Draw(0)(2, 4), np.zeros((V, 4)), np.array([0, V - 1])
    log_probability, entropy, cache = ops.lm_head_policy_forward(x, weight, targets)
    np.testing.assert_allclose(log_probability, -math.log(V), rtol=1e-14)
    np.testing.assert_allclose(entropy, math.log(V), rtol=1e-14)
    dweight = np.zeros_like(weight)
    ops.lm_head_policy_backward(np.zeros(2), np.ones(2), cache, weight, dweight)
    np.testing.assert_allclose(dweight, 0, atol=1e-15, err_msg="there is no way up from the top")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_certainty_has_no_entropy_and_never_less(ops, dtype):
    """Entropy is never below 0, and 0 for logits far apart.

    Some logits are so large that exp would overflow. Others are nearly certain, where
    rounding decides the sign of the entropy.
    """
    x = np.array([[1e4], [3e1], [1e1], [8.0], [1e-3]], dtype)
    weight, targets = np.array([[1.0], [-1.0], [0.9]], dtype), np.array([0, 1, 0, 0, 0])
    log_probability, entropy, cache = ops.lm_head_policy_forward(x, weight, targets)
    assert log_probability[0] == entropy[0] == 0
    assert np.all(log_probability <= 0)
    assert np.all(entropy >= 0)
    dx = ops.lm_head_policy_backward(np.ones(5, dtype), np.ones(5, dtype), cache, weight, np.zeros_like(weight))
    assert np.isfinite(dx).all()


@given(N=st.integers(1, 6), C=st.integers(1, 5), V=st.integers(2, 9), seed=st.integers(0, 2**32 - 1))
def test_log_probability_is_minus_the_loss(ops, N, C, V, seed):
    draw = Draw(seed)
    x, weight, targets, d = draw(N, C), draw(V, C), draw_targets(draw, N, V), draw(N)
    nll, loss_cache = ops.lm_head_loss_forward(x, weight, targets)
    log_probability, _, cache = ops.lm_head_policy_forward(x, weight, targets)
    np.testing.assert_allclose(log_probability, -nll, rtol=1e-12, atol=1e-14)
    dweight, dweight_of_loss = np.zeros((2, V, C))
    dx = ops.lm_head_policy_backward(d, None, cache, weight, dweight)
    dx_of_loss = ops.lm_head_loss_backward(-d, loss_cache, weight, dweight_of_loss)
    np.testing.assert_allclose(dx, dx_of_loss, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(dweight, dweight_of_loss, rtol=1e-11, atol=1e-13)
