"""Training against the oracle of `enumeration.py`.

PPO comes close to the best policy, and the reward model finds the gold reward.
"""

import numpy as np
import pytest
from enumeration import (
    PROMPT,
    STOP,
    V,
    World,
    best_objective,
    enumerate_responses,
    log_probabilities,
    objective,
    order_one,
    world_config,
)

from npllm.model import GPT, ActorCritic
from npllm.optim import BatchConfig, OptimConfig, build_optimizer
from npllm.rlhf import ppo
from npllm.rlhf.losses import sigmoid
from npllm.rlhf.ppo import PPOGradients, Scorers
from npllm.rlhf.ppo_settings import PPOSettings
from npllm.rlhf.reward import Pairs, RewardConfig, RewardGradients
from npllm.rlhf.sequences import Sequences, rewards_of

ADAM = {"name": "adam", "min_lr": 0.0, "warmup_steps": 0, "decay": "linear", "beta2": 0.99, "weight_decay": 0.0}


def train(model, gradients, *, steps: int, lr: float, rows: int = 1) -> None:
    """Train like the loop, with clipped gradients and a learning rate falling to 0."""
    optimizer = build_optimizer(model, OptimConfig(lr=lr, **ADAM))
    for step in range(steps):
        gradients(model, np.arange(step * rows, (step + 1) * rows), step)
        optimizer.step(grad_clip=1.0, lr=lr * (1 - step / steps))


def random_gold(world: World, seed: int) -> np.ndarray:
    """Return a random reward for each response, (N,).

    It is a sum of random shares, one for each token at its position, and a random
    number for the whole response.
    """
    rng = np.random.default_rng(seed)
    shares = np.append(rng.standard_normal((8, V)), np.zeros((8, 1)), axis=1)  # none for the target -1
    return shares[np.arange(8), world.sequences.targets].sum(axis=1) + 0.3 * rng.standard_normal(len(world.stopped))


@pytest.mark.long
@pytest.mark.parametrize("method", ["ppo", *(pytest.param(name, marks=pytest.mark.long) for name in ("rloo", "grpo"))])
def test_reinforcement_learning_comes_near_the_best_policy(monkeypatch, method):
    """J rises by at least 95 % of the difference between J* and the reference's J.

    A table of gold rewards serves as the reward model.
    """
    world = enumerate_responses(max_tokens=4)
    gold = random_gold(world, 102)
    index = {row.tobytes(): i for i, row in enumerate(world.sequences.tokens)}
    monkeypatch.setattr(ppo, "rewards_of", lambda _, s: gold[[index[row.tobytes()] for row in s.tokens]])
    config, with_value = world_config(n_embd=24), world_config(n_embd=24, n_outputs=1)
    reference = order_one(GPT(config), 2)
    model = ActorCritic(config, with_value, seed=1) if method == "ppo" else GPT(config)
    policy, critic = ppo.networks(model)
    for name, array in reference.params.items():
        policy.params[name][...] = array
    if critic is not None:
        order_one(critic, 5)

    settings = PPOSettings(
        method=method,
        rollout_size=256,
        group=8,
        max_tokens=4,
        epochs=2,
        kl_coef=0.5,
        kl_target=0.0,
        entropy_coef=0.02,
        value_coef=0.5,
        max_update_kl=1.0,
    )
    gradients = PPOGradients(
        settings,
        [list(PROMPT)] * 256,
        Scorers(reference, reference),
        stop_id=STOP,
        minibatch=128,
        micro_size=128,
        seed=0,
        block_size=8,
    )
    train(model, gradients, steps=160, lr=0.01)

    buffer = gradients.buffer
    normalised = (gold - buffer.score_mean) / buffer.score_std
    rewards = np.where(world.stopped, normalised, settings.missing_stop_score)
    log_ref, beta = log_probabilities(reference, world), settings.kl_coef
    start, best = objective(log_ref, log_ref, rewards, beta), best_objective(log_ref, rewards, beta)
    reached = objective(log_probabilities(policy, world), log_ref, rewards, beta)
    assert best - start > 1.0
    assert start + 0.95 * (best - start) <= reached <= best


@pytest.mark.long
def test_the_reward_model_finds_the_gold_reward():
    """It learns from pairs labelled by the Bradley-Terry model.

    The better response is preferred with probability sigma(difference of gold).
    """
    world = enumerate_responses(max_tokens=2)
    N, steps, rows = len(world.stopped), 250, 128
    rng = np.random.default_rng(0)
    gold = 1.5 * rng.standard_normal(N)
    one = rng.integers(0, N, steps * rows)
    other = (one + rng.integers(1, N, len(one))) % N
    right = rng.random(len(one)) < sigmoid(gold[one] - gold[other])
    chosen, rejected = np.where(right, one, other), np.where(right, other, one)
    pairs = Pairs(*(Sequences(*(array[side] for array in world.sequences)) for side in (chosen, rejected)))
    model = order_one(GPT(world_config(n_embd=32, n_outputs=1)), 3)
    gradients = RewardGradients(pairs, RewardConfig(batch=BatchConfig(size=rows, micro_size=rows)))
    train(model, gradients, steps=steps, lr=0.01, rows=rows)

    found = rewards_of(model, world.sequences)
    assert np.corrcoef(found, gold)[0, 1] > 0.95
    differences = gold[:, None] - gold
    certainty = sigmoid(np.abs(differences))
    agrees = (found[:, None] - found) * differences > 0
    apart = ~np.eye(N, dtype=bool)
    bayes = certainty[apart].mean()  # the highest accuracy that is possible
    assert bayes > 0.75
    assert np.where(agrees, certainty, 1 - certainty)[apart].mean() > bayes - 0.03
    assert np.polyfit(gold, found, 1)[0] == pytest.approx(1.0, abs=0.3)  # the scale is found too
