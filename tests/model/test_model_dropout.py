"""Where the model applies dropout, and that no two of its masks are equal."""

import numpy as np
import pytest
from model_cases import patched, random_batch, set_weights_of_order_one, small_config

from npllm.model import GPT


def keys_used(backend):
    """Name of an operation -> the dropout keys that one `loss_and_grad` gave it."""
    keys = {}
    config = small_config(n_layer=3, dropout=0.3)
    model = GPT(config, seed=42, backend=backend)
    ops = model.ops

    def recording(name):
        def wrapper(*args, **keywords):
            key = keywords["key"] if "key" in keywords else args[2]
            keys.setdefault(name, []).append(key)
            return getattr(ops, name)(*args, **keywords)

        return wrapper

    names = ("dropout_forward", "dropout_backward", "attention_forward", "attention_backward")
    model.ops = patched(ops, **{name: recording(name) for name in names})
    model.loss_and_grad(*random_batch(config, B=2, T=5), step=17, first_row=4)
    return keys


def test_every_dropout_has_a_mask_of_its_own(backend):
    """The embedding has one mask, and each block three.

    Those are for the attention weights, the attention branch and the MLP branch.
    """
    keys = keys_used(backend)
    forward = keys["dropout_forward"] + keys["attention_forward"]
    assert {(key.seed, key.step) for key in forward} == {(42, 17)}
    assert len({key.stream for key in forward}) == len(forward) == 1 + 3 * 3
    assert {key.first for key in keys["dropout_forward"]} == {4 * 5 * 8}  # rows x T x C
    assert {key.first for key in keys["attention_forward"]} == {4 * 2 * 5 * 5}  # rows x H x T x T


def test_the_backward_uses_the_masks_of_the_forward(backend):
    keys = keys_used(backend)
    assert keys["dropout_backward"] == keys["dropout_forward"][::-1]
    assert keys["attention_backward"] == keys["attention_forward"][::-1]


def test_masks_depend_on_seed_step_and_first_row(backend):
    config = small_config(dropout=0.3)
    batch = random_batch(config, B=2, T=5)

    def loss(seed=0, **how):
        model = GPT(config, seed=seed, dtype="float64", backend=backend)
        set_weights_of_order_one(model, seed=7)
        return model.loss_and_grad(*batch, **how)

    assert loss() == loss()
    assert len({loss(), loss(seed=1), loss(step=1), loss(first_row=2)}) == 4


def test_dropout_is_for_training_only(backend):
    """`loss` never drops, so `loss_and_grad` agrees with it only when the rate is 0."""
    without, with_dropout = (
        GPT(small_config(dropout=rate), seed=1, dtype="float64", backend=backend) for rate in (0.0, 0.5)
    )
    batch = random_batch(without.config, B=2, T=5)
    assert with_dropout.loss(*batch) == without.loss(*batch)
    np.testing.assert_array_equal(with_dropout.logits(batch.tokens), without.logits(batch.tokens))
    assert without.loss_and_grad(*batch) == pytest.approx(without.loss(*batch), rel=1e-14)
    assert with_dropout.loss_and_grad(*batch) != pytest.approx(with_dropout.loss(*batch), rel=1e-6)
