"""The oracle: gradients and divergences against exact sums over all responses.

See `enumeration.py`.
"""

import numpy as np
import pytest
from enumeration import (
    STOP,
    World,
    enumerate_responses,
    log_probabilities,
    objective,
    order_one,
    world_config,
)

from npllm.model import GPT
from npllm.reference.differences import central_difference
from npllm.rlhf.advantages import generalised_advantages, token_rewards
from npllm.rlhf.divergence import categorical_kl, compare, exact_kl
from npllm.rlhf.ppo_gradient import policy_and_value_gradient
from npllm.rlhf.ppo_settings import PPOSettings
from npllm.rlhf.rollout import Minibatch
from npllm.rlhf.sequences import Sequences, values_of

BETA = 0.3


@pytest.fixture(scope="module")
def world() -> World:
    return enumerate_responses(max_tokens=4)


@pytest.fixture(scope="module")
def models() -> tuple[GPT, GPT]:
    """Return a policy and a reference with other weights.

    They have a scalar head, whose output serves as the baseline.
    """
    config = world_config(n_outputs=1, n_embd=8)
    return tuple(order_one(GPT(config, dtype="float64"), seed) for seed in (1, 2))


@pytest.fixture(scope="module")
def gold(world) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(len(world.stopped))


def test_the_responses_are_all_there_are(world, models):
    """1 + 7 + 49 + 343 responses stop, 7^4 are cut off; the probabilities sum to 1."""
    assert (len(world.stopped), int(world.stopped.sum())) == (400 + 2401, 400)
    assert all((world.sequences.tokens[i, world.sequences.last[i]] == STOP) for i in np.flatnonzero(world.stopped))
    for model in models:
        assert np.exp(log_probabilities(model, world)).sum() == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_gradient_of_ppo_is_that_of_the_objective(world, models, gold, temperature):
    """Minus the gradient is the derivative of J if nothing is sampled or whitened.

    Every response is weighted with its probability. The ratios are 1, and gamma =
    lambda = 1. The KL penalty is part of the rewards, token by token. The baseline may
    be any function of the tokens before the present one.
    """
    policy, reference = models
    compared = compare(policy, reference, world.sequences, temperature)
    mask = world.sequences.targets >= 0
    values = np.where(mask, values_of(policy, world.sequences), 0.0)
    rewards = token_rewards(gold, compared.log_probability, compared.reference, mask, BETA)
    advantages, returns = generalised_advantages(rewards, values, mask, 1.0, 1.0)
    weights = np.exp(compared.log_probability.sum(axis=1))[:, None]
    batch = Minibatch(
        *world.sequences[:2], mask, compared.log_probability, values, weights * advantages, returns
    )  # fmt: skip
    policy.grads.flat[:] = 0.0
    policy_and_value_gradient(policy, batch, PPOSettings(temperature=temperature), n_tokens=1)

    log_ref = log_probabilities(reference, world, temperature)

    def J():
        return objective(log_probabilities(policy, world, temperature), log_ref, gold, BETA)

    rng, length = np.random.default_rng(3), np.linalg.norm(policy.grads.flat)
    assert length > 0.1
    for _ in range(6):
        direction = rng.choice([-1.0, 1.0], policy.params.flat.shape)
        expected = -central_difference(J, policy.params.flat, ..., direction / np.sqrt(len(direction)))
        found = policy.grads.flat @ direction / np.sqrt(len(direction))
        assert found == pytest.approx(expected, abs=1e-9 * length)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_estimates_of_the_divergence_have_the_exact_mean(world, models, temperature):
    """k1, k3 and the sum over the vocabulary all have the mean E[log pi - log ref].

    The means are over all responses, weighted with their probabilities.
    """
    policy, reference = models
    log_pi, log_ref = (log_probabilities(model, world, temperature) for model in models)
    pi = np.exp(log_pi)
    kl = float(pi @ (log_pi - log_ref))
    assert kl > 0.1
    k3 = np.expm1(log_ref - log_pi) - (log_ref - log_pi)
    assert k3.min() >= 0
    assert (log_pi - log_ref).min() < 0  # k1 of a response may be negative
    assert float(pi @ k3) == pytest.approx(kl, rel=1e-10)
    compared = compare(policy, reference, world.sequences, temperature)
    assert float(pi @ compared.kl) == pytest.approx(kl, rel=1e-10)
    k1 = (compared.log_probability - compared.reference).sum(axis=1)
    assert float(pi @ k1) == pytest.approx(kl, rel=1e-10)
    assert compared.kl.min() >= 0


def test_the_exact_divergence_is_never_negative_and_0_for_the_reference_itself(world):
    """This holds in float32 too, where rounding errors exceed the KL of similar models.

    The faults were trl#1005, trl#351 and trl#1857.
    """
    sequences = Sequences(*(array[::9] for array in world.sequences))
    reference = order_one(GPT(world_config()), 1)
    assert exact_kl(reference, reference, sequences) == 0.0
    near = GPT(world_config())
    rng = np.random.default_rng(0)
    for size in 10.0 ** -np.arange(3, 9):
        near.params.flat[:] = reference.params.flat + size * rng.standard_normal(len(near.params.flat))
        assert compare(near, reference, sequences, 0.7).kl.min() >= 0
    assert exact_kl(order_one(near, 5), reference, sequences) > 0.1


def test_the_divergence_of_near_equals():
    """For similar logits, KL is half the variance of their difference, to second order.

    Rounding in float32 must not hide it. If it is too small even for float64, it must
    not be negative.
    """
    rng = np.random.default_rng(0)
    logits, change = rng.standard_normal((2, 500, 30)).astype(np.float32)
    near = logits + np.float32(2.0**-12) * change
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    difference = near.astype(np.float64) - logits
    variance = (p * difference**2).sum(axis=1) - (p * difference).sum(axis=1) ** 2
    np.testing.assert_allclose(categorical_kl(logits, near), variance / 2, rtol=1e-2)
    assert categorical_kl(logits, logits.astype(np.float64) + 1e-9 * change).min() >= 0


def test_the_divergence_of_large_logits():
    """The logits would overflow exp.

    The policy is certain of the first token, and the reference gives it 1/2.
    """
    with np.errstate(over="raise"):
        assert categorical_kl(np.array([[2e3, 0.0]]), np.array([[-2e3, -2e3]])) == pytest.approx([np.log(2)])
