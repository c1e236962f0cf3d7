"""What a run of PPO does between its updates.

These are rollouts, scores, the weight of the KL penalty, shuffling and early stopping.
"""

import numpy as np
import pytest
from rlhf_cases import STOP, actor_critic, collected, language_model, ppo_gradients, tiny_config

from npllm.model import ActorCritic
from npllm.optim import OptimConfig, build_optimizer
from npllm.rlhf.advantages import last_columns
from npllm.rlhf.ppo import explained_variance
from npllm.rlhf.ppo_gradient import networks
from npllm.rlhf.rollout import RolloutBuffer
from npllm.rlhf.sequences import Sequences, rewards_of, sequence_log_probability, values_of


def buffer_sequences(gradients) -> Sequences:
    buffer = gradients.buffer
    return Sequences(buffer.tokens, buffer.targets, last_columns(buffer.mask) + 1)


def stopped(sequences: Sequences) -> np.ndarray:
    return sequences.tokens[np.arange(len(sequences.tokens)), sequences.last] == STOP


def moved(model):
    """Change the weights, so that the KL is not 0; return the model."""
    model.params.flat[:] += 0.3 * np.random.default_rng(1).standard_normal(len(model.params.flat)).astype(model.dtype)
    return model


@pytest.mark.parametrize("method", ["ppo", "rloo", "grpo"])
def test_a_policy_with_one_decision_learns_it(monkeypatch, method):
    """A response is one token, and one token is rewarded: its probability passes 0.95.

    In trlx#214 it stayed at 0.8.
    """
    config = tiny_config(vocab_size=8)
    build = actor_critic if method == "ppo" else language_model
    model = build(config, dtype="float32")
    monkeypatch.setattr("npllm.rlhf.ppo.rewards_of", lambda _, s: (s.tokens[:, 1] == STOP).astype(np.float64))
    gradients = ppo_gradients(model, method=method, rollout_size=64, minibatch=32, max_tokens=1, prompts=[[1]])
    optimizer = build_optimizer(model, OptimConfig(name="adam", lr=0.01, weight_decay=0.0))
    policy, _ = networks(model)

    def probability():
        logits = policy.logits(np.array([[1]]))[0, 0]
        return (np.exp(logits) / np.exp(logits).sum())[STOP]

    assert 0.01 < probability() < 0.5
    for step in range(60):
        gradients(model, np.arange(32), step)
        optimizer.step(grad_clip=1.0)
    assert probability() > 0.95


