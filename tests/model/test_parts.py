"""Models of one and of two networks, as the optimizer and a checkpoint see them."""

import numpy as np
import pytest
from model_cases import small_config

from npllm.model import GPT, ActorCritic, Parameters, Trainable
from npllm.model.parameters import name_in_model, shapes_of_parts, weight_shapes

PLAIN, LORA = {}, {"lora_rank": 2}


def model_of(kind: str, sizes: dict) -> Trainable:
    config, head = small_config(**sizes), small_config(**sizes, n_outputs=1)
    frozen = Parameters(weight_shapes(config), "float32") if sizes else None
    return GPT(config) if kind == "one" else ActorCritic(config, head, frozen=frozen)


@pytest.mark.parametrize("kind", ["one", "two"])
@pytest.mark.parametrize("sizes", [PLAIN, LORA], ids=["plain", "lora"])
def test_the_parts_hold_every_parameter_of_the_model_under_a_name_of_their_own(kind, sizes):
    """A missing part would not be adapted, counted or described in a checkpoint."""
    model = model_of(kind, sizes)
    parts = model.parts()
    named = {name_in_model(part, name): (network, name) for part, network in parts.items() for name in network.params}
    assert named.keys() == model.params.keys() == model.grads.keys()
    for whole, (network, name) in named.items():
        assert np.shares_memory(model.params[whole], network.params[name]), whole
        assert np.shares_memory(model.grads[whole], network.grads[name]), whole
    assert shapes_of_parts({part: network.config for part, network in parts.items()}) == model.params.shapes


@pytest.mark.parametrize("kind", ["one", "two"])
@pytest.mark.parametrize("sizes", [PLAIN, LORA], ids=["plain", "lora"])
def test_both_have_what_training_asks_of_a_model(kind, sizes):
    model = model_of(kind, sizes)
    for name in Trainable.__annotations__:
        assert hasattr(model, name), name
    assert (model.frozen is None) == (sizes == PLAIN)
    assert model.config == next(iter(model.parts().values())).config  # the first part is the one that writes text
