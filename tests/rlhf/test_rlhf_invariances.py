"""Changes that must have no effect.

These are the other rows of a minibatch, the split into micro-batches, and the width and
the content of the padding.
"""

import numpy as np
import pytest
from rlhf_cases import (
    STOP,
    actor_critic,
    assert_equal_gradients,
    collected,
    language_model,
    minibatch_around,
    random_sequences,
    tiny_config,
    with_gradients,
)

from npllm.optim import BatchConfig
from npllm.rlhf.dpo import DPOConfig, DPOGradients, DPOSettings, preference_gradient
from npllm.rlhf.losses import clipped_policy
from npllm.rlhf.ppo_gradient import policy_and_value_gradient
from npllm.rlhf.reward import Pairs, RewardConfig, RewardGradients
from npllm.rlhf.rollout import take
from npllm.rlhf.sequences import Sequences, rewards_of, sequence_log_probability


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_the_ratio_is_exactly_1_before_the_first_update(monkeypatch, temperature, lora_rank):
    """It is 1.0 in float32 for any rows of a minibatch, with a temperature too.

    Dividing the logits by the temperature is easily forgotten in one of the passes
    (trlx#107, OpenRLHF#853).
    """
    model = actor_critic(tiny_config(lora_rank=lora_rank), dtype="float32")
    gradients = collected(model, rollout_size=40, temperature=temperature)
    ratios = []

    def recorded(*arguments):
        ratios.append(clipped_policy(*arguments))
        return ratios[-1]

    monkeypatch.setattr("npllm.rlhf.ppo_gradient.clipped_policy", recorded)
    rng = np.random.default_rng(0)
    for size in (1, 2, 3, 5, 8, 31, 33, 40):
        batch = take(gradients.buffer, rng.permutation(40)[:size])
        _, figures = policy_and_value_gradient(model, batch, gradients.settings, int(batch.mask.sum()))
        assert (ratios[-1].ratio == 1.0).all(), size
        assert (figures["policy/approx_kl"], figures["policy/ratio_var"], figures["policy/clip_frac"]) == (0, 0, 0)
    assert len(ratios) == 8


def widened(batch, columns: int, filler: int):
    """Return a minibatch or Sequences with more padding columns, full of `filler`."""

    def wide(name, array):
        if array.ndim == 1:
            return array
        padded = np.pad(array, ((0, 0), (0, columns)))
        padded[:, array.shape[1] :] = {"targets": -1, "mask": False}.get(name, filler)
        return padded

    return batch._replace(**{name: wide(name, getattr(batch, name)) for name in batch._fields})


def with_other_padding(batch, filler: int):
    """Return the same responses with `filler` as the padding tokens after them."""
    last = batch.tokens.shape[1] - 1 - np.argmax((batch.targets >= 0)[:, ::-1], axis=1)  # the last target
    behind = np.arange(batch.tokens.shape[1]) > last[:, None] + 1
    assert behind.any()
    return batch._replace(tokens=np.where(behind, filler, batch.tokens).astype(np.int32))


changes = pytest.mark.parametrize(
    "change",
    [lambda batch: widened(batch, 8, 5), lambda batch: with_other_padding(batch, 7)],
    ids=["width", "content"],
)


@changes
def test_padding_changes_nothing_in_ppo(change):
    """It changes neither the loss, nor the gradient, nor the figures.

    Entropy and KL are of the responses only, too (trl#2496, trl#6809).
    """
    model = actor_critic(tiny_config())
    batch, settings, n_tokens = minibatch_around(model, 4, seed=1)
    (loss, figures), gradients = with_gradients(model, policy_and_value_gradient, batch, settings, n_tokens)
    other, other_gradients = with_gradients(model, policy_and_value_gradient, change(batch), settings, n_tokens)
    assert other[0] == pytest.approx(loss, rel=1e-12)
    assert other[1] == pytest.approx(figures, rel=1e-12, abs=1e-14)
    assert_equal_gradients(other_gradients, gradients)


