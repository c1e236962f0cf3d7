"""Steps of the optimizers that were computed by hand, and the norm of the gradient."""

import math

import numpy as np
import pytest
from op_checks import check_two_adam_steps

from npllm.reference.muon import LinearWeight

PLAIN_ADAM = {
    "lr": 0.1,
    "beta1": 0.9,
    "beta2": 0.95,
    "eps": 1e-300,  # as good as none, but it prevents 0 / 0
    "weight_decay": 0.0,
    "decoupled": True,
    "step": 1,
}


def first_adam_step(ops, params, grads, **options):
    params, grads = np.array(params), np.array(grads)
    ops.adam_update(params, grads, np.zeros_like(params), np.zeros_like(params), **{**PLAIN_ADAM, **options})
    return params


def test_two_adam_steps_by_hand(ops):
    check_two_adam_steps(ops)


def test_the_bias_correction_makes_the_first_step_lr_times_the_sign(ops):
    params = first_adam_step(ops, [1.0, 1.0, 1.0, 1.0], [1e-6, -1e-6, 1e6, 0.0])
    np.testing.assert_allclose(params, [0.9, 1.1, 0.9, 1.0], rtol=1e-14)


def test_eps_stands_outside_the_root(ops):
    """g = 1 gives a step of 0.1 * 1 / (1 + 3) = 0.025.

    With eps inside the root it would be 0.1 / sqrt(1 + 3) = 0.05.
    """
    np.testing.assert_allclose(first_adam_step(ops, [1.0], [1.0], eps=3.0), [0.975], rtol=1e-14)


def test_adam_divides_weight_decay_by_the_gradients_size_and_adamw_does_not(ops):
    """Adam loses L2 decay in its normalisation, AdamW does not.

    Adam: g + 0.5 p is 102 and 3, and the first step is 0.1 times its sign either way.
    AdamW: the step has another 0.1 * 0.5 p.
    """
    params, grads = [4.0, 4.0], [100.0, 1.0]
    with_l2 = first_adam_step(ops, params, grads, weight_decay=0.5, decoupled=False)
    np.testing.assert_allclose(with_l2, [4 - 0.1, 4 - 0.1], rtol=1e-14)
    decoupled = first_adam_step(ops, params, grads, weight_decay=0.5, decoupled=True)
    np.testing.assert_allclose(decoupled, [4 - 0.1 - 0.2, 4 - 0.1 - 0.2], rtol=1e-14)


def test_l2_can_turn_the_first_step_of_adam_around(ops):
    """Adam goes down because g + 0.5 p = -1 + 0.5 * 4 = 1 > 0.

    AdamW follows the gradient of -1 upwards.
    """
    with_l2 = first_adam_step(ops, [4.0], [-1.0], weight_decay=0.5, decoupled=False)
    np.testing.assert_allclose(with_l2, [4 - 0.1], rtol=1e-14)
    decoupled = first_adam_step(ops, [4.0], [-1.0], weight_decay=0.5, decoupled=True)
    np.testing.assert_allclose(decoupled, [4 + 0.1 - 0.2], rtol=1e-14)


def test_adamw_decays_without_a_gradient(ops):
    params = first_adam_step(ops, [2.0, -4.0], [0.0, 0.0], weight_decay=0.5, decoupled=True)
    np.testing.assert_allclose(params, [2 * 0.95, -4 * 0.95], rtol=1e-14)


@pytest.mark.parametrize("decoupled", [True, False])
def test_the_clipping_factor_scales_the_gradient_and_nothing_else(ops, decoupled):
    def run(grads, grad_scale):
        params, m, v = np.array([3.0, -2.0]), np.array([0.5, 0.1]), np.array([0.4, 0.3])
        options = {**PLAIN_ADAM, "step": 7, "eps": 1e-3, "weight_decay": 0.5, "decoupled": decoupled}
        ops.adam_update(params, np.array(grads), m, v, **options, grad_scale=grad_scale)
        return np.concatenate([params, m, v])

    np.testing.assert_allclose(run([1.0, 8.0], 0.25), run([0.25, 2.0], 1.0), rtol=1e-15)


