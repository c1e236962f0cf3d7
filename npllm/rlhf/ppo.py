"""PPO and its relatives: the policy writes, the reward model judges, what was better than expected becomes likelier.

    repeat:  write B responses with the policy                                          rollouts
             r_t = -beta (log pi_t - log ref_t), + the score at the stop token          advantages.token_rewards
             advantages: GAE with a critic (ppo), or against the other responses
             to the same prompt (rloo, grpo)                                            advantages
             E epochs of minibatches, shuffled anew each time: clipped losses           losses

Logits are divided by the temperature wherever a probability is meant: in writing, for the reference and in the updates.
Otherwise the ratio of new to old probabilities would not begin at exactly 1. Dropout is off.

Source: Ziegler et al., "Fine-tuning language models from human preferences", 2019, and its code; Stiennon et al.,
"Learning to summarize from human feedback", 2020; Huang et al., "The N implementation details of RLHF with PPO", 2023.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from npllm.data.sampler import RowSampler
from npllm.errors import ConfigError
from npllm.generation.batched import check_prompts, generate_batch
from npllm.model import GPT, ActorCritic
from npllm.model.config import check_choices
from npllm.reference.random import random_permutation
from npllm.rlhf.advantages import generalised_advantages, group_relative, leave_one_out, token_rewards, whitened
from npllm.rlhf.divergence import compare
from npllm.rlhf.losses import clipped_policy, clipped_value
from npllm.rlhf.rollout import RolloutBuffer, take
from npllm.rlhf.sequences import Sequences, join, rewards_of, values_of, width_of
from npllm.training.loop import BatchResult

SHUFFLE_SITE = 5 << 24  # random streams of the minibatches


@dataclass(frozen=True, kw_only=True)
class PPOSettings:
    """Defaults are those of lm-human-preferences (Ziegler et al., 2019) unless they say otherwise."""

    method: Literal["ppo", "rloo", "grpo"] = "ppo"
    """ppo has a critic; rloo and grpo compare the responses to one prompt"""
    rollout_size: int = 128
    """responses per rollout; batch.size of them make one update (512, in a larger world)"""
    group: int = 4
    """responses per prompt in a rollout with rloo and grpo"""
    max_tokens: int = 32
    """longest response, the stop token included"""
    epochs: int = 4
    """times that a rollout is learnt from"""
    temperature: float = 1.0
    """of the policy, the reference and the rollouts"""
    kl_coef: float = 0.15
    """beta at first: what a nat of divergence from the reference costs"""
    kl_target: float = 6.0
    """nats per response that beta is adapted to; 0 = beta stays"""
    kl_horizon: int = 10000
    """responses over which beta adapts"""
    gamma: float = 1.0
    """discount per token"""
    lam: float = 0.95
    """lambda of the generalised advantage estimation"""
    clip: float = 0.2
    """of the ratio of new to old probabilities"""
    value_clip: float = 0.2
    """of the change of a value in one rollout"""
    value_coef: float = 0.1
    """weight of the value loss"""
    entropy_coef: float = 0.0
    """weight of an entropy bonus"""
    missing_stop_score: float = -1.0
    """score of a response without a stop token, instead of the reward model's"""
    max_update_kl: float = 0.1
    """nats per token from the rollout's policy at which the rest of its minibatches is left out"""

    def __post_init__(self):
        check_choices("ppo", self)
        for field in ("rollout_size", "group", "max_tokens", "epochs", "kl_horizon"):
            if getattr(self, field) < 1:
                raise ConfigError(f"ppo.{field} is {getattr(self, field)}, but must be at least 1.")
        for field in ("temperature", "clip", "value_clip", "max_update_kl"):
            if not getattr(self, field) > 0:
                raise ConfigError(f"ppo.{field} is {getattr(self, field)}, but must be above 0.")
        for field in ("kl_coef", "kl_target", "value_coef", "entropy_coef"):
            if not getattr(self, field) >= 0:
                raise ConfigError(f"ppo.{field} is {getattr(self, field)}, but must not be negative.")
        for field in ("gamma", "lam"):
            if not 0 <= getattr(self, field) <= 1:
                raise ConfigError(f"ppo.{field} is {getattr(self, field)}, but must be from 0 to 1.")
        if self.method != "ppo" and (self.group < 2 or self.rollout_size % self.group):
            raise ConfigError(f"ppo.group = {self.group} must be at least 2 and divide ppo.rollout_size.")


