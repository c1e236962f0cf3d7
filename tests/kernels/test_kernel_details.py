"""What only the kernels have: dropout words, chunks of logits, index checks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import Sizes
from test_kernels_equal_reference import assert_equals_reference

import npllm.kernels
import npllm.reference
from npllm.kernels import logit_chunks
from npllm.reference import DropoutKey

KEYS = st.builds(
    DropoutKey,
    seed=st.integers(0, 2**64 - 1),
    step=st.integers(0, 2**32 - 1),
    stream=st.integers(0, 2**32 - 1),
    first=st.integers(0, 2**40),
)


@given(key=KEYS, n=st.integers(1, 50), rate=st.floats(0.01, 0.99))
def test_dropout_masks_are_those_of_the_reference_bit_by_bit(key, n, rate):
    for size in (n, 8192 + n):  # one chunk, several chunks
        x = np.ones(size, np.float32)
        computed = npllm.kernels.dropout_forward(x, rate, key)
        np.testing.assert_array_equal(computed, npllm.reference.dropout_forward(x, rate, key))


@given(key=KEYS, T=st.integers(1, 40), rate=st.floats(0.2, 0.8))
def test_attention_drops_the_weights_that_the_reference_drops(key, T, rate):
    """The zeros of y show which attention weights are dropped.

    The values are rows of the unit matrix, so y is the matrix of weights.
    """
    B, H = 2, 2
    qkv = np.zeros((B, T, 3 * H, T), np.float32)
    qkv[:, :, 2 * H :] = np.eye(T)[:, None]
    computed, _ = npllm.kernels.attention_forward(qkv.reshape(B, T, -1), H, H, rate=rate, key=key)
    expected, _ = npllm.reference.attention_forward(qkv.reshape(B, T, -1), H, H, rate=rate, key=key)
    np.testing.assert_array_equal(computed == 0, expected == 0)


@pytest.mark.parametrize("case", ["lm_head_loss", "lm_head_loss_and_grad", "lm_head_policy"])
def test_chunks_of_logits_add_up(monkeypatch, case):
    monkeypatch.setattr(logit_chunks, "CHUNK_BYTES", 0)
    monkeypatch.setattr(logit_chunks, "MIN_CHUNK_ROWS", 8)
    assert_equals_reference(case, Sizes(B=3, T=10, V=20), seed=3, dtype=np.float64)


def test_the_bits_of_a_row_do_not_depend_on_the_rows_around_it():
    """The chunk's size may not show in the bits of a row.

    The 4 MB of a chunk hold 131 rows of this vocabulary. That is no multiple of 8, and
    two such chunks are 262 rows, 2 fewer than there are.
    """
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((264, 48), np.float32), rng.standard_normal((8000, 48), np.float32)
    targets = rng.integers(0, 8000, 264)

    def results(rows):
        nll, _ = npllm.kernels.lm_head_loss_forward(x[rows], weight, targets[rows])
        log_probability, entropy, _ = npllm.kernels.lm_head_policy_forward(x[rows], weight, targets[rows])
        return np.stack([nll, log_probability, entropy])

    whole = results(np.s_[:])
    for rows in (np.s_[:8], np.s_[120:144], np.s_[256:]):
        np.testing.assert_array_equal(results(rows), whole[:, rows])


def test_an_ignored_row_has_no_loss_and_no_gradient():
    x, weight = np.ones((3, 4), np.float32), np.ones((5, 4), np.float32)
    targets = np.array([-1, 2, -1])
    loss, dx = npllm.kernels.lm_head_loss_and_grad(x, weight, targets, 1, np.zeros_like(weight))
    assert loss == pytest.approx(np.log(5))
    assert np.all(dx[[0, 2]] == 0)


@pytest.mark.parametrize("token", [-1, 5, 2**31])
def test_a_token_outside_the_table_is_an_error_and_not_a_crash(token):
    tokens, table = np.array([[0, token]]), np.zeros((5, 3), np.float32)
    with pytest.raises(IndexError, match=r"tokens .* 0 \.\.\. 4"):
        npllm.kernels.embedding_forward(tokens, table)


def test_a_position_outside_the_table_is_an_error():
    table = np.zeros((5, 3), np.float32)
    tokens = np.zeros((1, 4), int)
    with pytest.raises(IndexError, match="2 to 5 .* 5 positions"):
        npllm.kernels.embedding_forward(tokens, table, table, first_position=2)
    for outside in (-1, 5):
        with pytest.raises(IndexError, match="5 positions"):
            npllm.kernels.embedding_forward(tokens, table, table, positions=np.array([[0, 1, outside, 0]]))


@pytest.mark.parametrize("target", [-2, 5])
def test_a_target_outside_the_vocabulary_is_an_error(target):
    x, weight, targets = np.zeros((2, 3)), np.zeros((5, 3)), np.array([0, target])
    with pytest.raises(IndexError, match=r"targets .* 0 \.\.\. 4"):
        npllm.kernels.lm_head_loss_forward(x, weight, targets)
    with pytest.raises(IndexError, match=r"targets .* 0 \.\.\. 4"):
        npllm.kernels.lm_head_loss_and_grad(x, weight, targets, 2, np.zeros((5, 3)))
    with pytest.raises(IndexError, match=r"targets .* 0 \.\.\. 4"):
        npllm.kernels.lm_head_policy_forward(x, weight, targets)
