"""The plain network of the book: every gradient against differences of the loss.

The weights are of order one. The tolerance is that of `gradient_check`.
"""

import numpy as np
import pytest
from gradient_check import check_gradients
from plain_network import EIGHT_VARIANTS, plain_config, random_rows, weights_of_order_one

from npllm.reference import transformer


def check_network(config, seed=1):
    """Assert that `loss_and_gradients` gives the network's loss and its gradients."""
    p = weights_of_order_one(config, seed)
    tokens, targets = random_rows(config, B=2, T=3, seed=seed)
    loss, dp = transformer.loss_and_gradients(config, p, tokens, targets)
    assert loss == pytest.approx(transformer.mean_loss(config, p, tokens, targets), rel=1e-13)
    check_gradients(lambda: transformer.mean_loss(config, p, tokens, targets), p, dp, elementwise_up_to=0)


@pytest.mark.parametrize("variant", EIGHT_VARIANTS, ids=str)
def test_gradient_of_every_parameter(variant):
    check_network(plain_config(**variant))


def test_gradient_with_relu2():
    """With this seed no input of an activation is within 0.02 of 0.

    There the second derivative of ReLU² jumps, and differences are inaccurate.
    """
    check_network(plain_config(mlp="relu2"), seed=2)


def without_the_way_past(config, p, dp, name, dy, cache):
    """The gradient through the branches alone, without that of the residual stream."""
    return right_block_backward(config, p, dp, name, dy, cache) - dy


def without_the_gradient_of_the_embedding(dx, cache, dtokens, dpositions):
    """Leaves the gradient of a tied table to the head alone."""


right_block_backward = transformer.block_backward


@pytest.mark.parametrize(
    ("function", "wrong", "blamed"),
    [
        ("block_backward", without_the_way_past, "token_embedding"),
        ("embedding_backward", without_the_gradient_of_the_embedding, "token_embedding"),
    ],
)
def test_a_planted_mistake_is_caught(monkeypatch, function, wrong, blamed):
    monkeypatch.setattr(transformer, function, wrong)
    with pytest.raises(AssertionError, match=f"gradient of '{blamed}' is wrong"):
        check_network(plain_config(n_layer=1))


def test_an_ignored_target_takes_no_part():
    config = plain_config()
    p = weights_of_order_one(config, 2)
    tokens, targets = random_rows(config, B=2, T=4, seed=2)
    targets[:] = -1
    targets[1, 2] = 3
    alone = np.full((1, 3), -1)
    alone[0, 2] = 3
    whole_loss, whole = transformer.loss_and_gradients(config, p, tokens, targets)
    # Neither the positions after 2 nor the other row can matter.
    loss, dp = transformer.loss_and_gradients(config, p, tokens[1:, :3], alone)
    assert loss == pytest.approx(whole_loss, rel=1e-13)
    for name, gradient in dp.items():
        np.testing.assert_allclose(whole[name], gradient, rtol=1e-11, atol=1e-13, err_msg=name)
