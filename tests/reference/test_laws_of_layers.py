"""Operations on single rows or elements: known answers and defining laws."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from op_checks import Draw

seeds = st.integers(0, 2**32 - 1)


def test_embedding_by_hand(ops):
    tokens = np.array([[1, 0], [1, 1]])
    table, positions = np.array([[1.0], [2.0]]), np.array([[10.0], [20.0], [30.0]])
    y, cache = ops.embedding_forward(tokens, table, positions, first_position=1)
    np.testing.assert_array_equal(y, [[[22.0], [31.0]], [[22.0], [32.0]]])

    dtable, dpositions = np.zeros((2, 1)), np.zeros((3, 1))
    ops.embedding_backward(np.array([[[1.0], [2.0]], [[3.0], [4.0]]]), cache, dtable, dpositions)
    np.testing.assert_array_equal(dtable, [[2.0], [1.0 + 3.0 + 4.0]])
    np.testing.assert_array_equal(dpositions, [[0.0], [1.0 + 3.0], [2.0 + 4.0]])


def test_linear_by_hand(ops):
    x, weight = np.array([[1.0, 2.0, 3.0]]), np.array([[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]])
    y, _ = ops.linear_forward(x, weight, np.array([100.0, 200.0]))
    np.testing.assert_array_equal(y, [[1 + 4 + 9 + 100, 4 + 10 + 18 + 200]])

    dweight, dbias = np.zeros((3, 2)), np.zeros(2)
    dx = ops.linear_backward(np.array([[1.0, 10.0]]), x, weight, dweight, dbias)
    np.testing.assert_array_equal(dx, [[1 + 40, 2 + 50, 3 + 60]])
    np.testing.assert_array_equal(dweight, [[1, 10], [2, 20], [3, 30]])
    np.testing.assert_array_equal(dbias, [1, 10])


@given(seed=seeds)
def test_an_epilogue_is_a_composition(ops, seed):
    draw = Draw(seed)
    x, weight, bias, residual = draw(5, 4), draw(4, 3), draw(3), draw(5, 3)
    z, _ = ops.linear_forward(x, weight, bias)
    activated, _ = ops.linear_forward(x, weight, bias, epilogue="gelu")
    added, _ = ops.linear_forward(x, weight, bias, epilogue="residual", residual=residual)
    np.testing.assert_allclose(activated, ops.gelu_forward(z), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(added, residual + z, rtol=1e-12, atol=1e-14)


def test_gelu_at_known_points(ops):
    """tanh(sqrt(2/pi) (1 + 0.044715)) = 0.6823839812; gelu(1) = (1 + that) / 2.

    The other values come from the same formula.
    """
    x = np.array([0.0, 1.0, -1.0, 2.0, -2.0, 30.0, -30.0])
    known = [0.0, 0.8411919906, -0.1588080094, 1.9545976941, -0.0454023059, 30.0, 0.0]
    np.testing.assert_allclose(ops.gelu_forward(x), known, rtol=0, atol=5e-11)
    np.testing.assert_allclose(ops.gelu_backward(np.ones(3), np.array([0.0, 30.0, -30.0])), [0.5, 1.0, 0.0])


def test_gelu_is_near_x_times_the_normal_distribution(ops):
    x = np.linspace(-6, 6, 241)
    exact = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x]
    np.testing.assert_allclose(ops.gelu_forward(x), exact, rtol=0, atol=5e-4)  # the tanh form is off by at most 4.7e-4


def test_gelu_keeps_x_between_its_two_halves(ops):
    x = np.linspace(0, 9, 100)
    np.testing.assert_allclose(ops.gelu_forward(x) - ops.gelu_forward(-x), x, rtol=1e-14)


def test_relu2_at_known_points(ops):
    """The slope at 0 and at -0 is 0."""
    x = np.array([-3.0, -0.0, 0.0, 0.5, 3.0])
    np.testing.assert_array_equal(ops.relu2_forward(x), [0.0, 0.0, 0.0, 0.25, 9.0])
    np.testing.assert_array_equal(ops.relu2_backward(np.full(5, 10.0), x), [0.0, 0.0, 0.0, 10.0, 60.0])


def test_swiglu_at_known_points(ops):
    """sigma(ln 3) = 3/4 and sigma(-ln 3) = 1/4."""
    ln3 = math.log(3)
    gate, up = np.array([0.0, ln3, -ln3, 1000.0, -1000.0]), np.array([5.0, 8.0, 8.0, 2.0, 2.0])
    y, cache = ops.swiglu_forward(gate, up)
    np.testing.assert_allclose(y, [0.0, 6 * ln3, -2 * ln3, 2000.0, 0.0], rtol=1e-14)
    dgate, dup = ops.swiglu_backward(np.ones(5), cache)
    np.testing.assert_allclose(dup, [0.0, 0.75 * ln3, -0.25 * ln3, 1000.0, 0.0], rtol=1e-14)
    by_hand = [2.5, 6 * (1 + ln3 / 4), 2 * (1 - ln3 * 3 / 4), 2.0, 0.0]
    np.testing.assert_allclose(dgate, by_hand, rtol=1e-14)


def test_layernorm_by_hand(ops):
    """Mean 2 and variance 1; with eps = 3 the divisor is sqrt(1 + 3) = 2."""
    y, _ = ops.layernorm_forward(np.array([[1.0, 3.0]]), np.array([10.0, 100.0]), np.array([1.0, 2.0]), 3.0)
    np.testing.assert_array_equal(y, [[-5.0 + 1.0, 50.0 + 2.0]])


def test_rmsnorm_by_hand(ops):
    """Mean square 25 / 4; with eps = 2.75 the divisor is sqrt(6.25 + 2.75) = 3."""
    y, _ = ops.rmsnorm_forward(np.array([[3.0, 4.0, 0.0, 0.0]]), np.array([1.0, 3.0, 1.0, 1.0]), 2.75)
    np.testing.assert_allclose(y, [[1.0, 4.0, 0.0, 0.0]], rtol=1e-15)


@given(seed=seeds, shift=st.floats(-1e6, 1e6), scale=st.floats(0.1, 1e3))
def test_layernorm_gives_mean_0_and_variance_1_whatever_the_shift_and_scale(ops, seed, shift, scale):
    x, one = Draw(seed)(4, 8), np.ones(8)
    y, _ = ops.layernorm_forward(x, one, None, 1e-14)
    moved, _ = ops.layernorm_forward(scale * x + shift, one, None, 1e-14)
    np.testing.assert_allclose(y.mean(axis=1), 0, atol=1e-13)
    np.testing.assert_allclose(y.var(axis=1), 1, rtol=1e-10)
    # 1e6 + 0.1 x keeps 9 digits of x. A variance from E[x^2] - E[x]^2 would keep 3
    # digits.
    np.testing.assert_allclose(moved, y, rtol=0, atol=1e-7)


@given(seed=seeds, scale=st.floats(0.1, 1e3))
def test_rmsnorm_gives_mean_square_1_whatever_the_scale(ops, seed, scale):
    x, one = Draw(seed)(4, 8), np.ones(8)
    y, _ = ops.rmsnorm_forward(x, one, 1e-14)
    np.testing.assert_allclose((y**2).mean(axis=1), 1, rtol=1e-10)
    np.testing.assert_allclose(ops.rmsnorm_forward(scale * x, one, 1e-14)[0], y, rtol=1e-10)


@given(seed=seeds)
def test_rmsnorm_of_a_centred_row_is_layernorm(ops, seed):
    draw = Draw(seed)
    x, weight = draw(4, 8), draw(8)
    x -= x.mean(axis=1, keepdims=True)
    layernormed, _ = ops.layernorm_forward(x, weight)
    np.testing.assert_allclose(ops.rmsnorm_forward(x, weight)[0], layernormed, rtol=1e-10, atol=1e-12)


@given(seed=seeds)
def test_the_gradient_of_a_norm_has_no_part_along_what_the_norm_cannot_see(ops, seed):
    draw = Draw(seed)
    x, weight, dy = draw(4, 8), draw(8), draw(4, 8)
    y, cache = ops.layernorm_forward(x, np.ones(8), None, 1e-14)
    dx = ops.layernorm_backward(dy, cache, weight, np.zeros(8))
    np.testing.assert_allclose(dx.sum(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose((dx * y).sum(axis=1), 0, atol=1e-11)


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_add_norm_is_the_sum_and_its_norm(ops, norm):
    draw = Draw(0)
    x, branch, weight, bias = draw(3, 6), draw(3, 6), draw(6), draw(6)
    if norm == "layernorm":
        total, y, _ = ops.add_norm_forward(x, branch, weight, bias, 0.5, norm=norm)
        expected, _ = ops.layernorm_forward(x + branch, weight, bias, 0.5)
    else:
        total, y, _ = ops.add_norm_forward(x, branch, weight, eps=0.5, norm=norm)
        expected, _ = ops.rmsnorm_forward(x + branch, weight, 0.5)
    np.testing.assert_array_equal(total, x + branch)
    np.testing.assert_allclose(y, expected, rtol=1e-13)
