"""Both backends of the model compute what the plain network of the book computes.

The engine adds memory management, caches and fused operations to the plain network.
None of them may change a loss or a gradient. Only the order of sums differs, so the
bound is 1e-12 of the largest entry.
"""

from itertools import product

import numpy as np
import pytest
from model_cases import gradients_of, random_batch, set_weights_of_order_one, small_config

from npllm.model import GPT
from npllm.reference.transformer import loss_and_gradients, mean_loss

CHOICES = {
    "norm": ("layernorm", "rmsnorm"),
    "position": ("learned", "rotary"),
    "mlp": ("gelu", "swiglu", "relu2"),
    "n_kv_head": (2, 1),
    "bias": (True, False),
    "tie_embeddings": (True, False),
}
VARIANTS = [dict(zip(CHOICES, values, strict=True)) for values in product(*CHOICES.values())]
# QK-norm touches neither the MLP nor the biases: one of each is enough.
VARIANTS += [variant | {"qk_norm": True} for variant in VARIANTS if variant["mlp"] == "gelu" and variant["bias"]]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(map(str, variant.values())))
def test_loss_and_every_gradient_are_those_of_the_plain_network(backend, variant):
    config = small_config(**variant)
    model = GPT(config, dtype="float64", backend=backend)
    set_weights_of_order_one(model, seed=3)
    batch = random_batch(config, B=2, T=5)
    loss, gradients = gradients_of(model, batch)
    plain_loss, plain = loss_and_gradients(config, model.params, *batch)
    assert abs(loss - plain_loss) <= 1e-12 * plain_loss
    assert abs(model.loss(*batch) - mean_loss(config, model.params, *batch)) <= 1e-12 * plain_loss
    assert gradients.keys() == plain.keys()
    for name, gradient in plain.items():
        error = np.abs(gradients[name] - gradient).max() / np.abs(gradient).max()
        assert error <= 1e-12, f"the gradient of {name} differs by {error:.1e}"