def test_figures_of_a_rollout_are_of_the_responses_only():
    """Each figure follows from its definition, response by response.

    In trl#2496 entropies were below 0.
    """
    model = actor_critic(tiny_config(), 3)
    gradients = ppo_gradients(model, rollout_size=24)
    moved(model)
    figures, written = gradients.collect(model)
    sequences, buffer = buffer_sequences(gradients), gradients.buffer
    ours, theirs = (sequence_log_probability(m, sequences) for m in (model.policy, gradients.scorers.reference))
    lengths = [np.count_nonzero(row >= 0) for row in sequences.targets]
    assert min(lengths) < max(lengths) == 4
    assert written == sum(lengths)
    scores = np.where(stopped(sequences), rewards_of(gradients.scorers.reward, sequences), -1.0)
    scores[stopped(sequences)] -= buffer.score_mean
    scores[stopped(sequences)] /= buffer.score_std
    kl = [(ours[i] - theirs[i])[sequences.targets[i] >= 0].sum() for i in range(24)]
    expected = {
        "objective/kl": np.mean(kl),
        "objective/entropy": np.mean([-ours[i][sequences.targets[i] >= 0].sum() for i in range(24)]),
        "objective/score": scores.mean(),
        "objective/rlhf_reward": np.mean(scores - 0.15 * np.array(kl)),
        "rollout/length": np.mean(lengths),
        "rollout/stop_rate": stopped(sequences).mean(),
        "value/mean": values_of(model.critic, sequences)[buffer.mask].mean(),
    }
    assert {name: figures[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    assert figures["objective/entropy"] > 0
    assert figures["objective/exact_kl"] > 0
    result = gradients.accumulate(model, np.arange(24))
    assert 0 < result.figures["policy/entropy"] < np.log(11)


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_the_first_rollout_is_at_no_distance_from_the_reference(lora_rank):
    """Both the estimate and the exact KL are 0.0 in float32, with a temperature too."""
    model = actor_critic(tiny_config(lora_rank=lora_rank), dtype="float32")
    figures, _ = ppo_gradients(model, temperature=0.7).collect(model)
    assert (figures["objective/kl"], figures["objective/exact_kl"]) == (0.0, 0.0)


def test_every_rollout_has_random_numbers_of_its_own():
    """Responses of one policy to one prompt differ between rollouts.

    The same run again writes the same responses.
    """

    def rollouts():
        model = language_model(tiny_config(), 3)
        gradients = ppo_gradients(model, method="grpo", rollout_size=4, max_tokens=9, prompts=[[1]])
        for _ in range(3):
            gradients.collect(model)
            yield gradients.buffer.tokens.copy()

    first, again = list(rollouts()), list(rollouts())
    np.testing.assert_array_equal(first, again)
    assert len({tuple(row) for tokens in first for row in tokens}) == 12


def test_explained_variance():
    returns = np.array([1.0, 2.0, 4.0])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(np.full(3, 5.0), returns) == pytest.approx(0.0)
    assert explained_variance(-returns, returns) == pytest.approx(-3.0)
    assert explained_variance(returns, np.ones(3)) == 0.0


def test_a_response_without_a_stop_token_gets_the_score_for_that():
    gradients = ppo_gradients(language_model(tiny_config()), method="rloo", missing_stop_score=-3.5)
    sequences = Sequences(*(np.zeros((4, 8), np.int32),) * 2, np.full(4, 2))
    sequences.tokens[:, 1] = np.arange(4)
    ended = np.array([True, False, True, False])
    raw = rewards_of(gradients.scorers.reward, sequences)
    gradients.calibrate(raw, None)
    proxy, scores = gradients.score(raw, ended)
    assert scores.tolist() == [proxy[0], -3.5, proxy[2], -3.5]
    assert len(set(proxy)) == 4


def test_scores_are_measured_by_the_reference_s_responses():
    """They have mean 0 and deviation 1 over the first rollout; the scale then stays."""
    model = actor_critic(tiny_config(), 3)
    gradients = collected(model, rollout_size=32)
    raw = rewards_of(gradients.scorers.reward, buffer_sequences(gradients))
    scale = gradients.buffer.score_mean, gradients.buffer.score_std
    assert scale == pytest.approx((raw.mean(), raw.std()), rel=1e-12)
    figures, _ = gradients.collect(moved(model))
    raw = rewards_of(gradients.scorers.reward, buffer_sequences(gradients))
    assert (gradients.buffer.score_mean, gradients.buffer.score_std) == scale
    assert figures["objective/proxy"] == pytest.approx((raw.mean() - scale[0]) / scale[1], rel=1e-10)


def test_equal_scores_have_no_scale(monkeypatch):
    """Equal scores are not divided by their deviation, which is nearly 0.

    Otherwise the critic's outputs and all later scores would be around 1e8.
    """
    model = actor_critic(tiny_config(), 3)
    before = model.critic.params["readout.weight"].copy()
    monkeypatch.setattr("npllm.rlhf.ppo.rewards_of", lambda _, s: np.full(len(s.tokens), 0.3))
    gradients = collected(model)
    assert (gradients.buffer.score_mean, gradients.buffer.score_std) == (pytest.approx(0.3), 1.0)
    np.testing.assert_array_equal(model.critic.params["readout.weight"], before)


def test_the_critic_begins_as_the_reward_model():
    """Its value after a response's last token is the calibrated score.

    Later rollouts do not change it.
    """
    model = actor_critic(tiny_config(), 3)
    gradients = ppo_gradients(model)
    for name, array in gradients.scorers.reward.params.items():
        model.critic.params[name][...] = array
    gradients.collect(model)
    sequences = buffer_sequences(gradients)
    buffer, values = gradients.buffer, values_of(model.critic, sequences)
    proxy = (rewards_of(gradients.scorers.reward, sequences) - buffer.score_mean) / buffer.score_std
    np.testing.assert_allclose(values[np.arange(16), sequences.last], proxy, rtol=1e-10)
    np.testing.assert_allclose(buffer.values, np.where(buffer.mask, values, 0.0), rtol=1e-10)
    before = model.params.flat.copy()
    gradients.collect(model)
    np.testing.assert_array_equal(model.params.flat, before)


@pytest.mark.parametrize(("overshoot", "error"), [(10.0, 0.2), (1.1, 0.1), (0.95, -0.05), (0.1, -0.2)])
def test_the_price_of_divergence_follows_it(overshoot, error):
    """beta grows if the KL is above its target, at most by the factor 1 + 0.2 B / H.

    H is the horizon.
    """
    model = language_model(tiny_config(), 3)
    settings = {"method": "grpo", "kl_horizon": 50, "kl_coef": 0.4}
    kl = divergence_after_moving(model, **settings)
    model = language_model(tiny_config(), 3)
    gradients = ppo_gradients(model, **settings, kl_target=kl / overshoot)
    figures, _ = gradients.collect(moved(model))
    assert figures["objective/kl"] == pytest.approx(kl) != 0
    assert figures["objective/kl_coef"] == 0.4
    assert gradients.buffer.kl_coef == pytest.approx(0.4 * (1 + error * 16 / 50))


def divergence_after_moving(model, **settings) -> float:
    """Return the KL of the moved model; check that beta stays without a target."""
    gradients = ppo_gradients(model, **settings, kl_target=0.0)
    figures, _ = gradients.collect(moved(model))
    assert gradients.buffer.kl_coef == settings["kl_coef"]
    return figures["objective/kl"]


def recorded_rows(monkeypatch, gradients) -> list[np.ndarray]:
    """Return a list that collects the rows of every minibatch from now on."""
    seen, accumulate = [], gradients.accumulate

    def record(model, rows):
        seen.append(rows)
        return accumulate(model, rows)

    monkeypatch.setattr(gradients, "accumulate", record)
    return seen


def test_every_epoch_has_all_responses_in_a_new_order(monkeypatch):
    model = actor_critic(tiny_config(), 3)
    gradients = ppo_gradients(model, rollout_size=12, minibatch=4, epochs=3)
    seen = recorded_rows(monkeypatch, gradients)
    rollouts = []
    for step in range(18):
        gradients(model, np.arange(4), step)
        rollouts.append(gradients.buffer.rollouts)
    assert rollouts == [1] * 9 + [2] * 9
    orders = np.array(seen).reshape(6, 12)
    np.testing.assert_array_equal(np.sort(orders), np.tile(np.arange(12), (6, 1)))
    assert len({tuple(order) for order in orders}) == 6


def test_a_policy_that_has_gone_far_writes_a_new_rollout(monkeypatch):
    """The update then uses the new rollout alone.

    The gradient has no contribution of the old responses.
    """
    model = actor_critic(tiny_config(), 3)
    gradients = ppo_gradients(model, rollout_size=8, minibatch=4, max_update_kl=1e-6)
    seen = recorded_rows(monkeypatch, gradients)
    gradients(model, np.arange(4), 0)
    moved(model)
    model.grads.flat[:] = 0.0
    result = gradients(model, np.arange(4), 1)
    assert (gradients.buffer.rollouts, gradients.buffer.minibatches_used) == (2, 1)
    assert result.figures["policy/approx_kl"] == pytest.approx(0.0, abs=1e-12)
    assert "objective/score" in result.figures
    assert len(seen) == 3  # the second was dropped
    found = model.grads.flat.copy()
    model.grads.flat[:] = 0.0
    gradients.accumulate(model, seen[2])
    np.testing.assert_array_equal(found, model.grads.flat)


def test_a_policy_that_has_not_gone_far_uses_its_rollout_up(monkeypatch):
    model = actor_critic(tiny_config(), 3)
    gradients = ppo_gradients(model, rollout_size=8, minibatch=4, max_update_kl=1e6, epochs=1)
    gradients(model, np.arange(4), 0)
    figures = gradients(moved(model), np.arange(4), 1).figures
    assert (gradients.buffer.rollouts, gradients.buffer.minibatches_used) == (1, 2)
    assert figures["policy/approx_kl"] > 1e-6
    assert "objective/score" not in figures


def test_a_rollout_that_no_update_was_made_from_is_not_written_again():
    """No used minibatch means that all are left, not that there is no rollout."""
    model = actor_critic(tiny_config(), 3)
    gradients = collected(model)
    tokens = gradients.buffer.tokens.copy()
    result = gradients(model, np.arange(16), 0)
    np.testing.assert_array_equal(gradients.buffer.tokens, tokens)
    assert (gradients.buffer.rollouts, gradients.buffer.minibatches_used) == (1, 1)
    assert "objective/score" not in result.figures


def test_counters_are_integers_and_the_file_has_them_where_it_always_had():
    """They are the first five of rollout_numbers.

    With another order, checkpoints of earlier runs would be misread.
    """
    buffer = RolloutBuffer(2, 3, kl_coef=0.4)
    assert [type(count) for count in (buffer.rollouts, buffer.minibatches_used)] == [int, int]
    buffer.rollouts += 7
    buffer.minibatches_used += 3
    buffer.score_mean, buffer.score_std = -0.5, 2.0
    buffer.log_probability[...], buffer.returns[...] = 5.0, 6.0
    arrays = buffer.arrays()
    assert arrays["rollout_numbers"][:5].tolist() == [0.4, 7.0, 3.0, -0.5, 2.0]
    assert arrays["rollout_numbers"][5:].tolist() == [5.0] * 6 + [0.0] * 12 + [6.0] * 6
    assert arrays["rollout_tokens"].shape == (12,)


def test_responses_to_one_prompt_stand_together():
    """RLOO and GRPO compare rows in groups, so a group must have one prompt.

    The advantages of a group add up to 0.
    """
    for method in ("rloo", "grpo"):
        model = language_model(tiny_config(), 3)
        gradients = ppo_gradients(model, method=method, rollout_size=12, group=4, prompts=[[1], [2], [3, 1], [4], [5]])
        gradients.collect(moved(model))
        buffer = gradients.buffer
        first = buffer.tokens[:, 0].reshape(3, 4)
        assert (first == first[:, :1]).all()
        assert len(set(first[:, 0])) == 3
        of_response = buffer.advantages.max(axis=1) + buffer.advantages.min(axis=1)  # one value on the mask, else 0
        np.testing.assert_allclose(of_response.reshape(3, 4).sum(axis=1), 0.0, atol=1e-6)
        assert not buffer.advantages[~buffer.mask].any()
        assert np.abs(of_response).max() > 0.1


def test_networks_of_a_model():
    model = actor_critic(tiny_config())
    assert isinstance(model, ActorCritic)
    assert networks(model) == (model.policy, model.critic)
    assert networks(model.policy) == (model.policy, None)
