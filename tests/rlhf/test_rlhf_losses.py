"""The losses on plain arrays: gradients by differences, and values by hand."""

import numpy as np
import pytest
from gradient_check import check_gradients
from hypothesis import given
from hypothesis import strategies as st

from npllm.rlhf.losses import bradley_terry, clipped_policy, clipped_value, direct_preference, sigmoid

seeds = st.integers(0, 2**32)
sizes = st.integers(1, 12)


@given(n=sizes, seed=seeds)
def test_gradient_of_bradley_terry(n, seed):
    chosen, rejected = 3.0 * np.random.default_rng(seed).standard_normal((2, n))
    loss, *gradients = bradley_terry(chosen, rejected, n + 2)
    assert loss == pytest.approx(-np.log(1 / (1 + np.exp(rejected - chosen))).sum() / (n + 2))
    arrays = {"chosen": chosen, "rejected": rejected}
    gradients = dict(zip(arrays, gradients, strict=True))
    check_gradients(lambda: bradley_terry(chosen, rejected, n + 2)[0], arrays, gradients)


@given(n=sizes, seed=seeds, beta=st.sampled_from([0.1, 2.0]))
def test_gradient_of_direct_preference(n, seed, beta):
    chosen, rejected, *reference = 2.0 * np.random.default_rng(seed).standard_normal((4, n))
    loss, *gradients = direct_preference(chosen, rejected, *reference, beta)
    margin = beta * (chosen - rejected - reference[0] + reference[1])
    assert loss == pytest.approx(np.log(1 + np.exp(-margin)).mean())
    arrays = {"chosen": chosen, "rejected": rejected}
    gradients = dict(zip(arrays, gradients, strict=True))
    check_gradients(lambda: direct_preference(chosen, rejected, *reference, beta)[0], arrays, gradients)


@given(n=sizes, seed=seeds, clip=st.sampled_from([0.1, 0.2]))
def test_gradient_of_the_clipped_policy_loss(n, seed, clip):
    rng = np.random.default_rng(seed)
    old = rng.uniform(-4.0, -0.1, n)
    now = old + np.log(rng.choice([0.4, 0.95, 1.05, 1.7], n))
    advantage = rng.choice([-1.0, 1.0], n) * rng.uniform(0.5, 2.0, n)
    found = clipped_policy(now, old, advantage, clip, n + 3)
    ratio = np.exp(now) / np.exp(old)
    rewarded = np.minimum(advantage * ratio, advantage * np.minimum(np.maximum(ratio, 1 - clip), 1 + clip))
    assert found.loss == pytest.approx(-rewarded.sum() / (n + 3))
    np.testing.assert_allclose(found.ratio, ratio)
    check_gradients(
        lambda: clipped_policy(now, old, advantage, clip, n + 3).loss,
        {"log_probability": now},
        {"log_probability": found.dlog_probability},
    )
    np.testing.assert_array_equal(found.clipped, found.dlog_probability == 0.0)


@given(n=sizes, seed=seeds)
def test_gradient_of_the_clipped_value_loss(n, seed):
    rng = np.random.default_rng(seed)
    old = rng.standard_normal(n)
    value, target = old + rng.choice([-0.5, -0.1, 0.1, 0.5], n), old + rng.choice([-2.0, -0.23, 0.23, 2.0], n)
    found = clipped_value(value, old, target, 0.2, n + 3)
    limited = np.minimum(np.maximum(value, old - 0.2), old + 0.2)
    errors = np.maximum((value - target) ** 2, (limited - target) ** 2)
    assert found.loss == pytest.approx(0.5 * errors.sum() / (n + 3))
    check_gradients(
        lambda: clipped_value(value, old, target, 0.2, n + 3).loss, {"value": value}, {"value": found.dvalue}
    )


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.5, 2.0, -2.4, 0.0),  # beyond the clip in the rewarded direction: no gradient
        (0.5, -2.0, 1.6, 0.0),
        (0.5, 2.0, -1.0, -1.0),  # moved in the wrong direction: full gradient at any distance
        (1.5, -2.0, 3.0, 3.0),
        (1.1, 2.0, -2.2, -2.2),
        (1.0, 0.0, 0.0, 0.0),
    ],
)
def test_the_clip_stops_only_what_is_rewarded(ratio, advantage, loss, gradient):
    found = clipped_policy(np.log([ratio]), np.zeros(1), np.array([advantage]), 0.2, 1)
    assert found.loss == pytest.approx(loss)
    assert found.dlog_probability == pytest.approx([gradient])
    assert found.clipped.tolist() == [gradient == 0.0 and advantage != 0.0]


@pytest.mark.parametrize(
    ("value", "target", "loss", "gradient"),
    [
        (0.5, 2.0, 0.5 * 1.8**2, 0.0),  # nearer to the target than the clip allows: no gradient
        (0.5, -1.0, 0.5 * 1.5**2, 1.5),  # further away: the full error
        (0.1, 2.0, 0.5 * 1.9**2, -1.9),
    ],
)
def test_the_clip_of_the_value(value, target, loss, gradient):
    found = clipped_value(np.array([value]), np.zeros(1), np.array([target]), 0.2, 1)
    assert found.loss == pytest.approx(loss)
    assert found.dvalue == pytest.approx([gradient])


def test_no_overflow_far_from_zero():
    with np.errstate(over="raise"):
        assert sigmoid(np.array([-1e4, 0.0, 1e4])).tolist() == [0.0, 0.5, 1.0]
        loss, dchosen, drejected = bradley_terry(np.array([1e4, -1e4]), np.array([-1e4, 1e4]))
    assert (loss, dchosen.tolist(), drejected.tolist()) == (1e4, [0.0, -0.5], [0.0, 0.5])
