"""Attention, rotary positions and QK-norm: known answers, causality, grouped heads,
cache."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from op_checks import Draw, check_packed_attention, split_packed

seeds = st.integers(0, 2**32 - 1)
heads = st.sampled_from([(1, 1), (2, 1), (1, 3), (2, 2)])  # K key/value heads, G query heads for each of them


def test_attention_by_hand(ops):
    """D = 4, so a score is q.k / 2.

    Position 1 has the scores 0 and 2 ln 3 / 2, hence the weights 1/4 and 3/4.
    """
    q = [[7.0, 7.0, 7.0, 7.0], [2 * math.log(3), 0.0, 0.0, 0.0]]
    k = [[0.0, 0.0, 0.0, 0.0], [1.0, 9.0, 9.0, 9.0]]
    v = [[4.0, 0.0, 8.0, -4.0], [8.0, 4.0, 0.0, -4.0]]
    y, _ = ops.attention_forward(np.concatenate([q, k, v], axis=1)[None], 1, 1)
    np.testing.assert_allclose(y, [[[4.0, 0.0, 8.0, -4.0], [7.0, 3.0, 2.0, -4.0]]], rtol=1e-14)


def test_huge_scores_do_not_overflow(ops):
    qkv = np.array([[[1e3, 1e3, 1.0], [1e3, -1e3, 2.0]]])
    y, cache = ops.attention_forward(qkv, 1, 1)
    np.testing.assert_allclose(y, [[[1.0], [1.0]]], rtol=1e-14)
    assert np.isfinite(ops.attention_backward(np.ones_like(y), cache, 1, 1)).all()


@given(t=st.integers(0, 6), KG=heads, seed=seeds)
def test_a_position_does_not_see_later_ones(ops, t, KG, seed):
    (K, G), D, T, draw = KG, 3, 8, Draw(seed)
    qkv = draw(2, T, (K * G + 2 * K) * D)
    later = qkv.copy()
    later[:, t + 1 :] = 100 * draw(2, T - t - 1, qkv.shape[-1])
    y, cache = ops.attention_forward(qkv, K * G, K)
    np.testing.assert_array_equal(ops.attention_forward(later, K * G, K)[0][:, : t + 1], y[:, : t + 1])

    dy = draw(*y.shape)
    dy[:, t + 1 :] = 0
    assert not ops.attention_backward(dy, cache, K * G, K)[:, t + 1 :].any()


@given(KG=heads, seed=seeds)
def test_equal_keys_give_the_mean_of_the_values_so_far(ops, KG, seed):
    (K, G), D, T = KG, 3, 8
    qkv = Draw(seed)(1, T, (K * G + 2 * K) * D)
    parts = split_packed(qkv, K * G, K)
    parts["k"][...] = parts["k"][:, :1]
    y, _ = ops.attention_forward(qkv, K * G, K)
    so_far = np.cumsum(parts["v"].reshape(T, K, 1, D), axis=0) / np.arange(1, T + 1)[:, None, None, None]
    np.testing.assert_allclose(y.reshape(T, K, G, D), np.broadcast_to(so_far, (T, K, G, D)), rtol=1e-12, atol=1e-14)


@given(K=st.integers(1, 3), G=st.integers(1, 3), T=st.integers(1, 8), seed=seeds)
def test_grouped_heads_are_full_heads_with_their_keys_and_values_repeated(ops, K, G, T, seed):
    draw, B, D = Draw(seed), 2, 4
    qkv, dy = draw(B, T, (K * G + 2 * K) * D), draw(B, T, K * G * D)

    def repeat(part):  # (B, T, K·D) -> (B, T, K·G·D)
        return part.reshape(B, T, K, 1, D).repeat(G, axis=3).reshape(B, T, -1)

    parts = split_packed(qkv, K * G, K)
    full = np.concatenate([parts["q"], repeat(parts["k"]), repeat(parts["v"])], axis=-1)
    y, cache = ops.attention_forward(qkv, K * G, K)
    y_full, cache_full = ops.attention_forward(full, K * G, K * G)
    np.testing.assert_allclose(y, y_full, rtol=1e-12, atol=1e-14)

    gradient = split_packed(ops.attention_backward(dy, cache, K * G, K), K * G, K)
    gradient_full = split_packed(ops.attention_backward(dy, cache_full, K * G, K * G), K * G, K * G)
    np.testing.assert_allclose(gradient["q"], gradient_full["q"], rtol=1e-11, atol=1e-13)
    for name in ("k", "v"):
        sum_over_group = gradient_full[name].reshape(B, T, K, G, D).sum(axis=3).reshape(B, T, -1)
        np.testing.assert_allclose(gradient[name], sum_over_group, rtol=1e-11, atol=1e-13)


@given(cuts=st.sets(st.integers(1, 8)), KG=heads, seed=seeds)
def test_cached_attention_in_any_chunks_is_attention(ops, cuts, KG, seed):
    (K, G), B, T, D = KG, 2, 9, 4
    qkv = Draw(seed)(B, T, (K * G + 2 * K) * D)
    key_cache, value_cache = np.full((2, B, K, T + 3, D), np.nan)  # NaN shows any read of unwritten memory
    edges = [0, *sorted(cuts), T]
    chunks = [
        ops.cached_attention_forward(np.ascontiguousarray(qkv[:, a:b]), key_cache, value_cache, a, K * G, K)
        for a, b in zip(edges, edges[1:], strict=False)
    ]
    y, _ = ops.attention_forward(qkv, K * G, K)
    np.testing.assert_allclose(np.concatenate(chunks, axis=1), y, rtol=1e-12, atol=1e-14)
    parts = split_packed(qkv, K * G, K)
    for name, cache in (("k", key_cache), ("v", value_cache)):
        np.testing.assert_array_equal(cache[:, :, :T], parts[name].reshape(B, T, K, D).transpose(0, 2, 1, 3))
        assert np.isnan(cache[:, :, T:]).all()


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4), KG=heads, seed=seeds)
@example(lengths=[40, 1, 70, 33], KG=(2, 1), seed=0)  # documents that start and end inside a kernel's blocks
def test_documents_in_one_row_do_not_see_each_other(ops, lengths, KG, seed):
    check_packed_attention(ops, lengths, *KG, 5, seed)


@given(padding=st.lists(st.integers(0, 5), min_size=1, max_size=3), cut=st.integers(1, 6), KG=heads, seed=seeds)
@example(padding=[0, 30], cut=20, KG=(2, 2), seed=0)
def test_cached_attention_does_not_see_the_padding_before_a_row(ops, padding, cut, KG, seed):
    """Each row has the output that it has alone and without padding.

    A position of padding attends to itself only, so its output is its own value.
    """
    (K, G), B, D, draw = KG, len(padding), 4, Draw(seed)
    T = max(padding) + 2
    qkv, starts = draw(B, T, (K * G + 2 * K) * D), np.array(padding, np.int32)
    key_cache, value_cache = np.full((2, B, K, T + 3, D), np.nan)
    edges = sorted({0, min(cut, T), T})
    chunks = [
        ops.cached_attention_forward(
            np.ascontiguousarray(qkv[:, a:b]), key_cache, value_cache, a, K * G, K, starts=starts
        )
        for a, b in zip(edges, edges[1:], strict=False)
    ]
    y = np.concatenate(chunks, axis=1)
    itself = split_packed(qkv, K * G, K)["v"].reshape(B, T, K, D).repeat(G, axis=2).reshape(y.shape)
    for row, start in enumerate(padding):
        alone, _ = ops.attention_forward(np.ascontiguousarray(qkv[row : row + 1, start:]), K * G, K)
        np.testing.assert_allclose(y[row, start:], alone[0], rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(y[row, :start], itself[row, :start], rtol=1e-14)


def test_rotary_by_hand(ops):
    """Width 4, theta = 100: two pairs of elements.

    Pair 0 (elements 0 and 2) rotates by 1 radian per position, and pair 1 by
    100^(-2/4) = 0.1.
    """
    cos, sin = ops.rotary_tables(3, 4, np.float64, theta=100.0)
    qkv = np.tile([1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 5.0, 6.0, 7.0, 8.0], (1, 3, 1))  # q, k, v
    y = ops.rotary_forward(qkv, cos, sin, 1, 1)
    q, k, v = y[0, 2, :4], y[0, 2, 4:8], y[0, 2, 8:]
    np.testing.assert_allclose(q, [math.cos(2), 0, math.sin(2), 0], rtol=1e-14, atol=1e-16)
    np.testing.assert_allclose(k, [0, math.cos(0.2), 0, math.sin(0.2)], rtol=1e-14, atol=1e-16)
    np.testing.assert_array_equal(v, [5, 6, 7, 8])
    np.testing.assert_array_equal(y[0, 0], qkv[0, 0], err_msg="position 0 turns by nothing")


@pytest.mark.parametrize(("K", "G"), [(1, 1), (2, 3)])
def test_rotary_keeps_lengths_and_values_and_makes_scores_depend_on_distance_only(ops, K, G):
    T, D, draw = 9, 6, Draw(K)
    cos, sin = ops.rotary_tables(T, D, np.float64)
    qkv = np.repeat(draw(1, 1, (K * G + 2 * K) * D), T, axis=1)  # the same token at every position
    before = split_packed(qkv, K * G, K)
    after = split_packed(ops.rotary_forward(qkv, cos, sin, K * G, K), K * G, K)
    np.testing.assert_array_equal(after["v"], before["v"])
    q, k = after["q"].reshape(T, K, G, D), after["k"].reshape(T, K, D)
    np.testing.assert_allclose((q**2).sum(-1), (before["q"].reshape(q.shape) ** 2).sum(-1), rtol=1e-13)
    scores = np.einsum("ikgd,jkd->kgij", q, k)
    np.testing.assert_allclose(scores[..., 1:, 1:], scores[..., :-1, :-1], rtol=1e-12, atol=1e-13)
    assert np.ptp(scores[..., 0, :], axis=-1).min() > 0.1, "and they do depend on distance"


def test_qk_norm_by_hand(ops):
    """H = 2, K = 1, D = 2 and eps = 3, with head 1 ten times as long as head 0.

    The mean squares are 1, 61, 6 and the divisors sqrt(4) = 2, sqrt(64) = 8 and
    sqrt(9) = 3.
    """
    qkv = np.array([[[1.0, -1.0, 11.0, 1.0, 0.0, 12.0**0.5, 5.0, 6.0]]])  # q, q, k, v
    y, cache = ops.qk_norm_forward(qkv, np.array([2.0, 4.0]), np.array([1.0, 3.0]), 2, 1, 3.0)
    np.testing.assert_allclose(y[0, 0], [1.0, -2.0, 22 / 8, 4 / 8, 0.0, 12.0**0.5, 5.0, 6.0], rtol=1e-15)
    np.testing.assert_allclose(cache.rstd[0, 0], [1 / 2, 1 / 8, 1 / 3], rtol=1e-15)

    dq_weight, dk_weight = np.zeros(2), np.zeros(2)
    dy = np.array([[[1.0, 10.0, 100.0, 1000.0, 3.0, 3.0, 7.0, 8.0]]])
    dqkv = ops.qk_norm_backward(dy, cache, np.array([2.0, 4.0]), np.array([1.0, 3.0]), dq_weight, dk_weight)
    np.testing.assert_allclose(dq_weight, [1 / 2 + 1100 / 8, -10 / 2 + 1000 / 8], rtol=1e-15)
    np.testing.assert_allclose(dk_weight, [0.0, 12.0**0.5], rtol=1e-15)
    # Head 0: g = (2, 40), x_hat = (1/2, -1/2), so mean(g x_hat) = (1 - 20) / 2.
    np.testing.assert_allclose(dqkv[0, 0, :2], [(2 + 19 / 4) / 2, (40 - 19 / 4) / 2], rtol=1e-15)
    np.testing.assert_array_equal(dqkv[0, 0, 6:], [7.0, 8.0], err_msg="the gradient of v")


@pytest.mark.parametrize(("K", "G"), [(1, 1), (2, 3)])
def test_qk_norm_is_the_rmsnorm_of_each_head(ops, K, G):
    T, D, draw = 3, 6, Draw(K)
    H = K * G
    qkv, q_weight, k_weight = draw(2, T, (H + 2 * K) * D), draw(D), draw(D)
    before = split_packed(qkv, H, K)
    after = split_packed(ops.qk_norm_forward(qkv, q_weight, k_weight, H, K)[0], H, K)
    for part, weight in (("q", q_weight), ("k", k_weight)):
        rows = np.ascontiguousarray(before[part]).reshape(-1, D)
        expected = ops.rmsnorm_forward(rows, weight)[0].reshape(before[part].shape)
        np.testing.assert_allclose(after[part], expected, rtol=1e-13)
    np.testing.assert_array_equal(after["v"], before["v"])
