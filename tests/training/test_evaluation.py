"""The figures of a held-out text, compared with sums over single tokens."""

import io
from math import exp, log, log2

import numpy as np
import pytest

from npllm.data.sampler import batch
from npllm.errors import DataError
from npllm.model import GPT, ModelConfig
from npllm.output import TextConsole
from npllm.training import evaluation
from npllm.training.evaluation import (
    PRIOR_PAIRS,
    TOKENS_AT_ONCE,
    evaluate,
    pair_table_loss,
    quick_loss,
    rows_at_once,
)

T, V = 5, 11
TOKENS = np.random.default_rng(0).integers(0, V, 43).astype(np.uint16)


@pytest.fixture(scope="module")
def model():
    """A model with weights so large that its predictions differ from token to token."""
    model = GPT(ModelConfig(n_layer=1, n_head=2, n_embd=8, block_size=T, vocab_size=V, dropout=0.5), dtype="float64")
    model.params["token_embedding"][:] *= 50
    return model


def nll_of_each_token(model, tokens):
    """The loss of each token, from the logits of each prefix of each window."""
    for place in range(1, len(tokens)):
        start = (place - 1) // T * T
        logits = model.logits(tokens[None, start:place])[0, -1]
        yield log(np.exp(logits).sum()) - logits[tokens[place]]


@pytest.mark.parametrize("n_tokens", [2, 5, 6, 7, 11, 43])
def test_every_token_but_the_first_counts_once(model, n_tokens):
    tokens = TOKENS[:n_tokens]
    nll = list(nll_of_each_token(model, tokens))
    assert np.std(nll) > 0.1 or n_tokens == 2
    result = evaluate(model, tokens, n_bytes=100)
    assert result.n_tokens == len(nll) == n_tokens - 1
    assert result.loss == pytest.approx(np.mean(nll), rel=1e-12)
    assert result.perplexity == pytest.approx(exp(np.mean(nll)), rel=1e-12)
    assert result.bits_per_byte == pytest.approx((sum(nll) / log(2) + log2(V)) / 100, rel=1e-12)
    assert result.n_bytes == 100


@pytest.mark.parametrize("stride", [1, 2, 3, T])
@pytest.mark.parametrize("n_tokens", [2, T + 1, T + 2, 43])
def test_a_window_that_slides_gives_each_token_its_context(model, stride, n_tokens):
    """The last tokens of each window count; of the first window, all."""
    tokens, nll, counted = TOKENS[:n_tokens], [], 1
    while counted < n_tokens:
        start = max(0, -(-(counted - T) // stride) * stride) if counted > T else 0
        logits = model.logits(tokens[None, start:counted])[0, -1]
        nll.append(log(np.exp(logits).sum()) - logits[tokens[counted]])
        counted += 1
    result = evaluate(model, tokens, 100, stride=stride)
    assert result.n_tokens == n_tokens - 1
    assert result.loss == pytest.approx(np.mean(nll), rel=1e-12)
    assert result.bits_per_byte == pytest.approx((sum(nll) / log(2) + log2(V)) / 100, rel=1e-12)
    if stride == T:
        assert result == evaluate(model, tokens, 100)


def test_a_terminal_shows_how_much_is_done(model):
    """And the result is the same."""
    shown = {}
    for kind in (True, False):
        console = TextConsole(file=io.StringIO(), force_terminal=kind, _environ={"TERM": "xterm"})
        assert evaluate(model, TOKENS, 43, console) == evaluate(model, TOKENS, 43)
        shown[kind] = console.file.getvalue()
    assert "evaluating" in shown[True]
    assert "100%" in shown[True]
    assert shown[False] == ""


def test_an_untrained_model_needs_the_bits_of_its_vocabulary():
    """On bytes, uniform predictions need log2(V) bits per token, the first included."""
    model = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=4, block_size=T, vocab_size=V), dtype="float64")
    model.params["token_embedding"][:] = 0
    result = evaluate(model, TOKENS, n_bytes=len(TOKENS))
    assert result.bits_per_byte == pytest.approx(log2(V), rel=1e-12)
    assert result.perplexity == pytest.approx(V, rel=1e-12)


