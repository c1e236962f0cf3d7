"""Texts generated in a batch equal the texts generated one by one."""

import numpy as np
import pytest
from rlhf_cases import ARCHITECTURES, STOP, language_model, random_sequences, tiny_config

from npllm.data.prompt_format import CHAT_TOKENS
from npllm.generation.batched import generate_batch
from npllm.generation.kv_cache import KVCache
from npllm.generation.sampling import choose_token
from npllm.kernels.gemm.few_rows import MOST_ROWS
from npllm.model import GPT
from npllm.reference.random import random_words
from npllm.reference.random_streams import BATCH_GENERATION
from npllm.rlhf.divergence import log_softmax
from npllm.rlhf.responses import decode_responses
from npllm.rlhf.sequences import join, sequence_log_probability, width_of
from npllm.tokenizer import byte_tokenizer
from npllm.tokenizer.special_tokens import with_special_tokens

architectures = pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
PROMPTS = [[3], [5, 9, 1, 4, 7], [2, 2], [8, 10, 6, 1], [3], [1, 2, 3, 4, 5, 6], [10], [9, 9, 9]]


def written_alone(model: GPT, prompt, *, max_tokens: int, temperature: float, seed: int, number: int) -> list[int]:
    """Return the response by the slow definition: a pass over all tokens per token."""
    text = list(prompt)
    for n in range(max_tokens):
        word = random_words(1, seed=seed, step=n, stream=BATCH_GENERATION, first=number)[0]
        text.append(choose_token(model.logits(np.array([text]))[0, -1], word / 2.0**32, temperature))
        if text[-1] == STOP:
            break
    return text[len(prompt) :]


@architectures
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_each_response_is_the_one_written_alone(architecture, temperature):
    """The other rows and their lengths have no influence.

    This holds also after rows that have ended were removed from the cache.
    """
    model = language_model(tiny_config(**architecture), seed=3)
    model.params[model.head_name][STOP] *= 1.5  # some stop early, some never
    how = {"max_tokens": 9, "temperature": temperature, "seed": 7}
    found = generate_batch(model, PROMPTS, stop_id=STOP, first_id=20, **how)
    lengths = []
    for number, prompt in enumerate(PROMPTS):
        expected = written_alone(model, prompt, number=20 + number, **how)
        assert found.tokens[number].tolist() == expected + [0] * (9 - len(expected))
        assert (found.lengths[number], found.stopped[number]) == (len(expected), expected[-1] == STOP)
        lengths.append(len(expected))
    assert min(lengths) < 9 == max(lengths)
    alone = generate_batch(model, PROMPTS[3:4], stop_id=STOP, first_id=23, **how)
    assert alone.tokens[0].tolist() == found.tokens[3].tolist()


@architectures
def test_log_probabilities_through_the_cache_are_those_of_the_whole_text(architecture):
    config = tiny_config(**architecture)
    model, rng = language_model(config), np.random.default_rng(0)
    responses = rng.integers(0, config.vocab_size, (len(PROMPTS), 5)).astype(np.int32)
    whole = sequence_log_probability(model, join(PROMPTS, list(responses), 16))
    width = max(map(len, PROMPTS))
    pending = np.array([[0] * (width - len(prompt)) + prompt for prompt in PROMPTS], np.int32)
    cache = KVCache(model, len(PROMPTS), np.array([width - len(prompt) for prompt in PROMPTS], np.int32))
    for n in range(5):
        log_p = log_softmax(model.extend(pending, cache))[np.arange(len(PROMPTS)), responses[:, n]]
        expected = [row[len(prompt) - 1 + n] for row, prompt in zip(whole, PROMPTS, strict=True)]
        np.testing.assert_allclose(log_p, expected, rtol=0, atol=1e-12)
        pending = responses[:, n : n + 1]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_responses_are_as_frequent_as_they_are_probable(temperature):
    """Test 20,000 responses of at most two tokens with Pearson's chi-square.

    It may be 5 standard deviations above its mean.
    """
    config, N = tiny_config(vocab_size=4, block_size=4), 20_000
    model = language_model(config)
    model.params[model.head_name][...] *= 0.5  # none of the responses is rare
    written = generate_batch(model, [[2]] * N, max_tokens=2, stop_id=STOP, temperature=temperature, seed=1)
    words = [[STOP, 0], *([first, second] for first in range(1, 4) for second in range(4))]
    logits = model.logits(np.array([[2, 0], *([2, first] for first in range(1, 4))])) / temperature
    log_p = log_softmax(logits)
    expected = [log_p[0, 0, STOP], *(log_p[0, 0, first] + log_p[first, 1, second] for first, second in words[1:])]
    expected = N * np.exp(expected)
    assert expected.sum() == pytest.approx(N)
    assert expected.min() > 10
    counts = [np.count_nonzero((written.tokens == word).all(axis=1)) for word in words]
    assert sum(counts) == N
    chi_square, degrees = (((counts - expected) ** 2) / expected).sum(), len(words) - 1
    assert chi_square < degrees + 5 * np.sqrt(2 * degrees)


