"""The inside of a model: what `npllm.inspect` returns for each architecture."""

import numpy as np
import pytest
from model_cases import EVERY, every_architecture, gradients_of, random_batch, set_weights_of_order_one, small_config

import npllm
from npllm.errors import DataError
from npllm.model import GPT
from npllm.model.block import block_forward
from npllm.model.inspection import float64_copy, next_tokens
from npllm.reference.differences import TOLERANCE, central_difference

ROUNDING = {"float64": 1e-11, "float32": 2e-4}


def model_of(architecture, backend="reference", dtype="float64", **changes) -> GPT:
    model = GPT(small_config(**architecture, **changes), dtype=dtype, backend=backend)
    set_weights_of_order_one(model, seed=3)
    return model


@every_architecture
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_it_agrees_with_the_model(backend, architecture, dtype):
    """Fails if the copy has other weights, or if an array stands under a wrong name."""
    model = model_of(architecture, backend, dtype)
    batch = random_batch(model.config, B=2, T=5)
    before = model.params.flat.copy()
    inside = npllm.inspect(model, *batch)
    loss, gradients = gradients_of(model, batch)
    close = {"rtol": ROUNDING[dtype], "atol": ROUNDING[dtype]}
    assert inside.loss == pytest.approx(loss, rel=ROUNDING[dtype])
    np.testing.assert_allclose(inside.losses, model.negative_log_likelihood(*batch), **close)
    np.testing.assert_allclose(inside.logits, model.logits(batch.tokens), **close)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(inside.gradients[name], gradient, **close, err_msg=name)
    assert inside.streams.shape == inside.stream_gradients.shape == (3, 2, 5, 8)
    np.testing.assert_array_equal(model.params.flat, before)


@every_architecture
def test_every_row_of_the_attention_is_a_mean_over_earlier_positions(architecture):
    model = model_of(architecture)
    attention = npllm.inspect(model, random_batch(model.config, B=2, T=5).tokens, backward=False).attention
    assert attention.shape == (2, 2, 2, 5, 5)
    np.testing.assert_allclose(attention.sum(axis=-1), 1.0, rtol=1e-14)
    assert (np.triu(attention, 1) == 0.0).all()
    assert attention.min() >= 0.0


def loss_of_rest(model, inside, layer, stream):
    """The loss where the stream before block `layer` is `stream`, (B, T, C)."""
    context, x = model._context(stream.shape[1]), stream
    for later in range(layer, model.config.n_layer):
        x, _ = block_forward(context, model.views.blocks[later], x, later)
    hidden, _ = model._final_norm(context, x)
    targets = inside.targets.reshape(-1)
    nll, _ = model.ops.lm_head_loss_forward(hidden, model.views.head, targets)
    return nll.sum() / np.count_nonzero(targets >= 0)


@every_architecture
def test_stream_gradients_are_derivatives_of_the_loss(architecture):
    """Fails if a gradient belongs to another layer, or leaves out one of its two ways.

    The forward from a stream on is computed here, without the recording.
    """
    model = model_of(architecture)
    inside = npllm.inspect(model, *random_batch(model.config, B=2, T=4))
    for layer, (stream, gradient) in enumerate(zip(inside.streams, inside.stream_gradients, strict=True)):
        stream = stream.copy()
        for where in [(0, 0, 1), (1, 2, 5), (0, 1, 7)]:
            measured = central_difference(lambda: loss_of_rest(model, inside, layer, stream), stream, where)  # noqa: B023
            size = np.sqrt(np.mean(gradient**2))
            assert abs(measured - gradient[where]) <= TOLERANCE * max(abs(measured), size), (layer, where)


@every_architecture
def test_every_output_has_a_gradient_of_its_shape(architecture):
    inside = npllm.inspect(model_of(architecture), [[1, 2, 3]])
    for name, array in inside.outputs.items():
        assert inside.gradients[name].shape == array.shape, name
        assert array.shape[:2] == (1, 3), name
    forwards = [operation for operation in inside.operations.values() if operation.forward.is_forward]
    assert len(forwards) == len(inside.operations)
    assert not any(operation.backward.is_forward for operation in inside.operations.values())


def test_the_stream_between_the_branches_has_the_gradient_of_both_ways():
    inside = npllm.inspect(model_of(EVERY["gpt2"]), [[1, 2, 3, 4]])
    mid = inside.outputs["blocks.0.mid"]
    np.testing.assert_allclose(mid, inside.streams[0] + inside.outputs["blocks.0.attention.out"], rtol=1e-14)
    np.testing.assert_array_equal(inside.gradients["blocks.0.mid"], inside.gradients["blocks.0.attention.out"])


def test_the_gradients_of_a_tied_table_add_up():
    """The table is used by the embedding and by the head; each part stands alone."""
    inside = npllm.inspect(model_of(EVERY["gpt2"]), [[1, 2, 3, 4]])
    parts = [
        inside.operations["embedding"].backward.added["dtoken_embedding"],
        inside.operations["loss"].backward.added["dweight"],
    ]
    assert all(np.any(part) for part in parts)
    np.testing.assert_allclose(sum(parts), inside.gradients["token_embedding"], rtol=1e-12)


def test_lora_is_merged_and_dropout_left_out():
    model = model_of(EVERY["llama"], lora_rank=2, dropout=0.5, n_outputs=1)
    tokens = np.array([[3, 1, 4, 1]])
    inside = npllm.inspect(model, tokens)
    np.testing.assert_allclose(inside.logits, model.logits(tokens), rtol=1e-11)
    assert float64_copy(model).config.dropout == 0.0


def test_the_last_token_has_no_target_unless_one_is_given():
    np.testing.assert_array_equal(next_tokens(np.array([[5, 6, 7]])), [[6, 7, -1]])
    inside = npllm.inspect(model_of(EVERY["gpt2"]), [[5, 6, 7]])
    assert inside.losses[0, 2] == 0.0
    assert inside.loss == pytest.approx(inside.losses.sum() / 2)


@pytest.mark.parametrize("tokens", [[[1, 99]], [1, 2], [[1] * 7], [[5]]], ids=["id", "shape", "long", "no target"])
def test_wrong_tokens_are_refused(tokens):
    with pytest.raises(DataError):
        npllm.inspect(model_of(EVERY["gpt2"]), tokens)