@pytest.mark.parametrize("rows", [1, 2, 100])
def test_the_rows_at_once_change_nothing(model, monkeypatch, rows):
    expected, quick = evaluate(model, TOKENS, 43), quick_loss(model, TOKENS)
    monkeypatch.setattr(evaluation, "EVALUATION_ROWS", rows)
    assert evaluate(model, TOKENS, 43) == pytest.approx(expected, rel=1e-13)
    assert quick_loss(model, TOKENS) == pytest.approx(quick, rel=1e-13)


def test_the_quick_loss_is_that_of_evenly_spread_windows(model):
    expected = np.mean([model.loss(*batch(TOKENS, np.array([p]), T)) for p in (0, 12, 24, 37)])  # 37 = 43 - 1 - T
    assert quick_loss(model, TOKENS, n_windows=4) == pytest.approx(expected, rel=1e-12)
    assert quick_loss(model, TOKENS) == quick_loss(model, TOKENS)


def test_the_quick_loss_of_less_than_a_window(model):
    assert quick_loss(model, TOKENS[:3]) == pytest.approx(np.mean(list(nll_of_each_token(model, TOKENS[:3]))))


def test_one_token_predicts_nothing(model):
    with pytest.raises(DataError, match="at least 2 are needed"):
        evaluate(model, TOKENS[:1], n_bytes=1)


def test_a_hopeless_model_has_a_perplexity():
    """exp(loss) would overflow."""
    model = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=4, block_size=T, vocab_size=V), dtype="float64")
    model.params["token_embedding"][:] *= 1e6
    result = evaluate(model, TOKENS, n_bytes=43)
    assert result.loss > 710
    assert np.isfinite(result.perplexity)


def test_the_table_of_pairs_against_counting_by_hand(monkeypatch):
    train, val = np.array([0, 1, 0, 1, 2, 0, 1]), np.array([0, 1, 2, 2])
    single = {0: (3 + 1) / (7 + 4), 1: (3 + 1) / (7 + 4), 2: (1 + 1) / (7 + 4)}
    k = PRIOR_PAIRS
    p = [
        (3 + k * single[1]) / (3 + k),  # 1 behind 0: three times of three
        (1 + k * single[2]) / (2 + k),  # 2 behind 1: once of two, for the last 1 has nothing behind it
        (0 + k * single[2]) / (1 + k),  # 2 behind 2: never
    ]
    for at_once in (100, 2, 1):
        monkeypatch.setattr(evaluation, "PREDICTED_AT_ONCE", at_once)
        assert pair_table_loss(train, val, 4) == pytest.approx(-np.log(p).mean(), rel=1e-12)


def test_the_table_of_pairs_counts_a_part_of_a_long_text(monkeypatch):
    train, val = np.array([0, 1, 0, 1, 2, 0, 1]), np.array([0, 1, 2, 2])
    expected = pair_table_loss(train[:4], val, 4)
    monkeypatch.setattr(evaluation, "MOST_COUNTED", 4)
    assert pair_table_loss(train, val, 4) == expected


def test_of_long_rows_fewer_are_read_at_once():
    """Otherwise the validation of a model with long sequences would take many times the
    memory of its training."""
    assert [rows_at_once(T) for T in (1, 256, TOKENS_AT_ONCE // 16)] == [16, 16, 16]
    assert [rows_at_once(T, most=32) for T in (256, TOKENS_AT_ONCE // 4, 10 * TOKENS_AT_ONCE)] == [32, 4, 1]


def test_a_model_of_long_sequences_is_judged_on_few_at_once(model, monkeypatch):
    monkeypatch.setattr(evaluation, "TOKENS_AT_ONCE", 2 * T + 1)
    read, log_likelihood = [], model.negative_log_likelihood
    monkeypatch.setattr(model, "negative_log_likelihood", lambda x, y: (read.append(x.shape), log_likelihood(x, y))[1])
    evaluate(model, TOKENS, 43)
    quick_loss(model, TOKENS)
    assert set(read) == {(2, T), (1, T)}
