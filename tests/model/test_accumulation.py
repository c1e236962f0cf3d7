"""The gradient of a batch does not depend on the micro-batches that it is computed in."""

import numpy as np
import pytest
from model_cases import GPT_2, LLAMA, check_split, gradients_of, random_batch, set_weights_of_order_one, small_config

from npllm.model import GPT


@pytest.mark.parametrize("architecture", [GPT_2, LLAMA], ids=["gpt2", "llama"])
@pytest.mark.parametrize("sizes", [(8,), (1,) * 8, (2,) * 4, (4, 4), (5, 3), (3, 5)], ids=str)
def test_micro_batches_add_up_to_the_batch(backend, sizes, architecture):
    check_split(backend, sizes, **architecture)


def test_a_new_gradient_is_added_to_the_old_one(backend):
    config = small_config()
    model = GPT(config, dtype="float64", backend=backend)
    batch = random_batch(config, B=3, T=5)
    _, once = gradients_of(model, batch)
    model.loss_and_grad(*batch)
    for name, gradient in once.items():
        np.testing.assert_allclose(model.grads[name], 2 * gradient, rtol=1e-12, atol=1e-15, err_msg=name)


def test_dropout_masks_depend_on_the_step_and_the_first_row(backend):
    config = small_config(dropout=0.3)
    model = GPT(config, dtype="float64", backend=backend)
    set_weights_of_order_one(model, seed=7)
    batch = random_batch(config, B=2, T=5)
    losses = [model.loss_and_grad(*batch, **how) for how in ({}, {}, {"step": 1}, {"first_row": 2})]
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


def test_dropout_is_for_training_only(backend):
    """Losses and gradients of training are those of `loss` exactly when the rate is 0."""
    without, with_dropout = (
        GPT(small_config(dropout=rate), seed=1, dtype="float64", backend=backend) for rate in (0.0, 0.5)
    )
    batch = random_batch(without.config, B=2, T=5)
    assert with_dropout.loss(*batch) == without.loss(*batch)
    assert without.loss_and_grad(*batch) == pytest.approx(without.loss(*batch), rel=1e-14)
    assert with_dropout.loss_and_grad(*batch) != pytest.approx(with_dropout.loss(*batch), rel=1e-6)