@changes
def test_padding_changes_nothing_in_dpo_and_reward(change):
    config = tiny_config(n_outputs=1)
    model = language_model(config)
    pairs = Pairs(random_sequences(config, 4, 1), random_sequences(config, 4, 2))
    other = Pairs(*(change(side) for side in pairs))
    np.testing.assert_allclose(rewards_of(model, other.chosen), rewards_of(model, pairs.chosen), rtol=1e-12)
    narrow = sequence_log_probability(model, pairs.chosen)
    wide = sequence_log_probability(model, other.chosen)
    np.testing.assert_allclose(wide[:, : narrow.shape[1]], narrow, rtol=0, atol=1e-12)
    assert not wide[:, narrow.shape[1] :].any()

    def of_dpo(model, pairs):
        return preference_gradient(model, pairs, np.full((2, 4), -5.0), 0.5, n_pairs=4)[0]

    def of_reward(model, pairs):
        return RewardGradients(pairs, RewardConfig())(model, np.arange(4), 0).loss

    for add_gradient in (of_dpo, of_reward):
        (loss, gradients), (other_loss, other_gradients) = (
            with_gradients(model, add_gradient, each) for each in (pairs, other)
        )
        assert other_loss == pytest.approx(loss, rel=1e-12)
        assert_equal_gradients(other_gradients, gradients)


@pytest.mark.parametrize("micro_size", [1, 3, 4])
def test_micro_batches_of_pairs_add_up(micro_size):
    config, P = tiny_config(n_outputs=1), 7
    model, reference = language_model(config), language_model(config, seed=4)
    pairs = Pairs(random_sequences(config, P, 1), random_sequences(config, P, 2))

    def both(size):
        batch = BatchConfig(size=P, micro_size=size)
        dpo = DPOConfig(batch=batch, dpo=DPOSettings(beta=0.5))
        return RewardGradients(pairs, RewardConfig(batch=batch)), DPOGradients(pairs, reference, dpo)

    for whole, parts in zip(both(P), both(micro_size), strict=True):
        (result, gradients), (sum_of_parts, sum_of_gradients) = (
            with_gradients(model, each, np.arange(P), 0) for each in (whole, parts)
        )
        assert sum_of_parts.loss == pytest.approx(result.loss, rel=1e-12)
        assert sum_of_parts.figures == pytest.approx(result.figures, rel=1e-12)
        assert_equal_gradients(sum_of_gradients, gradients)


@pytest.mark.parametrize("method", ["ppo", "rloo"])
def test_micro_batches_of_responses_add_up(method):
    """Each is divided by the tokens of the whole minibatch, not by its own tokens."""
    build = actor_critic if method == "ppo" else language_model
    model = build(tiny_config())
    gradients = collected(model, method=method, rollout_size=8, entropy_coef=0.1)
    model.params.flat[:] *= 1.05  # so that the ratios are no longer 1
    rows = np.arange(7)
    gradients.micro_size = 7
    result, whole = with_gradients(model, gradients.accumulate, rows)
    gradients.micro_size = 3
    sum_of_parts, parts = with_gradients(model, gradients.accumulate, rows)
    assert sum_of_parts.loss == pytest.approx(result.loss, rel=1e-12)
    assert sum_of_parts.figures == pytest.approx(result.figures, rel=1e-12)
    assert_equal_gradients(parts, whole)


def test_reward_is_read_at_the_stop_token_and_not_at_a_pad():
    """In trl#937 it was read at padding."""
    config = tiny_config(n_outputs=1)
    model = language_model(config)
    text = [3, 1, 4, STOP]
    alone = model.readout(model.hidden(np.array([text])))[-1, 0]
    tokens = np.zeros((2, 8), np.int32)  # the padding is the stop token again
    tokens[0, :4], tokens[1] = text, 2
    row = Sequences(tokens, np.full((2, 8), -1, np.int32), np.array([3, 7]))
    assert rewards_of(model, row)[0] == pytest.approx(alone, rel=1e-12)
