"""How much memory a stage is said to need."""

import pytest

from npllm.errors import ResourceError
from npllm.finetuning.adaptation import AdaptConfig, adapted
from npllm.finetuning.sft import SFTConfig
from npllm.finetuning.stage_run import bytes_of_weights, new_state, train_stage
from npllm.generation.kv_cache import KVCache
from npllm.model import GPT, ActorCritic, ModelConfig
from npllm.optim import BatchConfig

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 6, "vocab_size": 11}
PLAIN, HEAD = ModelConfig(**SIZES), ModelConfig(**SIZES, n_outputs=1)


def nbytes(*models) -> int:
    return sum(model.params.flat.nbytes for model in models)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_are_counted_seven_times_and_those_of_other_models_once(dtype):
    """Parameters, gradients, two moments, and of three of these a copy to be written."""
    model, other = GPT(PLAIN, dtype=dtype), GPT(HEAD, dtype=dtype)
    assert bytes_of_weights(new_state(model, SFTConfig()), []) == 7 * nbytes(model)
    assert bytes_of_weights(new_state(model, SFTConfig()), [other]) == 7 * nbytes(model) + nbytes(other)
    pair = ActorCritic(PLAIN, HEAD, dtype=dtype)
    assert bytes_of_weights(new_state(pair, SFTConfig()), [model, other]) == 7 * nbytes(pair) + nbytes(model, other)


def test_frozen_weights_are_counted_once_for_all_that_share_them():
    """Themselves, their copy to be written, the merged weights and their gradients; of the models the factors."""
    config = AdaptConfig(lora_rank=2)
    base = GPT(PLAIN)
    model = adapted(base, config)
    sharing = adapted(base, config, n_outputs=1, frozen=model.frozen)
    needed = bytes_of_weights(new_state(model, SFTConfig()), [sharing])
    assert needed == 7 * nbytes(model) + nbytes(sharing) + 4 * nbytes(base)


@pytest.mark.parametrize(("batch", "rows"), [(BatchConfig(size=8, micro_size=3), 3), (BatchConfig(size=2), 2)])
def test_a_pass_keeps_what_its_rows_are_wide(monkeypatch, batch, rows):
    """Not as wide as the model could take, and of policy and critic each."""
    counted = []

    def refuse(needed):
        counted.append(needed)
        raise ResourceError

    monkeypatch.setattr("npllm.finetuning.stage_run.require_memory", refuse)
    config, pair = SFTConfig(batch=batch), ActorCritic(PLAIN, HEAD)
    with pytest.raises(ResourceError):
        train_stage(None, config, new_state(pair, config), None, None, width=4, rollout=5)
    kept = 2 * 8 * rows * 4 * PLAIN.n_embd * PLAIN.n_layer
    cache = KVCache(pair.policy, 5)
    assert counted == [7 * nbytes(pair) + 4 * kept + cache.keys.nbytes + cache.values.nbytes]
