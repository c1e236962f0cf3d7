"""The measures of a model as a whole, and of neurons."""

from dataclasses import replace

import numpy as np
import pytest

from npllm.data.records import Labelled
from npllm.model import GPT, ModelConfig
from npllm.model.inspection import inspect
from npllm.pages.learnt import labels
from npllm.pages.learnt.inside import inside, logits_of_stream, random_twin
from npllm.pages.learnt.measure import lens_loss, measure
from npllm.pages.learnt.neurons import chosen_neurons, purities, top_rows
from npllm.pages.learnt.topics import encode_topics, mean_streams
from npllm.pages.learnt.windows import HeldOut, Windows, of_sequences
from npllm.tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()
GPT2 = ModelConfig(n_layer=2, n_head=2, n_embd=8, block_size=16, vocab_size=TOKENIZER.vocab_size)
LLAMA = replace(GPT2, norm="rmsnorm", position="rotary", mlp="swiglu", bias=False, tie_embeddings=False, n_kv_head=1)
PRIMER = replace(GPT2, mlp="relu2", dropout=0.5)
CODE = 'def f(a):  # a comment\n    b = "text"\n    return [a, b]\n\n\n' * 12
NO_CODE = CODE.replace("return", "return return")


@pytest.fixture(scope="module")
def windows():
    return Windows(of_sequences([TOKENIZER.encode(text) for text in (NO_CODE, CODE, CODE)]), TOKENIZER, GPT2)


@pytest.fixture(scope="module", params=[GPT2, LLAMA, PRIMER], ids=["gpt2", "llama", "primer"])
def model(request):
    model = GPT(request.param, seed=0, dtype="float64", backend="reference")
    model.params.flat[:] += 0.3 * np.random.default_rng(0).normal(size=model.params.flat.size)
    return model


def test_the_lens_after_the_last_block_is_the_loss_of_the_model(model, windows):
    streams = inside(model, windows.x).streams
    assert len(streams) == 3
    assert lens_loss(model, streams[-1], windows.y) == pytest.approx(model.loss(windows.x, windows.y))
    logits = logits_of_stream(model, streams[-1].reshape(-1, 8))
    np.testing.assert_allclose(logits, model.logits(windows.x).reshape(logits.shape), rtol=1e-9, atol=1e-9)


def test_neurons_are_what_enters_the_last_matrix_of_the_mlp(model, windows):
    """The stream between the branches and the neurons give the stream after the
    block."""
    found, outputs = inside(model, windows.x), inspect(model, windows.x, backward=False).outputs
    weight = model.params["blocks.1.mlp.down.weight"]
    bias = model.params.get("blocks.1.mlp.down.bias")
    after = outputs["blocks.1.mid"] + found.activations[1] @ weight + (0.0 if bias is None else bias)
    np.testing.assert_allclose(after, found.streams[2], rtol=1e-9, atol=1e-9)


def test_measures_have_a_value_for_each_layer_and_are_the_same_each_time(windows):
    model = GPT(GPT2, backend="reference")
    first, again = (measure(each, windows, None, seed=0) for each in (model, random_twin(model)))
    assert len(first.lens) == 3
    assert [probe.name for probe in first.probes] == ["inside a string or comment", "indentation of the line"]
    assert all(len(probe.accuracies) == 3 for probe in first.probes)
    assert {neuron.layer for neuron in first.neurons} == {0, 1}
    assert all(scores.queries and scores.scores.shape == (2, 2) for scores in first.heads.values())
    assert repr(first) == repr(again)  # the twin of random weights is the model itself


def test_windows_do_not_overlap_and_keep_their_labels(windows):
    assert (np.diff(windows.positions) >= windows.x.shape[1]).all()
    np.testing.assert_array_equal(windows.x[:, 1:], windows.y[:, :-1])
    source = (NO_CODE + CODE + CODE).encode()
    inside_quotes = np.r_[np.full(len(NO_CODE), -1), np.tile(labels.inside_quotes(CODE.encode()), 2)]
    for position, row, quoted in zip(windows.positions, windows.x, windows.quoted, strict=True):
        assert TOKENIZER.decode_bytes(row) == source[position : position + len(row)]
        assert quoted.tolist() == inside_quotes[position : position + len(row)].tolist()


def test_the_windows_of_a_short_text_do_not_overlap():
    windows = Windows(HeldOut(np.arange(40), np.array([0])), TOKENIZER, GPT2)
    assert windows.positions.tolist() == [0, 23]


def test_a_short_text_has_one_short_window():
    windows = Windows(HeldOut(np.array([1, 2]), np.array([0])), TOKENIZER, GPT2)
    assert windows.x.tolist() == [[1]]
    assert measure(GPT(GPT2, backend="reference"), windows, None, seed=0).probes == []


def test_topics_hold_whole_files_back_and_padding_changes_nothing():
    snippets = [
        Labelled(f"{topic} {file} {i} {'x' * i}", topic, f"{topic}/{file}")
        for topic in ("a", "b")
        for file in range(4)
        for i in range(3)
    ]
    topics = encode_topics(snippets, TOKENIZER, most=9)
    files = [bytes(row.astype(np.uint8))[:3] for row in topics.rows]
    taught, tested = ({file for file, test in zip(files, topics.tests, strict=True) if test == side} for side in (0, 1))
    assert taught
    assert tested
    assert not taught & tested
    model = GPT(GPT2, backend="reference")
    alone = inside(model, topics.rows[1][None]).streams.mean(axis=(1, 2))
    np.testing.assert_allclose(mean_streams(model, topics)[:, 1], alone, rtol=1e-6)


def test_the_purity_of_a_neuron_is_the_share_of_its_most_frequent_token():
    activations = np.zeros((12, 2))
    activations[[2, 5, 7], 0] = [3.0, 5.0, 4.0]
    tokens = np.array([0, 1, 9, 2, 3, 9, 4, 9, 5, 6, 7, 8])
    top = top_rows(activations, 3)
    assert top[:, 0].tolist() == [5, 7, 2]
    assert purities(top, tokens).tolist() == [1.0, 1 / 3]
    neurons, _ = chosen_neurons(0, activations, tokens)
    assert neurons[0].number == 0
    assert neurons[0].values[:3] == [5.0, 4.0, 3.0]
