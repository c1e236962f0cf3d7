"""A rollout and an update, against a second version written in NumPy.

The second version takes the responses and the hidden states of the networks. It
computes log-probabilities, scores, rewards, advantages and the loss from their
equations, response by response.
"""

from types import SimpleNamespace

import numpy as np
import pytest
from gradient_check import check_gradients
from rlhf_cases import (
    STOP,
    Case,
    actor_critic,
    language_model,
    ppo_gradients,
    ppo_loss,
    tiny_config,
    token_figures,
    token_values,
    with_gradients,
)

from npllm.data.sampler import RowSampler
from npllm.generation.batched import generate_batch
from npllm.rlhf.ppo import Scorers
from npllm.rlhf.ppo_gradient import networks
from npllm.rlhf.rollout import Minibatch

B, TEMPERATURE, MISSING, HORIZON, GAMMA, LAM, GROUP = 24, 0.7, -2.5, 200, 0.9, 0.8, 4
PROMPTS = [[1], [2, 3], [4, 5, 6], [7], [8, 9]]


def gold(numbers, texts, stopped) -> np.ndarray:
    """Return rewards, (B,), that differ between prompts, responses and ways to end."""
    return np.array([10.0 * n + 0.1 * sum(text) + s for n, text, s in zip(numbers, texts, stopped, strict=True)])


def second_rollout(method: str):
    """Collect two rollouts; return the model, its gradients and the figures.

    The policy differs from its reference in both, and changes between them. The figures
    are those of the first rollout, its raw scores, and those of the second rollout.
    """
    model = (actor_critic if method == "ppo" else language_model)(tiny_config(), 3)
    gradients = ppo_gradients(
        model, method=method, rollout_size=B, minibatch=8, prompts=PROMPTS, temperature=TEMPERATURE, group=GROUP,
        missing_stop_score=MISSING, kl_coef=0.4, kl_target=0.5, kl_horizon=HORIZON, gamma=GAMMA, lam=LAM,
        entropy_coef=0.2, max_update_kl=1e6,
    )  # fmt: skip
    gradients.scorers = Scorers(gradients.scorers.reference, gradients.scorers.reward, gold)
    draw, weights = np.random.default_rng(1).standard_normal, networks(model)[0].params.values()
    for array in weights:
        array += 0.2 * draw(array.shape)
    first, _ = gradients.collect(model)
    of_first = scores_of(gradients)
    for array in weights:
        array += 0.1 * draw(array.shape)
    figures, _ = gradients.collect(model)
    return model, gradients, SimpleNamespace(first=first, of_first=of_first, figures=figures)


def spans(gradients) -> list[slice]:
    """Return the columns that predict the tokens, for each response."""
    columns = [np.flatnonzero(row >= 0) for row in gradients.buffer.targets]
    return [slice(here[0], here[-1] + 1) for here in columns]


def scores_of(gradients) -> np.ndarray:
    """Return the reward model's scores of the responses in the buffer, (B,)."""
    values = token_values(gradients.scorers.reward, gradients.buffer.tokens)
    return np.array([row[here.stop] for row, here in zip(values, spans(gradients), strict=True)])


