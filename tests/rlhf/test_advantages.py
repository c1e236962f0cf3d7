"""Advantages against slow definitions, and the column that gets a response's score."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npllm.rlhf.advantages import (
    generalised_advantages,
    group_relative,
    last_columns,
    leave_one_out,
    token_rewards,
    whitened,
)
from npllm.rlhf.sequences import join


@st.composite
def responses(draw):
    """Draw a mask, (B, T) bool, with one response per row, and a random generator.

    B is at most 4, T at most 9.
    """
    B, T = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    mask = np.zeros((B, T), bool)
    for row in mask:
        first = draw(st.integers(0, T - 1))
        row[first : draw(st.integers(first + 1, T))] = True
    return mask, np.random.default_rng(draw(st.integers(0, 2**32)))


@given(case=responses(), gamma=st.sampled_from([0.5, 0.9, 1.0]), lam=st.sampled_from([0.0, 0.95, 1.0]))
def test_generalised_advantages_are_a_sum_over_deltas(case, gamma, lam):
    """A_t is the sum over l of (gamma lambda)^l delta_(t+l).

    Rewards and values outside the response have no influence: they are NaN here.
    """
    mask, rng = case
    rewards, values = rng.standard_normal((2, *mask.shape))
    rewards[~mask] = values[~mask] = np.nan
    advantages, returns = generalised_advantages(rewards, values, mask, gamma, lam)
    for row in range(len(mask)):
        columns = np.flatnonzero(mask[row])
        r, V = rewards[row, columns], np.append(values[row, columns], 0.0)
        for i, t in enumerate(columns):
            terms = [(gamma * lam) ** (k - i) * (r[k] + gamma * V[k + 1] - V[k]) for k in range(i, len(columns))]
            assert advantages[row, t] == pytest.approx(sum(terms), rel=1e-10, abs=1e-12)
            assert returns[row, t] == pytest.approx(sum(terms) + V[i], rel=1e-10, abs=1e-12)
    assert not advantages[~mask].any()
    assert not returns[~mask].any()


@given(case=responses())
def test_with_gamma_and_lambda_1_a_return_is_what_is_still_to_come(case):
    mask, rng = case
    rewards, values = rng.standard_normal((2, *mask.shape))
    _, returns = generalised_advantages(rewards, values, mask, 1.0, 1.0)
    to_come = np.where(mask, rewards, 0.0)[:, ::-1].cumsum(axis=1)[:, ::-1]
    np.testing.assert_allclose(returns, np.where(mask, to_come, 0.0), atol=1e-12)


@given(case=responses())
def test_whitening_is_over_the_tokens_only(case):
    mask, rng = case
    advantages = np.where(mask, 3.0 + 5.0 * rng.standard_normal(mask.shape), 1e6)
    result = whitened(advantages, mask)
    assert result[mask].mean() == pytest.approx(0.0, abs=1e-9)
    variance = advantages[mask].var()
    assert result[mask].var() == pytest.approx(variance / (variance + 1e-8), rel=1e-6, abs=1e-12)
    assert not result[~mask].any()


def test_whitening_of_near_equals():
    """A variance of 1e-8 equals the 1e-8 added to it; equal advantages become 0."""
    np.testing.assert_allclose(whitened(np.array([[1e-4, -1e-4]]), np.ones((1, 2), bool)), [[0.5**0.5, -(0.5**0.5)]])
    assert not whitened(np.full((1, 2), 3.0), np.ones((1, 2), bool)).any()


@given(groups=st.integers(1, 4), group=st.integers(2, 5), seed=st.integers(0, 2**32))
def test_leave_one_out_and_group_relative(groups, group, seed):
    returns = np.random.default_rng(seed).standard_normal((groups, group))
    others = [[r - np.mean(np.delete(row, i)) for i, r in enumerate(row)] for row in returns]
    np.testing.assert_allclose(leave_one_out(returns.reshape(-1), group), np.ravel(others), atol=1e-12)
    scaled = [[(r - np.mean(row)) / (np.std(row) + 1e-6) for r in row] for row in returns]
    np.testing.assert_allclose(group_relative(returns.reshape(-1), group), np.ravel(scaled), rtol=0, atol=1e-8)


def test_a_group_of_equal_returns_says_nothing():
    assert not group_relative(np.full(8, 0.3), 4).any()
    assert not leave_one_out(np.full(8, 0.3), 4).any()


def test_the_score_stands_at_the_stop_token_itself():
    """Not one past it, and not at the last column (trl#3750)."""
    stop = 9
    sequences = join([[1, 2], [3]], [np.array([5, 6, stop]), np.array([7, stop])], 8)
    mask = sequences.targets >= 0
    ours, reference = np.full(mask.shape, -1.0), np.full(mask.shape, -3.0)
    rewards = token_rewards(np.array([10.0, 20.0]), ours, reference, mask, beta=0.5)
    np.testing.assert_array_equal(sequences.targets[np.arange(2), last_columns(mask)], stop)
    np.testing.assert_array_equal(last_columns(mask), sequences.last - 1)  # the column that predicts it
    assert rewards[0].tolist() == [0, -1, -1, 10 - 1, 0, 0, 0, 0]
    assert rewards[1].tolist() == [-1, 20 - 1, 0, 0, 0, 0, 0, 0]


@given(case=responses(), beta=st.sampled_from([0.0, 0.3]))
def test_rewards_of_tokens_add_up_to_score_minus_divergence(case, beta):
    mask, rng = case
    ours, reference = rng.standard_normal((2, *mask.shape))
    scores = rng.standard_normal(len(mask))
    total = token_rewards(scores, ours, reference, mask, beta).sum(axis=1)
    np.testing.assert_allclose(total, scores - beta * np.where(mask, ours - reference, 0.0).sum(axis=1), atol=1e-12)
