"""The gradients of every loss of RLHF through the whole model, for each parameter.

They are compared with finite differences of the loss. The losses for that are written
here token by token, from the equations in `losses.py`.
"""

import numpy as np
import pytest
from gradient_check import check_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from rlhf_cases import (
    ARCHITECTURES,
    actor_critic,
    language_model,
    minibatch_around,
    ppo_loss,
    random_sequences,
    tiny_config,
    token_figures,
    token_values,
    with_gradients,
)

from npllm.data.sampler import RowSampler
from npllm.optim import BatchConfig
from npllm.rlhf.dpo import DPOConfig, DPOGradients, DPOSettings, preference_gradient
from npllm.rlhf.ppo_gradient import policy_and_value_gradient
from npllm.rlhf.reward import Pairs, RewardConfig, RewardGradients
from npllm.training.config import TrainConfig

architectures = pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
examples = st.fixed_dictionaries(
    {"lora_rank": st.sampled_from([0, 2]), "B": st.integers(1, 3), "seed": st.integers(0, 2**32)}
)


def random_pairs(config, P, seed) -> Pairs:
    return Pairs(random_sequences(config, P, seed), random_sequences(config, P, seed + 1))


def log_sigmoid(z):
    return -np.log1p(np.exp(-z))


def rewards_at_the_end(model, sequences):
    values = token_values(model, sequences.tokens)
    return np.array([values[row, column] for row, column in enumerate(sequences.last)])


def check_ppo(model, B, seed):
    case = minibatch_around(model, B, seed)
    (loss, _), gradients = with_gradients(model, policy_and_value_gradient, *case)
    assert loss == pytest.approx(ppo_loss(model, case), rel=1e-11)
    check_gradients(lambda: ppo_loss(model, case), dict(model.params), gradients, elementwise_up_to=0)


def part_of_an_epoch(n_pairs, P, seed) -> tuple[np.ndarray, np.ndarray]:
    """Return P sample ids in the second epoch, and the numbers of their pairs.

    The order of the pairs depends on the seed.
    """
    ids = n_pairs + 1 + np.arange(P)
    return ids, RowSampler(n_pairs, seed).rows(ids)


@architectures
@settings(max_examples=3)
@given(example=examples)
def test_bradley_terry(backend, architecture, example):
    """The batch is smaller than an epoch and is split into micro-batches."""
    config = tiny_config(**architecture, n_outputs=1, lora_rank=example["lora_rank"])
    P, seed = example["B"] + 1, example["seed"]
    model, pairs = language_model(config, seed, backend=backend), random_pairs(config, 7, seed)
    ids, rows = part_of_an_epoch(7, P, seed=5)
    batch, train = BatchConfig(size=P, micro_size=2), TrainConfig(seed=5)
    gradients = RewardGradients(pairs, RewardConfig(batch=batch, train=train))

    def margins():
        chosen, rejected = (rewards_at_the_end(model, side) for side in pairs.take(rows))
        return chosen - rejected

    def loss():
        return float(-log_sigmoid(margins()).mean())

    result, found = with_gradients(model, gradients, ids, 0)
    assert result.loss == pytest.approx(loss(), rel=1e-11)
    assert result.figures == pytest.approx({"accuracy": (margins() > 0).mean(), "margin": margins().mean()}, rel=1e-9)
    check_gradients(loss, dict(model.params), found, elementwise_up_to=0)


@architectures
@settings(max_examples=3)
@given(example=examples, beta=st.sampled_from([0.1, 1.0]))
def test_direct_preference(backend, architecture, example, beta):
    """Each pair is compared with the reference's log-probabilities of the same pair."""
    config = tiny_config(**architecture, lora_rank=example["lora_rank"])
    P, seed = example["B"] + 1, example["seed"]
    model, pairs = language_model(config, seed, backend=backend), random_pairs(config, 7, seed)
    reference = language_model(tiny_config(**architecture), seed + 1)
    ids, rows = part_of_an_epoch(7, P, seed=5)
    batch, train = BatchConfig(size=P, micro_size=2), TrainConfig(seed=5)
    gradients = DPOGradients(pairs, reference, DPOConfig(batch=batch, train=train, dpo=DPOSettings(beta=beta)))

    def margins(of):
        chosen, rejected = (token_figures(of, side.tokens, side.targets)[0].sum(axis=1) for side in pairs.take(rows))
        return chosen - rejected

    of_reference = margins(reference)

    def loss():
        return float(-log_sigmoid(beta * (margins(model) - of_reference)).mean())

    result, found = with_gradients(model, gradients, ids, 0)
    assert result.loss == pytest.approx(loss(), rel=1e-11)
    assert result.figures == {"accuracy": (margins(model) > of_reference).mean()}
    check_gradients(loss, dict(model.params), found, elementwise_up_to=0)