def test_a_token_depends_on_the_seed_the_response_and_its_place():
    """With equal logits the tokens show the random numbers themselves."""
    model = GPT(tiny_config())
    model.params.flat[:] = 0.0

    def tokens(**how):
        options = {"max_tokens": 8, "stop_id": 99, "seed": 5} | how
        return generate_batch(model, [[1]] * 6, **options).tokens

    found = tokens()
    assert len({tuple(row) for row in found}) == 6  # responses differ
    assert len({tuple(column) for column in found.T}) == 8  # and so do the positions
    np.testing.assert_array_equal(tokens(first_id=2)[:4], found[2:])
    np.testing.assert_array_equal(tokens(max_tokens=3), found[:, :3])
    assert (tokens(seed=6) != found).mean() > 0.5


def test_what_has_ended_is_no_longer_computed(monkeypatch):
    """The batch always has fewer ended rows than rows that go on."""
    model, sizes = GPT(tiny_config()), []
    model.params.flat[:] = 0.0
    extend = model.extend
    monkeypatch.setattr(model, "extend", lambda tokens, cache: (sizes.append(len(tokens)), extend(tokens, cache))[1])
    found = generate_batch(model, [[1]] * 40, max_tokens=15, stop_id=STOP, seed=5)
    going_on = [np.count_nonzero(found.lengths > n) for n in range(len(sizes))]
    assert going_on[-1] < 20 == going_on[0] / 2
    assert all(n <= size < 2 * n for n, size in zip(going_on, sizes, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "bf16"])
def test_with_a_width_a_response_has_the_same_bits_in_any_batch(dtype):
    """Also where few are left. Without the width, products of 1 to 4 rows and other
    padding would change the last bits of the logits."""
    model = GPT(tiny_config(n_embd=48), dtype=dtype)
    model.params[model.head_name][...] *= 30

    def written(first, end, **how):
        logits, extend = [], model.extend
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model, "extend", lambda *pending: (logits.append(extend(*pending)), logits[-1])[1])
            found = generate_batch(model, PROMPTS[first:end], max_tokens=9, first_id=first, width=6, **how)
        return found, logits

    whole, logits = written(0, 8, stop_id=99)
    stopping, _ = written(0, 8, stop_id=STOP)
    assert 1 < stopping.stopped.sum() < 8
    for first, end in ((0, 8), (0, 1), (1, 3), (3, 8)):
        found, its_logits = written(first, end, stop_id=99)
        np.testing.assert_array_equal(found.tokens, whole.tokens[first:end])
        for mine, all_of_them in zip(its_logits, logits, strict=True):
            assert len(mine) >= 5 > MOST_ROWS
            np.testing.assert_array_equal(mine[: end - first], all_of_them[first:end])
        for part, all_of_them in zip(written(first, end, stop_id=STOP)[0], stopping, strict=True):
            np.testing.assert_array_equal(part, all_of_them[first:end])


def test_join_names_the_columns_that_predict():
    config = tiny_config()
    sequences = random_sequences(config, 30)
    for tokens, targets, last in zip(*sequences, strict=True):
        columns = np.flatnonzero(targets >= 0)
        assert targets[columns].tolist() == tokens[columns + 1].tolist()
        assert columns.tolist() == list(range(columns[0], last))


def test_the_width_of_rows():
    """It is the next multiple of 8, or the model's context if that is smaller."""
    assert [width_of(longest, 20) for longest in (1, 8, 9, 16, 17, 20)] == [8, 8, 16, 16, 20, 20]


def test_the_text_of_a_response_is_what_generate_would_print():
    """An incomplete character at the end is left out, stopped or not.

    The text ends before the turn of another speaker.
    """
    tokenizer = with_special_tokens(byte_tokenizer(), CHAT_TOKENS)
    texts = {"aé<|end|>": "aé", "a<|user|>b": "a"}
    tokens = [np.array(tokenizer.encode(text, allowed_special=True)) for text in texts]
    tokens += [tokens[0][:2], tokens[0][[0, 1, 3]]]
    found = decode_responses(["?"] * 4, tokens, np.array([True, False, False, True]), tokenizer)
    assert [response.text for response in found] == [*texts.values(), "a", "a"]
    assert [response.stopped for response in found] == [True, False, False, True]
