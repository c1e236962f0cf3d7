"""The networks of a run of PPO, RLOO or GRPO: policy, critic, reference and reward
model.

                  without LoRA              with LoRA
    policy        a copy of the base        frozen weights + factors of its own
    critic        a copy of the reward      frozen weights + a copy of the reward
                  model                     model's factors
    reference     the base                  the frozen weights
    reward model  as it was trained         frozen weights + its factors

Policy and critic are one `ActorCritic`: one set of parameters to train. RLOO and GRPO
have no critic. Without LoRA every network has arrays of its own. With LoRA all of them
share the frozen weights, and one workspace for the merged weights and their gradients.
That is safe for three reasons:

- Nobody writes to the frozen weights. The optimiser sees the factors only.
- A forward pass starts by merging its own network's factors into the workspace, so it
  never reads what another network left there. The head and the backward use the weights
  of that pass, so they must come before another network's next pass: `ppo_gradient.py`
  ends the policy's backward before it starts the critic's pass, and a rollout is
  written to its end before it is judged.
- A backward ends by taking its gradients out of the workspace and leaves zeros there.
  Reference and reward model have no backward; they hold the same array, so that none is
  allocated for them.

One thread runs all of them. Each model has a lock of its own, and none guards a
workspace that several models share.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from npllm.errors import ConfigError, DataError
from npllm.finetuning.adaptation import AdaptConfig, adapted
from npllm.model import GPT, ActorCritic, Storage, Trainable
from npllm.model.lora import Workspace
from npllm.training.machine import usable_dtype


class Actors(NamedTuple):
    """The networks of a run. model: what is trained. reference, reward: never
    changed."""

    model: Trainable
    reference: GPT
    reward: GPT


def build_actors(policy: GPT, reward: GPT, adapt: AdaptConfig, *, method: str, seed: int) -> Actors:
    """The networks for `method`, from a trained policy and a trained reward model.

    seed: of the factors' initial values. Raises DataError when `reward` has no scalar
    head, and ConfigError when it cannot share the policy's weights and has to.
    """
    if reward.config.n_outputs != 1:
        raise DataError("The run of --reward holds no reward model; make one with npllm reward.")
    with_critic = method == "ppo"
    if adapt.lora_rank:
        policy = adapted(policy, adapt, dropout=0.0, seed=seed)
        return lora_with_critic(policy, reward, seed) if with_critic else lora_policy(policy, reward)
    return full_with_critic(policy, reward, adapt, seed) if with_critic else full_policy(policy, reward, adapt)


def full_policy(base: GPT, reward: GPT, adapt: AdaptConfig) -> Actors:
    """All weights are trained, and there is no critic."""
    return Actors(adapted(base, adapt, dropout=0.0), base, reward)


def full_with_critic(base: GPT, reward: GPT, adapt: AdaptConfig, seed: int) -> Actors:
    """All weights are trained. The critic is a copy of the reward model."""
    policy = adapted(base, adapt, dropout=0.0)
    critic = adapted(reward, adapt, n_outputs=1, dropout=0.0)
    return Actors(joined(policy, critic, seed), base, reward)


def lora_policy(policy: GPT, reward: GPT) -> Actors:
    """LoRA's factors are trained, and there is no critic. policy: with its factors."""
    if has_weights_of(policy, reward):
        reward = sharing(reward, policy)
    return Actors(policy, frozen_reference(policy), reward)


def lora_with_critic(policy: GPT, reward: GPT, seed: int) -> Actors:
    """LoRA's factors are trained. The critic is a copy of the reward model's, on the
    policy's frozen weights."""
    if not has_weights_of(policy, reward):
        raise ConfigError(
            "With adapt.lora_rank the critic shares the policy's weights; train the reward model with it."
        )
    reward = sharing(reward, policy)
    return Actors(joined(policy, reward, seed, shared=policy), frozen_reference(policy), reward)


def has_weights_of(policy: GPT, reward: GPT) -> bool:
    """Whether the reward model's factors stand on the same frozen weights as the
    policy's."""
    return reward.frozen is not None and np.array_equal(reward.frozen.flat, policy.frozen.flat)


def workspace_of(policy: GPT) -> Workspace:
    """The merged weights of a policy with LoRA, and their gradients."""
    return Workspace(policy.weights, policy.dweights)


def sharing(reward: GPT, policy: GPT) -> GPT:
    """The reward model, with its factors, on the policy's frozen weights and
    workspace."""
    storage = Storage(reward.params, policy.dweights, policy.frozen, workspace_of(policy))
    return GPT(reward.config, dtype=policy.dtype_name, storage=storage)


def frozen_reference(policy: GPT) -> GPT:
    """The frozen weights below a policy with LoRA, as a model."""
    storage = Storage(policy.frozen, policy.dweights)
    return GPT(policy.config.language_model, dtype=policy.dtype_name, storage=storage)


def joined(policy: GPT, critic: GPT, seed: int, shared: GPT | None = None) -> ActorCritic:
    """Both in one set of parameters, which starts with the values that they have.

    shared: the model whose frozen weights and workspace the two use, with LoRA.
    """
    pair = ActorCritic(
        policy.config,
        replace(critic.config, dropout=0.0),
        seed=seed,
        dtype=policy.dtype_name,
        frozen=None if shared is None else shared.frozen,
        workspace=None if shared is None else workspace_of(shared),
    )
    for part, model in ((pair.policy, policy), (pair.critic, critic)):
        for name, array in part.params.items():
            array[...] = model.params[name]
    return pair


def check_dtype(actors: Actors, dtype: str) -> None:
    """Raise ConfigError unless all networks compute in `dtype`: others would not agree
    on a ratio of 1."""
    for who, model in (("policy", actors.model), ("reward model", actors.reward)):
        if model.dtype_name != usable_dtype(dtype):
            raise ConfigError(
                f"train.dtype is {dtype}, but the {who} was trained in {model.dtype_name}; train them all in the same."
            )
