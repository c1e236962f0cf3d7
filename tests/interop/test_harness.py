"""Answers to lm_eval's requests, against what the logits of single texts give."""

import importlib
import sys

import numpy as np
import pytest
from model.model_cases import set_weights_of_order_one

from npllm.errors import ConfigError
from npllm.generation import generate
from npllm.interop.harness import Answers, temperature_of
from npllm.model import GPT, ModelConfig
from npllm.tokenizer import train_bpe

T = 16
TEXT = "def first(a, b):\n    return a + b\n\n\ndef second(a):\n    return first(a, a)\n"
SETTINGS = {"do_sample": False, "max_gen_toks": 8}


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe([TEXT], vocab_size=280)


@pytest.fixture(scope="module")
def model(tokenizer):
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": T, "vocab_size": tokenizer.vocab_size}
    model = GPT(ModelConfig(**sizes, tie_embeddings=False))
    set_weights_of_order_one(model, seed=0)
    return model


@pytest.fixture
def answers(model, tokenizer):
    return Answers(model, tokenizer)


def by_hand(model, ids, n):
    """The log-probability of the last n ids, from the logits of all before each."""
    total = 0.0
    for place in range(len(ids) - n, len(ids)):
        row = model.logits(np.array([ids[max(0, place - T) : place]]))[0, -1].astype(np.float64)
        total += row[ids[place]] - row.max() - np.log(np.exp(row - row.max()).sum())
    return total


@pytest.mark.parametrize(
    ("context", "continuation", "start"),
    [
        ("def first", "(a", "def first"),
        ("", "def first", ""),
        ("return ", "a + b", "return"),  # the space belongs to what follows
        ("  \n", "return", ""),
        ("def fir", "st(a", "def fir"),  # a token would cross the border
    ],
)
def test_the_likelihood_of_a_continuation(answers, model, tokenizer, context, continuation, start):
    """It is that of the tokens after as many as the context alone has."""
    whole, n = tokenizer.encode(context + continuation), len(tokenizer.encode(start))
    expected = by_hand(model, [tokenizer.eot_id, *whole] if n == 0 else whole, len(whole) - n)
    (likelihood,) = answers.likelihoods([(context, continuation)])
    assert likelihood.log_probability == pytest.approx(expected, rel=1e-5)


def test_a_long_context_loses_its_start(answers, tokenizer):
    ids = tokenizer.encode(TEXT)
    n = len(tokenizer.encode(TEXT + "\n\nde")) - len(ids)
    kept = tokenizer.decode(ids[-(T + 1 - n) :])
    assert len(ids) > T
    one, other = answers.likelihoods([(TEXT.rstrip(), "\n\n\nde"), (kept.rstrip(), "\n\n\nde")])
    assert one.log_probability == pytest.approx(other.log_probability, rel=1e-6)


@pytest.mark.parametrize("n_tokens", [1, T - 1, T, T + 1, 2 * T, 2 * T + 3])
def test_the_likelihood_of_a_whole_text(answers, model, tokenizer, n_tokens):
    """Every token counts once: the first T of them after the end-of-text token and all
    before them, the next T after one token and so on; the last ones after T."""
    ids = tokenizer.encode(TEXT * 3)[:n_tokens]
    text = tokenizer.decode(ids)
    assert tokenizer.encode(text) == ids
    known = [tokenizer.eot_id, *ids]
    expected = 0.0
    for first in range(0, n_tokens, T):
        end = min(first + T, n_tokens)
        expected += by_hand(model, known[max(0, end - T) : end + 1], end - first)
    assert answers.whole_likelihoods([text]) == [pytest.approx(expected, rel=1e-5)]


def test_the_number_of_texts_at_once_changes_nothing(model, tokenizer):
    requests = [("def first", "(a"), ("", TEXT[:20]), ("return ", "a"), ("a", "")]
    texts = [TEXT, "", TEXT[:9]]
    one, many = Answers(model, tokenizer, rows=1), Answers(model, tokenizer, rows=7)
    assert one.likelihoods(requests) == many.likelihoods(requests)
    assert one.whole_likelihoods(texts) == many.whole_likelihoods(texts)
    assert one.whole_likelihoods(["", ""]) == [0.0, 0.0]


def test_a_continuation_ends_before_the_first_of_the_texts(answers):
    whole = answers.continuation("def first", SETTINGS)
    assert len(whole) > 3
    for until in (whole[3:5], ["\0", whole[3:5], whole[-1]], [whole[3:5], ""]):
        assert answers.continuation("def first", SETTINGS | {"until": until}) == whole[: whole.index(whole[3:5])]
    assert answers.continuation("def first", SETTINGS | {"until": []}) == whole


def test_a_continuation_is_that_of_generate(answers, model, tokenizer):
    """The context is cut to the room that the new tokens leave."""
    kept = tokenizer.decode(tokenizer.encode(TEXT)[-(T - 8) :])
    assert answers.continuation(TEXT, SETTINGS) == "".join(
        generate(model, tokenizer, kept, max_tokens=8, temperature=0.0)
    )
    sampled = answers.continuation("def", {"temperature": 0.7, "max_tokens": 5, "top_k": 9}, number=3)
    expected = generate(model, tokenizer, "def", max_tokens=5, temperature=0.7, top_k=9, sample=3)
    assert sampled == "".join(expected)


@pytest.mark.parametrize(
    ("settings", "temperature"),
    [
        ({}, 0.0),
        ({"temperature": 0.5}, 0.5),
        ({"temperature": 0.5, "do_sample": False}, 0.0),
        ({"do_sample": True}, 1.0),
        ({"temperature": 0.5, "do_sample": True}, 0.5),
    ],
)
def test_the_temperature(settings, temperature):
    assert temperature_of(settings) == temperature


def test_what_is_not_known_is_refused(answers, model, tokenizer):
    with pytest.raises(ConfigError, match="generation_kwargs has 'num_beams', which npllm does not have"):
        answers.continuation("def", {"num_beams": 4})
    with pytest.raises(ConfigError, match="batch_size is 0"):
        Answers(model, tokenizer, rows=0)
    with pytest.raises(ConfigError, match="only judges texts"):
        Answers(GPT(ModelConfig(n_layer=1, n_head=1, n_embd=8, vocab_size=9, n_outputs=1)), tokenizer)


def test_without_lm_eval_one_sentence_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "npllm.interop.lm_eval", raising=False)
    with pytest.raises(ConfigError) as error:
        importlib.import_module("npllm.interop.lm_eval")
    assert str(error.value) == "npllm.interop.lm_eval needs lm_eval, which is not installed; pip install lm_eval."