def test_the_optimisers_reset_the_gradient(ops):
    grads, zeros = np.ones(3), np.zeros(3)
    ops.adam_update(np.ones(3), grads, zeros.copy(), zeros.copy(), **PLAIN_ADAM)
    np.testing.assert_array_equal(grads, zeros)
    grads = np.ones(3)
    ops.sgd_update(np.ones(3), grads, zeros.copy(), lr=0.1, momentum=0.9, weight_decay=0.0)
    np.testing.assert_array_equal(grads, zeros)


def test_two_sgd_steps_by_hand(ops):
    """Momentum 0.9, lr 0.1, weight decay 0.5, clipping factor 0.5.

    Step 1, p = 1, g = 4:
        u = 0.5*4 + 0.5*1 = 2.5                       p = 1 - 0.25 = 0.75
    Step 2, g = 2:
        u = 0.9*2.5 + 0.5*2 + 0.5*0.75 = 3.625        p = 0.75 - 0.3625 = 0.3875
    """
    params, velocity = np.array([1.0]), np.zeros(1)
    for gradient, expected_velocity, expected in [(4.0, 2.5, 0.75), (2.0, 3.625, 0.3875)]:
        options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.5, "grad_scale": 0.5}
        ops.sgd_update(params, np.array([gradient]), velocity, **options)
        np.testing.assert_allclose(velocity, [expected_velocity], rtol=1e-14)
        np.testing.assert_allclose(params, [expected], rtol=1e-14)


def muon_step(ops, gradient, **options):
    """The step of a first update with the learning rate 1."""
    n_in, width = np.shape(gradient)
    params, grads, m = np.zeros(n_in * width), np.array(gradient).reshape(-1), np.zeros(n_in * width)
    weight = LinearWeight(0, n_in, (width,))
    ops.muon_update(params, grads, m, [weight], lr=1.0, momentum=0.5, weight_decay=0.0, **options)
    return -params.reshape(n_in, width)


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4), (1, 5), (5, 1)])
def test_muon_makes_singular_values_nearly_equal_and_keeps_their_vectors(ops, shape):
    """Five iterations bring those above 1 % of the norm to between 0.68 and 1.13."""
    draw = np.random.default_rng(sum(shape))
    left, _, right = np.linalg.svd(draw.normal(size=shape), full_matrices=False)
    values = np.geomspace(1.0, 0.02, min(shape))
    step = muon_step(ops, (left * values) @ right) / max(1.0, shape[1] / shape[0]) ** 0.5
    found = left.T @ step @ right.T
    assert np.all((np.diag(found) > 0.68) & (np.diag(found) < 1.14))
    np.testing.assert_allclose(found, np.diag(np.diag(found)), atol=1e-12)


def test_the_length_of_a_gradient_does_not_matter_to_muon(ops):
    gradient = np.random.default_rng(0).normal(size=(3, 7))
    long, short = muon_step(ops, 1e3 * gradient), muon_step(ops, gradient, grad_scale=0.1)
    np.testing.assert_allclose(long, short, rtol=1e-5)


def test_matrices_side_by_side_have_steps_of_their_own(ops):
    gradient = np.random.default_rng(0).normal(size=(4, 9))
    gradient[:, :6] *= 100.0  # together, the last matrix would hardly move
    params, m, weight = np.zeros(36), np.zeros(36), LinearWeight(0, 4, (6, 3))
    ops.muon_update(params, gradient.reshape(-1).copy(), m, [weight], lr=1.0, momentum=0.5, weight_decay=0.0)
    step = -params.reshape(4, 9)
    np.testing.assert_allclose(step[:, :6], muon_step(ops, gradient[:, :6]), rtol=1e-9)
    np.testing.assert_allclose(step[:, 6:], muon_step(ops, gradient[:, 6:]), rtol=1e-9)