Gold = Callable[[Sequence[int], Sequence[np.ndarray], np.ndarray], np.ndarray]  # prompt numbers, responses, stopped


@dataclass(frozen=True)
class Judges:
    """What the policy is held against. Neither is ever changed. gold: a true score to log, where there is one."""

    reference: GPT
    reward: GPT
    gold: Gold | None = None


class PPOGradients:
    """The gradient of one minibatch; collects a rollout first where the last one is used up."""

    def __init__(
        self,
        settings: PPOSettings,
        prompts: Sequence[Sequence[int]],
        judges: Judges,
        *,
        stop_id: int,
        minibatch: int,
        micro_size: int,
        seed: int,
        block_size: int,
    ):
        if settings.rollout_size % minibatch:
            raise ConfigError(
                f"ppo.rollout_size = {settings.rollout_size} is no multiple of batch.size = {minibatch}; change one."
            )
        check_prompts(prompts, settings.max_tokens, block_size)
        self.settings, self.prompts, self.judges = settings, prompts, judges
        self.stop_id, self.minibatch, self.micro_size, self.seed = stop_id, minibatch, micro_size, seed
        self.sampler = RowSampler(len(prompts), seed)
        width = width_of(max(map(len, prompts)) + settings.max_tokens, block_size)
        self.buffer = RolloutBuffer(settings.rollout_size, width, settings.kl_coef)

    def __call__(self, model: GPT | ActorCritic, ids: np.ndarray, step: int) -> BatchResult:
        """The samples' ids are not used: a rollout decides what there is to learn from."""
        buffer, figures, written = self.buffer, {}, 0
        per_epoch = self.settings.rollout_size // self.minibatch
        while True:
            if buffer["used"] in (0, per_epoch * self.settings.epochs):
                figures, written = self.collect(model)
            epoch, number = divmod(int(buffer["used"]), per_epoch)
            rows = self.shuffled(epoch)[number * self.minibatch : (number + 1) * self.minibatch]
            result = self.accumulate(model, rows)
            if not (buffer["used"] and result.figures["policy/approx_kl"] > self.settings.max_update_kl):
                buffer["used"] += 1
                return BatchResult(result.loss, result.tokens + written, figures | dict(result.figures))
            model.grads.flat[:] = 0.0  # the policy has left what wrote these responses: write new ones
            buffer["used"] = 0

    def shuffled(self, epoch: int) -> np.ndarray:
        """The order of the rows in an epoch of the present rollout: a fresh one each time."""
        step = int(self.buffer["rollouts"]) * self.settings.epochs + epoch
        return random_permutation(self.settings.rollout_size, seed=self.seed, step=step, site=SHUFFLE_SITE)

    def collect(self, model: GPT | ActorCritic) -> tuple[dict[str, float], int]:
        """Fill the buffer with a new rollout. Returns figures about it, and how many tokens were written."""
        settings, buffer, (policy, critic) = self.settings, self.buffer, networks(model)
        group = 1 if critic else settings.group
        n_prompts, number = settings.rollout_size // group, int(buffer["rollouts"])
        numbers = self.sampler.rows(np.arange(number * n_prompts, (number + 1) * n_prompts)).repeat(group)
        prompts = [self.prompts[i] for i in numbers]
        responses = generate_batch(
            policy,
            prompts,
            max_tokens=settings.max_tokens,
            stop_id=self.stop_id,
            temperature=settings.temperature,
            seed=self.seed,
            first_id=number * settings.rollout_size,
        )
        texts = [tokens[:length] for tokens, length in zip(responses.tokens, responses.lengths, strict=True)]
        sequences = join(prompts, texts, buffer.tokens.shape[1])
        buffer.put(sequences)
        mask = buffer.mask
        compared = compare(policy, self.judges.reference, sequences, settings.temperature)
        buffer.log_probability[...] = compared.log_probability
        proxy, scores = self.score(sequences, responses.stopped, critic)
        beta = buffer["kl_coef"]
        rewards = token_rewards(scores, compared.log_probability, compared.reference, mask, beta)
        self.find_advantages(rewards, mask, critic, sequences)

        kl = (compared.log_probability - compared.reference).sum(axis=1)  # (B,): k1, an estimate for each response
        figures = {
            "objective/kl": float(kl.mean()),
            "objective/exact_kl": float(compared.kl.mean()),
            "objective/kl_coef": beta,
            "objective/entropy": float(-buffer.log_probability.sum(axis=1).mean()),
            "objective/score": float(scores.mean()),
            "objective/proxy": float(proxy.mean()),
            "objective/rlhf_reward": float(rewards.sum(axis=1).mean()),
            "rollout/length": float(responses.lengths.mean()),
            "rollout/stop_rate": float(responses.stopped.mean()),
            "value/mean": float(buffer.values[mask].mean()),
            "value/explained_variance": explained_variance(buffer.values[mask], buffer.returns[mask]),
        }
        if self.judges.gold:
            figures["objective/gold"] = float(np.mean(self.judges.gold(numbers, texts, responses.stopped)))
        if settings.kl_target:
            error = np.clip(figures["objective/kl"] / settings.kl_target - 1.0, -0.2, 0.2)
            buffer["kl_coef"] = beta * (1.0 + float(error) * settings.rollout_size / settings.kl_horizon)
        buffer["rollouts"], buffer["used"] = number + 1, 0
        return figures, int(responses.lengths.sum())

    def score(self, sequences: Sequences, stopped: np.ndarray, critic: GPT | None) -> tuple[np.ndarray, np.ndarray]:
        """The reward model's judgement, (B,), with mean 0 and deviation 1 over the reference's responses; and the same
        with the score of those that have no stop token."""
        buffer, raw = self.buffer, rewards_of(self.judges.reward, sequences)
        if buffer["rollouts"] == 0:  # nothing is learnt yet: these are the reference's
            buffer["score_mean"], deviation = raw.mean(), raw.std()
            buffer["score_std"] = deviation if deviation > 1e-8 else 1.0  # equal scores have no scale of their own
            if critic is not None:  # it begins as the reward model, and so does its scale
                critic.params["readout.weight"][...] /= buffer["score_std"]
                critic.params["readout.bias"][...] -= buffer["score_mean"]
                critic.params["readout.bias"][...] /= buffer["score_std"]
        proxy = (raw - buffer["score_mean"]) / buffer["score_std"]
        return proxy, np.where(stopped, proxy, self.settings.missing_stop_score)

    def find_advantages(self, rewards: np.ndarray, mask: np.ndarray, critic: GPT | None, sequences: Sequences) -> None:
        """From the rewards of the tokens, (B, W), to what the updates weight them with."""
        settings, buffer = self.settings, self.buffer
        if critic is not None:
            buffer.values[...] = np.where(mask, values_of(critic, sequences), 0.0)
            advantages, buffer.returns[...] = generalised_advantages(
                rewards, buffer.values, mask, settings.gamma, settings.lam
            )
            buffer.advantages[...] = whitened(advantages, mask)
            return
        relative = leave_one_out if settings.method == "rloo" else group_relative
        of_response = relative(rewards.sum(axis=1), settings.group)
        buffer.advantages[...] = np.where(mask, of_response[:, None], 0.0)

    def accumulate(self, model: GPT | ActorCritic, rows: np.ndarray) -> BatchResult:
        """Add the gradient of a minibatch, in micro-batches."""
        n_tokens = int(np.count_nonzero(self.buffer.mask[rows]))
        total: dict[str, float] = {}
        for first in range(0, len(rows), self.micro_size):
            part = policy_and_value_gradient(
                model, take(self.buffer, rows[first : first + self.micro_size]), self.settings, n_tokens
            )
            total = {name: total.get(name, 0.0) + value for name, value in part.items()}
        return BatchResult(total.pop("loss"), len(rows) * self.buffer.tokens.shape[1], total)


