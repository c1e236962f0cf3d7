"""Dropout: the share of kept elements, their factor, and the address of a mask."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from op_checks import Draw

from npllm.reference.random import random_words

seeds = st.integers(0, 2**32 - 1)


def mask(ops, shape, rate, **address):
    key = ops.DropoutKey(**{"seed": 0, "step": 0, "stream": 0, **address})
    return ops.dropout_forward(np.ones(shape), rate, key)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_kept_fraction_is_binomial_and_the_mean_stays(ops, rate):
    n = 100_000
    factor = mask(ops, n, rate)
    sigma = np.sqrt(n * rate * (1 - rate))
    assert abs(np.count_nonzero(factor) - n * (1 - rate)) < 5 * sigma
    np.testing.assert_allclose(factor[factor != 0], 1 / (1 - rate), rtol=1e-15)
    assert abs(factor.mean() - 1) < 5 * sigma / n / (1 - rate)


def test_rate_0_changes_nothing(ops):
    x = Draw(0)(5, 7)
    np.testing.assert_array_equal(ops.dropout_forward(x, 0.0, ops.DropoutKey(1, 2, 3)), x)


@given(rate=st.sampled_from([0.1, 0.5]), seed=st.integers(2**32, 2**64 - 1), step=seeds, stream=seeds)
def test_the_mask_is_the_documented_comparison_of_words(ops, rate, seed, step, stream):
    kept = random_words(60, seed=seed, step=step, stream=stream, first=11) >= round(rate * 2**32)
    factor = mask(ops, (5, 12), rate, seed=seed, step=step, stream=stream, first=11)
    np.testing.assert_array_equal(factor.reshape(-1) != 0, kept)


@given(start=st.integers(0, 11), seed=seeds)
def test_the_mask_of_a_micro_batch_is_a_slice_of_the_batch(ops, start, seed):
    whole = mask(ops, (12, 5), 0.5, seed=seed)
    np.testing.assert_array_equal(mask(ops, (12 - start, 5), 0.5, seed=seed, first=start * 5), whole[start:])


@given(seed=seeds)
def test_the_backward_drops_what_the_forward_dropped(ops, seed):
    x, key = Draw(seed)(6, 7), ops.DropoutKey(seed, 1, 2, 3)
    np.testing.assert_array_equal(ops.dropout_backward(x, 0.3, key), ops.dropout_forward(x, 0.3, key))


def test_seed_step_and_site_each_change_the_mask(ops):
    addresses = [{}, {"seed": 1}, {"seed": 2**32}, {"step": 1}, {"stream": 1}]
    masks = [mask(ops, 1000, 0.5, **address) for address in addresses]
    for i, a in enumerate(masks):
        for b in masks[:i]:
            assert abs(np.count_nonzero(a == b) - 500) < 5 * np.sqrt(250)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_attention_weights_have_the_documented_elements(ops, rate):
    """The attention weights are dropped by the documented random words.

    With v = the unit matrix the output is the matrix of weights. With equal scores a
    weight of position t is 1 / (t + 1) before dropout.
    """
    B, K, G, T = 2, 2, 2, 6
    qkv = np.zeros((B, T, (K * G + 2 * K) * T))
    qkv[..., (K * G + K) * T :] = np.tile(np.eye(T), (1, K))
    y, _ = ops.attention_forward(qkv, K * G, K, rate=rate, key=ops.DropoutKey(7, 8, 9, first=10))
    weights = y.reshape(B, T, K * G, T).transpose(0, 2, 1, 3)  # (B, H, T, T)

    words = random_words(weights.size, seed=7, step=8, stream=9, first=10).reshape(weights.shape)
    kept = (words >= round(rate * 2**32)) / (1 - rate)
    np.testing.assert_allclose(weights, kept * np.tril(np.ones((T, T))) / np.arange(1, T + 1)[:, None], rtol=1e-14)


def test_attention_of_a_micro_batch_drops_what_the_batch_drops(ops):
    B, T, H, D = 3, 5, 2, 4
    qkv = Draw(0)(B, T, 3 * H * D)
    whole, _ = ops.attention_forward(qkv, H, H, rate=0.5, key=ops.DropoutKey(1, 2, 3))
    part, _ = ops.attention_forward(qkv[1:], H, H, rate=0.5, key=ops.DropoutKey(1, 2, 3, first=H * T * T))
    np.testing.assert_allclose(part, whole[1:], rtol=1e-13)
