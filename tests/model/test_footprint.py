"""The memory computed from a model's shapes is the memory that the model takes."""

from itertools import product

import numpy as np
import pytest
from model_cases import EVERY, GPT_2, LLAMA, QWEN, RELU2, random_batch, small_config

from npllm.model import GPT, Parameters
from npllm.model.footprint import (
    evaluation_pass,
    fixed_bytes,
    parameter_bytes,
    training_pass,
    weight_bytes,
)
from npllm.model.parameters import weight_shapes

ARCHITECTURES = EVERY | {
    "no bias": {**GPT_2, "bias": False},
    "bias": {**LLAMA, "bias": True},
    "relu2, no bias": {**RELU2, "bias": False},
    "qwen, learned positions": {**QWEN, "position": "learned"},
}
on_all = pytest.mark.parametrize(
    ("name", "dtype", "dropout"), list(product(ARCHITECTURES, ("float32", "float64", "bf16"), (0.0, 0.1)))
)


def model_of(name, dtype, dropout=0.0, **sizes):
    sizes = {"n_layer": 3, "n_embd": 24, "block_size": 40, "vocab_size": 50} | sizes
    return GPT(small_config(dropout=dropout, **ARCHITECTURES[name], **sizes), dtype=dtype)


def peaks(model):
    return model.arena.peak, model.scratch.peak


@on_all
@pytest.mark.parametrize("shape", [(2, 9), (5, 40)])
def test_a_training_pass(name, dtype, dropout, shape):
    """The computed peak is the measured one.

    This catches a float64 that is counted as a float32, and an array that a block has
    and the count has not.
    """
    model = model_of(name, dtype, dropout)
    model.loss_and_grad(*random_batch(model.config, *shape))
    assert peaks(model) == training_pass(model.config, *shape, dtype)


@on_all
def test_a_pass_with_log_probabilities(name, dtype, dropout):
    model = model_of(name, dtype, dropout)
    batch = random_batch(model.config, 4, 24)
    trace = model.trace(batch.tokens)
    log_probability, _, cache = model.log_probability_forward(trace.hidden, batch.targets.reshape(-1))
    model.backward(trace, model.log_probability_backward(log_probability, None, cache))
    assert peaks(model) == training_pass(model.config, 4, 24, dtype, policy=True)


@on_all
def test_an_evaluation_pass(name, dtype, dropout):
    model = model_of(name, dtype, dropout, vocab_size=3000)
    batch = random_batch(model.config, 6, 30)
    model.loss(*batch)
    assert peaks(model) == evaluation_pass(model.config, 6, 30, dtype)
    model.log_probability_forward(model.hidden(batch.tokens), batch.targets.reshape(-1))
    assert peaks(model) == evaluation_pass(model.config, 6, 30, dtype, policy=True)


@pytest.mark.parametrize(("lora_rank", "n_outputs", "n_layer"), [(0, 0, 1), (0, 3, 4), (2, 1, 3)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bf16"])
@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_flat_buffers(name, dtype, lora_rank, n_outputs, n_layer):
    model = model_of(name, dtype, lora_rank=lora_rank, n_outputs=n_outputs, n_layer=n_layer)
    assert parameter_bytes(model.config, dtype) == model.params.flat.nbytes
    assert weight_bytes(model.config, dtype) == Parameters(weight_shapes(model.config), model.dtype).flat.nbytes
    kept = [*(model._rotary or ()), *(model._rounded._rounded.values() if model._rounded else ())]
    assert fixed_bytes(model.config, dtype) == sum(array.nbytes for array in kept)


def test_a_reserved_arena_has_one_chunk():
    """A reserved arena holds its peak in one chunk.

    In several chunks, arrays that do not fit into the rest of a chunk leave it free, so
    the arena would hold more than its peak.
    """
    config = small_config(n_layer=2, n_embd=64, block_size=64)
    expected = training_pass(config, 4, 64, "float32")
    model = GPT(config)
    model.arena.reserve(expected.arena)
    model.loss_and_grad(*random_batch(config, 4, 64))
    assert [len(model.arena._chunks), model.arena.peak] == [1, expected.arena]
    assert model.arena.empty(1, np.uint8).base is model.arena._chunks[0].base