def networks(model: GPT | ActorCritic) -> tuple[GPT, GPT | None]:
    """The policy, and the critic if there is one."""
    return (model.policy, model.critic) if isinstance(model, ActorCritic) else (model, None)


def policy_and_value_gradient(
    model: GPT | ActorCritic, batch: Any, settings: PPOSettings, n_tokens: int
) -> dict[str, float]:
    """Add the gradient of PPO's loss for a `Minibatch`, or a part of one that has n_tokens in all.

    Returns the shares in the loss, and in figures that are means over the tokens.
    """
    policy, critic = networks(model)
    mask, (b, W) = batch.mask, batch.tokens.shape
    scale = policy.dtype.type(1.0 / settings.temperature)
    trace = policy.trace(batch.tokens)
    log_probability, entropy, cache = policy.log_probability_forward(trace.hidden * scale, batch.targets.reshape(-1))
    log_probability, entropy = (array.reshape(b, W)[mask].astype(np.float64) for array in (log_probability, entropy))
    old = batch.log_probability[mask]
    part = clipped_policy(log_probability, old, batch.advantages[mask], settings.clip, n_tokens)
    dlog_probability, dentropy = np.zeros((b, W), policy.dtype), None
    dlog_probability[mask] = part.dlog_probability
    if settings.entropy_coef:
        dentropy = np.where(mask, -settings.entropy_coef / n_tokens, 0.0).astype(policy.dtype).reshape(-1)
    dhidden = policy.log_probability_backward(dlog_probability.reshape(-1), dentropy, cache)
    policy.backward(trace, dhidden * scale)

    log_ratio = log_probability - old
    loss = part.loss - settings.entropy_coef * float(entropy.sum()) / n_tokens
    figures = {
        "policy/loss": part.loss,
        "policy/approx_kl": float((part.ratio - 1.0 - log_ratio).sum()) / n_tokens,  # k3
        "policy/clip_frac": float(np.count_nonzero(part.clipped)) / n_tokens,
        "policy/ratio_mean": float(part.ratio.sum()) / n_tokens,
        "policy/ratio_var": float(((part.ratio - 1.0) ** 2).sum()) / n_tokens,
        "policy/entropy": float(entropy.sum()) / n_tokens,
    }
    if critic is not None:
        of_value = value_gradient(critic, batch, settings, n_tokens)
        loss += settings.value_coef * of_value["value/loss"]
        figures |= of_value
    return {"loss": loss, **figures}


def value_gradient(critic: GPT, batch: Any, settings: PPOSettings, n_tokens: int) -> dict[str, float]:
    """Add the gradient of the value loss, times its coefficient, to the critic's."""
    trace = critic.trace(batch.tokens)
    values = critic.readout(trace.hidden)[:, 0].reshape(batch.mask.shape)[batch.mask].astype(np.float64)
    old, returns = batch.values[batch.mask], batch.returns[batch.mask]
    part = clipped_value(values, old, returns, settings.value_clip, n_tokens)
    dvalues = np.zeros(batch.mask.shape, critic.dtype)
    dvalues[batch.mask] = settings.value_coef * part.dvalue
    critic.backward(trace, critic.readout_backward(dvalues.reshape(-1, 1), trace.hidden))
    return {"value/loss": part.loss, "value/clip_frac": float(np.count_nonzero(part.clipped)) / n_tokens}


def explained_variance(values: np.ndarray, returns: np.ndarray) -> float:
    """1 - Var(R - V) / Var(R): 1 for a perfect critic, 0 for one that knows the mean only."""
    variance = returns.var()
    return 0.0 if variance == 0 else float(1.0 - (returns - values).var() / variance)
