"""Evaluation: logits, log-likelihoods and losses, and the input that is refused."""

import numpy as np
import pytest
from model_cases import every_architecture, patched, random_batch, set_weights_of_order_one, small_config

from npllm.errors import ConfigError, DataError
from npllm.model import GPT


def model_of(backend, dtype="float64", **fields):
    model = GPT(small_config(**fields), dtype=dtype, backend=backend)
    set_weights_of_order_one(model, seed=9)
    return model


@every_architecture
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_later_tokens_change_nothing(backend, architecture, dtype):
    model = model_of(backend, dtype, **architecture)
    tokens = random_batch(model.config, B=2, T=6).tokens
    before = model.logits(tokens)
    for t in range(6):
        changed = tokens.copy()
        changed[:, t:] = (changed[:, t:] + 1) % model.config.vocab_size
        after = model.logits(changed)
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert not np.allclose(after[:, t], before[:, t], rtol=1e-3)


@every_architecture
def test_every_earlier_token_counts(backend, architecture):
    model = model_of(backend, **architecture)
    tokens = random_batch(model.config, B=2, T=6).tokens
    before = model.logits(tokens)[:, -1]
    for t in range(6):
        changed = tokens.copy()
        changed[:, t] = (changed[:, t] + 1) % model.config.vocab_size
        assert not np.allclose(model.logits(changed)[:, -1], before, rtol=1e-6)


@every_architecture
def test_order_counts(backend, architecture):
    """Without position information the predecessors of a position would be a set."""
    model = model_of(backend, **(architecture | {"n_layer": 1}))
    tokens = np.array([[1, 2, 3, 4]])
    swapped = np.array([[2, 1, 3, 4]])
    assert not np.allclose(model.logits(tokens)[:, -1], model.logits(swapped)[:, -1], rtol=1e-4)


@every_architecture
def test_other_rows_change_nothing(backend, architecture):
    model = model_of(backend, **architecture)
    tokens = random_batch(model.config, B=3, T=5).tokens
    before = model.logits(tokens)
    tokens[1] = (tokens[1] + 1) % model.config.vocab_size
    np.testing.assert_array_equal(model.logits(tokens)[[0, 2]], before[[0, 2]])


@every_architecture
def test_losses_are_those_of_the_softmax_of_the_logits(backend, architecture):
    model = model_of(backend, **architecture)
    batch = random_batch(model.config, B=3, T=5)
    logits = model.logits(batch.tokens)
    assert logits.shape == (3, 5, 11)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    counts = batch.targets >= 0
    expected = np.zeros((3, 5))
    for b, t in np.argwhere(counts):
        expected[b, t] = -np.log(probabilities[b, t, batch.targets[b, t]])

    nll = model.negative_log_likelihood(*batch)
    assert 0 < counts.sum() < counts.size
    assert nll.shape == (3, 5)
    assert np.all(nll[~counts] == 0.0)
    np.testing.assert_allclose(nll, expected, rtol=1e-12, atol=1e-14)
    assert model.loss(*batch) == pytest.approx(expected.sum() / counts.sum(), rel=1e-13)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_any_integers_in_any_layout_are_tokens(backend, dtype):
    """Tokens may have any integer dtype and any strides; the operations see int32 only.

    Shards hold uint16 and NumPy makes int64. Either may come as a strided slice.
    """
    model = model_of(backend)
    tokens = random_batch(model.config, B=2, T=5).tokens
    strided = np.empty((4, 10), dtype)[::2, ::2]
    strided[...] = tokens
    expected, ops = model.logits(tokens.tolist()), model.ops

    def embedding_forward(tokens, *args, **keywords):
        assert tokens.dtype == np.int32
        assert tokens.flags.c_contiguous
        return ops.embedding_forward(tokens, *args, **keywords)

    model.ops = patched(ops, embedding_forward=embedding_forward)
    np.testing.assert_array_equal(model.logits(strided), expected)


def test_a_single_token_and_a_full_block_are_possible(backend):
    model = model_of(backend)
    for T in (1, 6):
        batch = random_batch(model.config, B=1, T=T, ignored=0.0)
        assert np.isfinite(model.loss_and_grad(*batch))


GOOD = np.array([[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize(
    ("tokens", "targets", "message"),
    [
        (np.zeros((1, 7), int), np.zeros((1, 7), int), "7 tokens is longer than model.block_size = 6"),
        (GOOD[0], GOOD[0], r"tokens is .*; give a \(B, T\) array"),
        (GOOD[None], GOOD[None], r"tokens is .*; give a \(B, T\) array"),
        (GOOD[:, :0], GOOD[:, :0], r"tokens is .*; give a \(B, T\) array"),
        (GOOD.astype(float), GOOD, "tokens .* float64"),
        (GOOD > 1, GOOD, "tokens .* bool"),
        (GOOD, GOOD.astype(float), "targets .* float64"),
        (GOOD + 5, GOOD, "tokens holds ids from 6 to 11, but the vocabulary has the ids 0 to 10"),
        (GOOD - 2, GOOD, "tokens holds ids from -1"),
        (GOOD, GOOD + 5, "targets holds ids from 6 to 11"),
        (GOOD, GOOD - 3, "targets holds ids from -2"),
        (GOOD + 2**32, GOOD, "tokens holds ids"),
        (GOOD, GOOD[:, :2], r"targets is \(2, 2\), but tokens is \(2, 3\)"),
        (GOOD, GOOD[:1], r"targets is \(1, 3\), but tokens is \(2, 3\)"),
        (GOOD, np.full((2, 3), -1), "Every target is -1"),
    ],
)
def test_bad_input_is_refused(backend, tokens, targets, message):
    """Bad input is refused before it is used as an index or changes anything."""
    model = model_of(backend)
    for function in (model.loss_and_grad, model.loss):
        with pytest.raises(DataError, match=message):
            function(tokens, targets)
    assert not model.grads.flat.any()


def test_a_micro_batch_may_have_no_targets(backend):
    """That is no error as long as the whole batch has some, as n_targets says."""
    model = model_of(backend)
    assert model.loss_and_grad(GOOD, np.full((2, 3), -1), n_targets=4) == 0.0
    assert not model.grads.flat.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"dtype": "float16"}, "dtype 'float16'"), ({"backend": "cuda"}, "backend 'cuda'"), ({"seed": -1}, "seed is -1")],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        GPT(small_config(), **options)
