"""The four networks of a run.

The tests check their initial weights, what they share, what training changes, and what
a checkpoint saves.
"""

import numpy as np
import pytest
from checkpoint_files import write_checkpoint
from rlhf_cases import STOP, actor_critic, collected, language_model, order_one, random_sequences, tiny_config

from npllm.errors import ConfigError, DataError
from npllm.finetuning.adaptation import AdaptConfig, adapted
from npllm.model import GPT
from npllm.optim import OptimConfig, build_optimizer
from npllm.rlhf.actors import Actors, build_actors
from npllm.rlhf.ppo import PPOGradients, Scorers
from npllm.rlhf.ppo_gradient import networks
from npllm.rlhf.ppo_settings import PPOSettings
from npllm.rlhf.sequences import rewards_of, sequence_log_probability
from npllm.runs.checkpoint import load_checkpoint, model_from_checkpoint, restore_checkpoint
from npllm.training.state import LoopState

METHODS = ("ppo", "rloo", "grpo")
SIZES = {"n_layer": 2, "n_embd": 48, "n_head": 4}


def actors_of(policy: GPT, reward: GPT, method: str, lora_rank: int) -> Actors:
    return build_actors(policy, reward, AdaptConfig(lora_rank=lora_rank), method=method, seed=0)


def base_models(lora_rank: int, *, dtype: str = "float32", **sizes) -> tuple[GPT, GPT]:
    """Return a fine-tuned policy, and a reward model that was trained from it.

    Both have LoRA if there is a rank. The policy has then also learnt two new tokens.
    """
    lora = {"lora_rank": lora_rank, "lora_new_tokens": 2} if lora_rank else {}
    policy = language_model(tiny_config(**sizes, **lora), 1, dtype=dtype)
    reward = adapted(policy, AdaptConfig(lora_rank=lora_rank), n_outputs=1, seed=2)
    trained = order_one(GPT(reward.config, dtype=dtype), 5).params
    for name, array in reward.params.items():
        if "lora" in name or "readout" in name:
            array[...] = trained[name]
    return policy, reward