def log_distributions(model, tokens) -> np.ndarray:
    """Return log-probabilities over the vocabulary, (B, W, V), with the temperature."""
    hidden = model.trace(tokens).hidden
    logits = (hidden @ model.params[model.head_name].T).reshape(*tokens.shape, -1) / TEMPERATURE
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("method", ["ppo", "rloo", "grpo"])
def test_a_rollout_by_hand(method):
    model, gradients, told = second_rollout(method)
    policy, critic = networks(model)
    buffer, figures, mask = gradients.buffer, told.figures, gradients.buffer.targets >= 0

    # The second responses to the next prompts, from random numbers of their own.
    group = 1 if critic else GROUP
    numbers = RowSampler(len(PROMPTS), seed=3).rows(np.arange(B // group, 2 * B // group)).repeat(group)
    prompts = [PROMPTS[n] for n in numbers]
    written = generate_batch(policy, prompts, max_tokens=4, stop_id=STOP, temperature=TEMPERATURE, seed=3, first_id=B)
    texts = [row[:length].tolist() for row, length in zip(written.tokens, written.lengths, strict=True)]
    assert len(set(map(len, texts))) > 2
    assert 0 < sum(text[-1] == STOP for text in texts) < B
    for prompt, text, here, tokens, targets in zip(
        prompts, texts, spans(gradients), buffer.tokens, buffer.targets, strict=True
    ):
        assert tokens.tolist()[: here.stop + 1] == prompt + text
        assert (here.start, targets[here].tolist()) == (len(prompt) - 1, text)

    log_pi, log_ref = (log_distributions(m, buffer.tokens) for m in (policy, gradients.scorers.reference))
    ours, theirs = (
        np.where(mask, np.take_along_axis(log_p, np.maximum(buffer.targets, 0)[..., None], 2)[..., 0], 0.0)
        for log_p in (log_pi, log_ref)
    )
    np.testing.assert_allclose(buffer.log_probability, ours, rtol=0, atol=1e-12)

    # Scores have the scale of the first rollout. Responses that do not stop get
    # MISSING, which is not scaled.
    ended = np.array([text[-1] == STOP for text in texts])
    proxy = (scores_of(gradients) - told.of_first.mean()) / told.of_first.std()
    scores = np.where(ended, proxy, MISSING)
    kl, kl_before = (ours - theirs).sum(axis=1), told.first["objective/kl"]
    price = 0.4 * (1 + np.clip(kl_before / 0.5 - 1, -0.2, 0.2) * B / HORIZON)
    assert abs(price - 0.4) > 1e-3
    assert figures["objective/kl_coef"] == pytest.approx(price, rel=1e-12)
    assert buffer.kl_coef == pytest.approx(price * (1 + np.clip(kl.mean() / 0.5 - 1, -0.2, 0.2) * B / HORIZON))

    rewards = -price * (ours - theirs)
    for b, here in enumerate(spans(gradients)):
        rewards[b, here.stop - 1] += scores[b]
    if critic is None:
        of_response = rewards.sum(axis=1).reshape(-1, GROUP)
        if method == "rloo":
            relative = [[r - np.delete(row, i).mean() for i, r in enumerate(row)] for row in of_response]
        else:
            relative = [[(r - row.mean()) / (row.std() + 1e-6) for r in row] for row in of_response]
        advantages = np.where(mask, np.reshape(relative, (B, 1)), 0.0)
        np.testing.assert_allclose(buffer.advantages, advantages, rtol=0, atol=1e-10)
    else:
        values = np.where(mask, token_values(critic, buffer.tokens), 0.0)
        raw = np.zeros(mask.shape)
        for b, here in enumerate(spans(gradients)):
            following, V = 0.0, [*values[b, here], 0.0]
            for i in reversed(range(len(V) - 1)):
                following = rewards[b, here.start + i] + GAMMA * V[i + 1] - V[i] + GAMMA * LAM * following
                raw[b, here.start + i] = following
        np.testing.assert_allclose(buffer.values, values, rtol=0, atol=1e-12)
        np.testing.assert_allclose(buffer.returns, raw + values, rtol=0, atol=1e-10)  # of advantages before whitening
        white = np.where(mask, (raw - raw[mask].mean()) / np.sqrt(raw[mask].var() + 1e-8), 0.0)
        np.testing.assert_allclose(buffer.advantages, white, rtol=0, atol=1e-10)

    exact = np.where(mask, (np.exp(log_pi) * (log_pi - log_ref)).sum(axis=2), 0.0).sum(axis=1)
    expected = {
        "objective/kl": kl.mean(),
        "objective/exact_kl": exact.mean(),
        "objective/entropy": -ours.sum(axis=1).mean(),
        "objective/score": scores.mean(),
        "objective/proxy": proxy.mean(),
        "objective/rlhf_reward": rewards.sum(axis=1).mean(),
        "objective/gold": gold(numbers, texts, ended).mean(),
    }
    assert {name: figures[name] for name in expected} == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_an_update_is_of_its_minibatch(method):
    """Loss, gradient and figures are those of the rows of this minibatch only.

    It is the second minibatch of a rollout, after the policy has changed. Its size is
    no multiple of the micro-batch size.
    """
    model, gradients, _ = second_rollout(method)
    gradients.micro_size = 3
    gradients(model, np.arange(8), 0)
    model.params.flat[:] *= 1.1  # so that some ratios are beyond the clip
    result, found = with_gradients(model, gradients, np.arange(8), 1)

    rows, buffer, policy = gradients.shuffled(epoch=0)[8:16], gradients.buffer, networks(model)[0]
    batch = Minibatch(*(getattr(buffer, name)[rows] for name in Minibatch._fields))
    case = Case(batch, gradients.settings, int(batch.mask.sum()))
    assert result.loss == pytest.approx(ppo_loss(model, case), rel=1e-11)
    check_gradients(lambda: ppo_loss(model, case), dict(model.params), found, elementwise_up_to=0)

    log_pi, entropy = token_figures(policy, batch.tokens, batch.targets, TEMPERATURE)
    log_ratio = (log_pi - batch.log_probability)[batch.mask]
    ratio, A = np.exp(log_ratio), batch.advantages[batch.mask]
    expected = {
        "policy/approx_kl": (ratio - 1 - log_ratio).mean(),
        "policy/clip_frac": ((ratio > 1.2) & (A > 0) | (ratio < 0.8) & (A < 0)).mean(),
        "policy/ratio_mean": ratio.mean(),
        "policy/ratio_var": ((ratio - 1) ** 2).mean(),
        "policy/entropy": entropy[batch.mask].mean(),
    }
    assert expected["policy/clip_frac"] > 0
    assert {name: result.figures[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    assert result.tokens == 8 * buffer.tokens.shape[1]
