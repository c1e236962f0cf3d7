"""The log-probability of a text equals the sum that its logits give."""

import numpy as np
import pytest
from model.model_cases import set_weights_of_order_one

from npllm.errors import DataError
from npllm.generation.likelihood import log_likelihoods
from npllm.model import GPT, ModelConfig

T, V = 8, 13
PAIRS = [
    ([3], [1, 4, 1]), ([1, 5, 9, 2], [6]), ([5, 3], []), ([7], [8, 9, 7, 9, 3, 2, 3, 8]), ([4, 6, 2, 6, 4], [3, 3]),
]  # fmt: skip
LONG = ([9, 1, 2, 3, 4, 5, 6, 7, 8, 9, 1], [2, 3, 4])  # its first tokens are left out


@pytest.fixture
def model(backend):
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": T, "vocab_size": V, "dropout": 0.5}
    model = GPT(ModelConfig(**sizes), dtype="float64", backend=backend)
    set_weights_of_order_one(model, seed=0)
    return model


def by_hand(model, context, continuation):
    """From the logits of one row that nothing is added to."""
    text = [*context, *continuation][-(T + 1) :]
    first = len(text) - len(continuation)
    total, greedy = 0.0, True
    logits = model.logits(np.array([text[:-1]]))[0].astype(np.float64) if len(text) > 1 else None
    for place in range(first, len(text)):
        row = logits[place - 1]
        total += row[text[place]] - np.log(np.exp(row - row.max()).sum()) - row.max()
        greedy &= bool(row.argmax() == text[place])
    return total, greedy


def likeliest(model, context, n):
    """The n likeliest tokens, one after another."""
    text = list(context)
    for _ in range(n):
        text.append(int(model.logits(np.array([text]))[0, -1].argmax()))
    return text[len(context) :]


def test_sums_of_log_probabilities(model):
    found = log_likelihoods(model, [*PAIRS, LONG])
    for (context, continuation), likelihood in zip([*PAIRS, LONG], found, strict=True):
        expected, is_greedy = by_hand(model, context, continuation)
        assert likelihood.log_probability == pytest.approx(expected, rel=1e-12, abs=1e-12)
        assert likelihood.is_greedy == is_greedy


def test_the_likeliest_continuation_is_greedy_and_another_is_not(model):
    best = likeliest(model, [2], 4)
    other = [*best[:3], (best[3] + 1) % V]
    assert [each.is_greedy for each in log_likelihoods(model, [([2], best), ([2], other)])] == [True, False]


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_other_texts_of_a_batch_change_no_bit(rows):
    model = GPT(ModelConfig(n_layer=2, n_head=2, n_embd=16, block_size=T, vocab_size=V))
    set_weights_of_order_one(model, seed=0)
    assert log_likelihoods(model, [*PAIRS, LONG], rows=rows) == log_likelihoods(model, [*PAIRS, LONG])


def test_what_cannot_be_scored_is_refused(model):
    with pytest.raises(DataError, match="A context has no tokens"):
        log_likelihoods(model, [([], [1])])
    with pytest.raises(DataError, match="has 9 tokens, but the model sees model.block_size = 8"):
        log_likelihoods(model, [([1], [2] * 9)])
    assert log_likelihoods(model, []) == []