def gradients_for(actors, method: str) -> PPOGradients:
    return PPOGradients(
        PPOSettings(method=method, rollout_size=8, group=4, max_tokens=4),
        [[1], [2, 3]],
        Scorers(actors.reference, actors.reward),
        stop_id=STOP,
        minibatch=8,
        micro_size=8,
        seed=0,
        block_size=16,
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_all_begin_as_what_they_were_given(method, lora_rank):
    policy, reward = base_models(lora_rank)
    actors = actors_of(policy, reward, method, lora_rank)
    trained, critic = networks(actors.model)
    tokens = np.arange(12).reshape(2, 6) % 11
    expected, outputs = policy.logits(tokens), reward.readout(reward.hidden(tokens))
    for model in (trained, actors.reference, trained):  # in turns: with LoRA they share memory
        np.testing.assert_array_equal(model.logits(tokens), expected)
    scorers = [actors.reward] if critic is None else [actors.reward, critic]
    for model in (*scorers, *scorers):
        np.testing.assert_array_equal(model.readout(model.hidden(tokens)), outputs)
        np.testing.assert_array_equal(trained.logits(tokens), expected)
    assert (critic is None) == (method != "ppo")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_training_changes_neither_reference_nor_reward_model(method, lora_rank):
    """Shared weights or memory could change them unnoticed."""
    policy, reward = base_models(lora_rank)
    actors = actors_of(policy, reward, method, lora_rank)
    gradients = gradients_for(actors, method)
    sequences = random_sequences(policy.config, 6)
    trained, critic = networks(actors.model)

    def judgements():
        return sequence_log_probability(actors.reference, sequences), rewards_of(actors.reward, sequences)

    before, policy_before = judgements(), sequence_log_probability(trained, sequences)
    values_before = None if critic is None else rewards_of(critic, sequences)
    optimizer = build_optimizer(actors.model, OptimConfig(name="adam", lr=0.05))
    for step in range(3):
        gradients(actors.model, np.arange(8), step)
        optimizer.step(grad_clip=1.0)
    for now, then in zip(judgements(), before, strict=True):
        np.testing.assert_array_equal(now, then)
    assert np.abs(sequence_log_probability(trained, sequences) - policy_before).max() > 1e-3
    if critic is not None:
        assert np.abs(rewards_of(critic, sequences) - values_before).max() > 1e-3


def buffers(actors) -> dict[int, np.ndarray]:
    """Return the distinct memory buffers of all networks, by id.

    They hold the parameters, weights and gradients.
    """
    found = {}
    models = [*filter(None, networks(actors.model)), actors.reference, actors.reward]
    for model in models:
        for arrays in (model.params, model.grads, model.weights, model.dweights, model.frozen or {}):
            for array in arrays.values():
                while isinstance(array.base, np.ndarray):
                    array = array.base
                found[id(array)] = array
    return found


def test_with_lora_four_models_cost_less_than_four_times_the_weights():
    """In trl#1444 each of the four models had its own weights in memory."""
    policy, reward = base_models(1, **SIZES)
    actors = actors_of(policy, reward, "ppo", 1)
    trained, critic = networks(actors.model)
    for model in (critic, actors.reward):
        assert np.shares_memory(model.frozen.flat, trained.frozen.flat)
        assert np.shares_memory(model.weights["token_embedding"], trained.weights["token_embedding"])
        assert np.shares_memory(model.dweights["lm_head"], trained.dweights["lm_head"])
    assert np.shares_memory(actors.reference.params.flat, trained.frozen.flat)
    one_model = actors.reference.params.flat.nbytes
    assert 3 * one_model < sum(array.nbytes for array in buffers(actors).values()) < 4 * one_model
    without_critic = actors_of(policy, reward, "rloo", 1)
    assert sum(array.nbytes for array in buffers(without_critic).values()) < 4 * one_model
    without = actors_of(*base_models(0, **SIZES), "ppo", 0)
    assert sum(array.nbytes for array in buffers(without).values()) > 7 * one_model


def test_a_checkpoint_of_an_actor_and_its_critic_holds_both(tmp_path):
    """In trl#3308 the critic was discarded.

    The checkpoint also holds the rollout, so a run can go on in the middle of one
    (trl#2657).
    """
    model = actor_critic(tiny_config(), 3, dtype="float32")
    gradients = collected(model)
    optimizer = build_optimizer(model, OptimConfig(name="adam"))
    state = LoopState(model, optimizer, extra=gradients.buffer.arrays())
    path = write_checkpoint(tmp_path, state)
    description = load_checkpoint(path).description
    names = {f"{part}.{name}" for part in ("policy", "critic") for name in getattr(model, part).params}
    assert set(description["table"]) == names
    assert any(name.startswith("critic.") for name in names)

    other = actor_critic(tiny_config(), 8, dtype="float32")
    empty = collected(other, rollout_size=16)
    restored = LoopState(other, build_optimizer(other, OptimConfig(name="adam")), extra=empty.buffer.arrays())
    restore_checkpoint(path, restored)
    for name in names:
        np.testing.assert_array_equal(other.params[name], model.params[name])
    np.testing.assert_array_equal(empty.buffer.advantages, gradients.buffer.advantages)
    np.testing.assert_array_equal(empty.buffer.tokens, gradients.buffer.tokens)
    policy = model_from_checkpoint(path)
    for name, array in policy.params.items():
        np.testing.assert_array_equal(array, model.policy.params[name])


def test_a_run_that_is_no_reward_model_is_refused():
    policy, _ = base_models(0)
    with pytest.raises(DataError, match="holds no reward model; make one with npllm reward"):
        actors_of(policy, policy, "ppo", 0)


def test_with_lora_the_reward_model_must_have_it_on_the_same_weights():
    policy, reward = base_models(0)
    with pytest.raises(ConfigError, match=r"adapt\.lora_rank .* train the reward model with it"):
        actors_of(policy, reward, "ppo", 2)
    other, _ = base_models(2)
    _, reward = base_models(2)
    other.params.flat[0] += 1.0
    with pytest.raises(ConfigError, match="train the reward model with it"):
        actors_of(other, reward, "ppo", 2)
    assert actors_of(policy, base_models(0)[1], "rloo", 2).reward.config.n_outputs == 1