def test_direct_preference_returns_the_margins(backend):
    """A margin is in units of reward: beta times the log-ratios' difference."""
    config, beta = tiny_config(), 0.3
    model, pairs = language_model(config, 1, backend=backend), random_pairs(config, 5, 1)
    of_reference = np.random.default_rng(2).standard_normal((2, 5))
    _, margins = preference_gradient(model, pairs, of_reference, beta, n_pairs=5)
    chosen, rejected = (token_figures(model, side.tokens, side.targets)[0].sum(axis=1) for side in pairs)
    expected = beta * (chosen - of_reference[0] - (rejected - of_reference[1]))
    np.testing.assert_allclose(margins, expected, rtol=1e-10)


@architectures
@settings(max_examples=3)
@given(example=examples)
def test_policy_and_critic(backend, architecture, example):
    config = tiny_config(**architecture, lora_rank=example["lora_rank"])
    check_ppo(actor_critic(config, example["seed"], backend=backend), example["B"] + 1, example["seed"])


@architectures
@settings(max_examples=3)
@given(example=examples)
def test_policy_without_a_critic(backend, architecture, example):
    """RLOO and GRPO use this loss."""
    config = tiny_config(**architecture, lora_rank=example["lora_rank"])
    check_ppo(language_model(config, example["seed"], backend=backend), example["B"], example["seed"])


def test_the_cases_lie_on_both_sides_of_every_clip():
    """Otherwise the checks above would not test one of the sides."""
    model = actor_critic(tiny_config(), 0)
    (tokens, targets, mask, old, old_values, advantages, returns), setting, _ = minibatch_around(model, 12, 0)
    ratio = np.exp(token_figures(model.policy, tokens, targets, setting.temperature)[0] - old)[mask]
    kinds = {(bool(abs(r - 1) > setting.clip), r > 1, A > 0) for r, A in zip(ratio, advantages[mask], strict=True)}
    assert len(kinds) == 8
    values = token_values(model.critic, tokens)
    change, error = (values - old_values)[mask], (values - returns)[mask]
    limit = setting.value_clip
    limited_error = error - change + np.clip(change, -limit, limit)
    kinds = {(bool(abs(d) > limit), bool(f**2 > e**2)) for d, e, f in zip(change, error, limited_error, strict=True)}
    assert kinds >= {(False, False), (True, False), (True, True)}
    assert np.abs(limited_error**2 - error**2)[np.abs(change) > limit].min() > 1e-3


def test_the_share_of_clipped_values():
    """It is the share of all tokens whose clipped value has the larger error."""
    model = actor_critic(tiny_config(), 0, dtype="float32")
    batch, settings, n_tokens = minibatch_around(model, 12, 0)
    old = batch.values.astype(np.float32).astype(np.float64)  # as in a rollout
    batch = batch._replace(values=old)
    tokens, _, mask, *_, returns = batch
    values, old, returns = (array[mask] for array in (token_values(model.critic, tokens), old, returns))
    limit = settings.value_clip
    error, limited = values - returns, np.clip(values, old - limit, old + limit) - returns
    clipped = np.count_nonzero((np.abs(values - old) > limit) & (limited**2 > error**2))
    assert 0 < clipped < len(values) / 2
    _, figures = policy_and_value_gradient(model, batch, settings, n_tokens)
    assert figures["value/clip_frac"] == pytest.approx(clipped / n_tokens)