def test_muon_changes_its_weights_and_nothing_else(ops):
    """Two weights with gaps before, between and behind them, at different rates."""
    gradient = np.random.default_rng(0).normal(size=40)
    params, grads, m = np.zeros(40), gradient.copy(), np.zeros(40)
    weights = [LinearWeight(3, 2, (3,), 1.0), LinearWeight(12, 5, (2, 2), 0.5)]
    ops.muon_update(params, grads, m, weights, lr=1.0, momentum=0.5, weight_decay=0.0)
    outside = np.r_[0:3, 9:12, 32:40]
    np.testing.assert_array_equal(grads[outside], gradient[outside])
    np.testing.assert_array_equal(np.delete(grads, outside), 0.0)
    np.testing.assert_array_equal(np.concatenate([params[outside], m[outside]]), 0.0)
    np.testing.assert_allclose(-params[3:9].reshape(2, 3), muon_step(ops, gradient[3:9].reshape(2, 3)), rtol=1e-9)
    step, of_second = -params[12:32].reshape(5, 4), gradient[12:32].reshape(5, 4)
    np.testing.assert_allclose(step[:, 2:], 0.5 * muon_step(ops, of_second[:, 2:]), rtol=1e-9)


def test_a_matrix_without_gradient_only_decays_under_muon(ops):
    params, weight = np.full(6, 4.0), LinearWeight(0, 3, (2,))
    ops.muon_update(params, np.zeros(6), np.zeros(6), [weight], lr=0.1, momentum=0.9, weight_decay=0.5)
    np.testing.assert_allclose(params, np.full(6, 4.0 * 0.95), rtol=1e-14)


def test_two_muon_steps_by_hand(ops):
    """Momentum 0.5, lr 0.1, weight decay 0.5, clipping factor 0.5, one element.

    Its singular value is |u|, so u / |u| is the sign of u. The polynomial, applied five
    times, maps it to s = 0.696 with this sign.
    Step 1, p = 1, g = 4:    m = 0.5*2 = 1       u = 0.5*1 + 0.5*2 = 1.5 > 0
    Step 2, g = -8:          m = 0.5 - 2 = -1.5  u = -0.75 - 2 = -2.75 < 0
    """
    s = 1.0
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    params, m, weight = np.array([1.0]), np.zeros(1), LinearWeight(0, 1, (1,))
    first = 0.95 - 0.1 * s
    for gradient, expected_m, expected in [(4.0, 1.0, first), (-8.0, -1.5, 0.95 * first + 0.1 * s)]:
        grads = np.array([gradient])
        ops.muon_update(params, grads, m, [weight], lr=0.1, momentum=0.5, weight_decay=0.5, grad_scale=0.5)
        np.testing.assert_allclose(m, [expected_m], rtol=1e-14)
        np.testing.assert_allclose(params, [expected], rtol=1e-6)
        np.testing.assert_array_equal(grads, [0.0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradient_norm_of_3_and_4_is_5(ops, dtype):
    grads = np.zeros(10_000, dtype)
    grads[[5, 9_999]] = 3.0, -4.0
    norm = ops.gradient_norm(grads)
    assert isinstance(norm, float)
    assert norm == 5.0
    assert ops.gradient_norm(grads[:3]) == 0.0


def test_gradient_norm_does_not_overflow_in_float32(ops):
    np.testing.assert_allclose(ops.gradient_norm(np.array([3e30, 4e30], np.float32)), 5e30, rtol=1e-6)


def test_gradient_norm_adds_chunks_of_4096_from_first_to_last(ops):
    """The order of the sum shows because float64 loses small terms after a large one.

    2^54 + 1 = 2^54, since float64 has steps of 4 there. After 2^54, chunks of 1 are
    lost; before it they add up.
    """
    grads = np.zeros(65 * 4096)
    grads[::4096] = 1.0
    grads[0] = 2.0**27
    assert ops.gradient_norm(grads) == 2.0**27
    grads[0], grads[-4096] = 1.0, 2.0**27
    assert ops.gradient_norm(grads) == math.sqrt(2**54 + 64) > 2.0**27
    # A chunk of 2 * 1.25^2 = 3.125 adds 4. Half a chunk, added by itself, would be
    # lost.
    grads[...] = 0.0
    grads[0] = 2.0**27
    grads[4096::4096] = grads[8191::4096] = 1.25
    assert ops.gradient_norm(grads) == math.sqrt(2**54 + 64 * 4)
