"""Every gradient of the whole model, and of one block, against differences of the loss.

The tolerance is that of `gradient_check`, a relative error of 1e-6. Right gradients
show at most 2e-8 here, and any mistake in a formula more than 1e-6.
"""

import numpy as np
import pytest
from gradient_check import check_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import (
    every_architecture,
    gradients_of,
    random_batch,
    set_weights_of_order_one,
    shapes,
    small_config,
    training_loss,
)

from npllm.model import GPT, ModelConfig
from npllm.model.block import block_backward, block_forward
from npllm.model.parameters import within

ARCHITECTURES = [
    {"norm": norm, "position": position, "mlp": mlp}
    for norm in ("layernorm", "rmsnorm")
    for position in ("learned", "rotary")
    for mlp in ("gelu", "swiglu")
]


def check_model(model, batch, *, elementwise_up_to, **how):
    """Assert that `loss_and_grad` returns the forward's loss and its gradient.

    Every parameter's gradient is compared with differences of the loss.
    """
    loss, gradients = gradients_of(model, batch, **how)
    n_targets = how.pop("n_targets", np.count_nonzero(batch.targets >= 0))

    def loss_now():
        return training_loss(model, batch, n_targets=n_targets, **how)

    assert loss == pytest.approx(loss_now(), rel=1e-13)
    check_gradients(loss_now, dict(model.params), gradients, elementwise_up_to=elementwise_up_to)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: "-".join(a.values()))
@settings(max_examples=3)
@given(
    case=shapes(),
    bias=st.booleans(),
    qk_norm=st.booleans(),
    tie_embeddings=st.booleans(),
    dropout=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 2**32),
)
def test_gradient_of_every_parameter(backend, architecture, case, bias, qk_norm, tie_embeddings, dropout, seed):
    fields, B, T = case
    choices = {"bias": bias, "qk_norm": qk_norm, "tie_embeddings": tie_embeddings, "dropout": dropout}
    config = ModelConfig(**fields, **architecture, **choices)
    model = GPT(config, seed=seed, dtype="float64", backend=backend)
    set_weights_of_order_one(model, seed)
    check_model(model, random_batch(config, B, T, seed), elementwise_up_to=0, step=seed % 7)


@every_architecture
def test_gradient_of_every_element(backend, architecture):
    """With this seed no input of ReLU² is within 0.004 of 0.

    There its second derivative jumps, and differences are inaccurate.
    """
    sizes = {"n_layer": 1, "n_embd": 4, "n_head": 2, "block_size": 4, "vocab_size": 5}
    config = small_config(**sizes, **architecture, dropout=0.2)
    model = GPT(config, dtype="float64", backend=backend)
    set_weights_of_order_one(model, seed=1)
    check_model(model, random_batch(config, B=2, T=3), elementwise_up_to=10**9)


def test_gradient_of_a_later_micro_batch(backend):
    """n_targets scales loss and gradient; step and first_row select the same masks.

    A backward that ignores one of them differs from the forward.
    """
    config = small_config(dropout=0.3)
    model = GPT(config, dtype="float64", backend=backend)
    set_weights_of_order_one(model, seed=2)
    check_model(model, random_batch(config, B=2, T=5), elementwise_up_to=0, n_targets=31, step=5, first_row=6)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: "-".join(a.values()))
@settings(max_examples=3)
@given(case=shapes(), bias=st.booleans(), dropout=st.sampled_from([0.0, 0.3]), seed=st.integers(0, 2**32))
def test_gradients_of_a_block(backend, architecture, case, bias, dropout, seed):
    """The gradients of a block with respect to its input and its parameters are right.

    The loss is a weighted sum of the block's output with random weights.
    """
    fields, B, T = case
    model = GPT(ModelConfig(**fields, **architecture, bias=bias), seed=seed, dtype="float64", backend=backend)
    set_weights_of_order_one(model, seed)
    rng = np.random.default_rng(seed)
    x, dy = rng.standard_normal((2, B, T, fields["n_embd"]))
    layer = fields["n_layer"] - 1
    p, dp = within(model.params, f"blocks.{layer}"), within(model.grads, f"blocks.{layer}")
    block, dblock = model.views.blocks[layer], model.dviews.blocks[layer]

    def forward():
        model.arena.reset()
        context = model._context(T, rate=dropout, step=3, first_row=2)
        return context, *block_forward(context, block, x, layer)

    context, _, cache = forward()
    dx = block_backward(context, block, dblock, dy.copy(), cache, layer).copy()
    check_gradients(lambda: np.vdot(forward()[1], dy), p | {"x": x}, dp | {"x": dx}, elementwise_up_to=0)


@pytest.mark.parametrize(
    ("fields", "announced"),
    [
        ({}, ["blocks.1", "blocks.0"]),
        ({"tie_embeddings": False}, ["lm_head", "blocks.1", "blocks.0"]),
        ({"tie_embeddings": False, "lora_rank": 2}, []),  # whose factors take their gradients at the end
    ],
    ids=["tied", "untied", "LoRA"],
)
def test_a_gradient_is_final_when_it_is_announced(backend, fields, announced):
    config = small_config(dropout=0.2, **fields)
    model, found = GPT(config, dtype="float64", backend=backend), {}
    set_weights_of_order_one(model, seed=8)
    spans = model.grads.spans()

    def when_final(name):
        found[name] = model.grads.flat[spans[name]].copy()

    model.loss_and_grad(*random_batch(config, B=2, T=5), when_final=when_final)
    assert list(found) == announced
    for name, gradient in found.items():
        assert gradient.any()
        np.testing.assert_array_equal(gradient, model.grads.flat[spans[name]], err_msg=name)
