"""Softmax cross-entropy: known answers, and its laws."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from op_checks import Draw, draw_targets


@pytest.mark.parametrize("V", [2, 65, 257])
def test_equal_logits_cost_ln_v(ops, V):
    x, weight = Draw(0)(3, 4), np.zeros((V, 4))
    nll, _ = ops.lm_head_loss_forward(x, weight, np.array([0, V // 2, V - 1]))
    np.testing.assert_allclose(nll, math.log(V), rtol=1e-14)


def test_two_tokens_by_hand(ops):
    """Row 0 has logits 0 and ln 3, hence probabilities 1/4 and 3/4.

    Row 1 has logits 0 and 2 ln 3, hence 1/10 and 9/10. Row 2 is ignored.
    """
    x, weight = np.array([[1.0], [2.0], [5.0]]), np.array([[0.0], [math.log(3)]])
    targets = np.array([1, 0, -1])
    nll, cache = ops.lm_head_loss_forward(x, weight, targets)
    np.testing.assert_allclose(nll, [math.log(4 / 3), math.log(10), 0], rtol=1e-14)

    dweight = np.zeros((2, 1))
    dx = ops.lm_head_loss_backward(np.array([1.0, 10.0, 100.0]), cache, weight, dweight)
    # dlogits of row 0: (1/4, 3/4 - 1); of row 1: 10 (1/10 - 1, 9/10); of row 2: 0.
    np.testing.assert_allclose(dx, [[-0.25 * math.log(3)], [9 * math.log(3)], [0]], rtol=1e-13)
    np.testing.assert_allclose(dweight, [[0.25 - 18], [-0.25 + 18]], rtol=1e-13)

    dweight[...] = 0
    loss, dx = ops.lm_head_loss_and_grad(x, weight, targets, 2, dweight)
    np.testing.assert_allclose(loss, (math.log(4 / 3) + math.log(10)) / 2, rtol=1e-14)
    np.testing.assert_allclose(dx, [[-0.125 * math.log(3)], [0.45 * math.log(3)], [0]], rtol=1e-13)
    np.testing.assert_allclose(dweight, [[0.125 - 0.9], [-0.125 + 0.9]], rtol=1e-13)


def test_huge_logits_do_not_overflow(ops):
    x, weight = np.array([[1e4], [1e4]]), np.array([[1.0], [-1.0]])
    nll, cache = ops.lm_head_loss_forward(x, weight, np.array([0, 1]))
    np.testing.assert_allclose(nll, [0, 2e4], rtol=1e-14)
    dweight = np.zeros((2, 1))
    np.testing.assert_allclose(ops.lm_head_loss_backward(np.ones(2), cache, weight, dweight), [[0], [2]], rtol=1e-14)
    np.testing.assert_allclose(dweight, [[1e4], [-1e4]], rtol=1e-14)


def test_an_ignored_row_has_no_gradient_whatever_its_weight(ops):
    draw = Draw(0)
    x, weight, dweight = draw(2, 3), draw(5, 3), np.zeros((5, 3))
    _, cache = ops.lm_head_loss_forward(x, weight, np.array([-1, -1]))
    dx = ops.lm_head_loss_backward(np.array([7.0, np.nan]), cache, weight, dweight)
    assert not dx.any()
    assert not dweight.any()


@given(N=st.integers(1, 6), C=st.integers(1, 5), V=st.integers(2, 9), seed=st.integers(0, 2**32 - 1))
def test_probability_taken_from_one_token_is_given_to_others(ops, N, C, V, seed):
    draw = Draw(seed)
    x, weight, targets = draw(N, C), draw(V, C), draw_targets(draw, N, V)
    dweight = np.zeros((V, C))
    ops.lm_head_loss_and_grad(x, weight, targets, N, dweight)
    np.testing.assert_allclose(dweight.sum(axis=0), 0, atol=1e-13)


@given(cut=st.integers(1, 7), seed=st.integers(0, 2**32 - 1))
def test_micro_batches_add_up_to_the_batch(ops, cut, seed):
    draw = Draw(seed)
    x, weight, targets = draw(8, 3), draw(6, 3), draw_targets(draw, 8, 6)
    n_targets = max(1, np.count_nonzero(targets >= 0))
    whole, parts = np.zeros((6, 3)), np.zeros((6, 3))
    loss, dx = ops.lm_head_loss_and_grad(x, weight, targets, n_targets, whole)
    loss_0, dx_0 = ops.lm_head_loss_and_grad(x[:cut], weight, targets[:cut], n_targets, parts)
    loss_1, dx_1 = ops.lm_head_loss_and_grad(x[cut:], weight, targets[cut:], n_targets, parts)
    np.testing.assert_allclose(loss_0 + loss_1, loss, rtol=1e-13)
    np.testing.assert_allclose(np.concatenate([dx_0, dx_1]), dx, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(parts, whole, rtol=1e-12, atol=1e-14)
