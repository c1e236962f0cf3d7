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

import numpy as np

from npllm.data.sampler import RowSampler
from npllm.errors import ConfigError
from npllm.generation.batched import check_prompts, generate_batch
from npllm.model import GPT, Trainable
from npllm.reference.random import random_permutation
from npllm.rlhf.advantages import generalised_advantages, group_relative, leave_one_out, token_rewards, whitened
from npllm.rlhf.divergence import compare
from npllm.rlhf.ppo_gradient import networks, policy_and_value_gradient
from npllm.rlhf.ppo_settings import PPOSettings
from npllm.rlhf.rollout import RolloutBuffer, take
from npllm.rlhf.sequences import Sequences, join, rewards_of, values_of, width_of
from npllm.training.loop import BatchResult

SHUFFLE_SITE = 5 << 24  # random streams of the minibatches


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

    def __call__(self, model: Trainable, ids: np.ndarray, step: int) -> BatchResult:
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

    def check_rollout(self, arrays: dict[str, np.ndarray]) -> None:
        """Raise ValueError unless these arrays of a checkpoint can be those of a rollout of this run."""
        settings, found = self.settings, RolloutBuffer(*self.buffer.tokens.shape, kl_coef=0.0)
        found.ids[:], found.floats[:] = arrays["rollout_tokens"], arrays["rollout_numbers"]
        vocab_size = self.judges.reference.config.vocab_size
        counts = {"rollouts": 2**31, "used": settings.rollout_size // self.minibatch * settings.epochs}
        rules = {
            "a token is not in the vocabulary": found.tokens.min() >= 0 and found.tokens.max() < vocab_size,
            "a target is not in the vocabulary": found.targets.min() >= -1 and found.targets.max() < vocab_size,
            "a response is empty": found["rollouts"] == 0 or found.mask.any(axis=1).all(),
            "the scores have no deviation": found["score_std"] > 0,
            "beta is negative": found["kl_coef"] >= 0,
            **{
                f"{name} is out of range": 0 <= found[name] <= most and found[name] % 1 == 0
                for name, most in counts.items()
            },
        }
        for rule, holds in rules.items():
            if not holds:
                raise ValueError(f"of its rollout {rule}")

    def shuffled(self, epoch: int) -> np.ndarray:
        """The order of the rows in an epoch of the present rollout: a fresh one each time."""
        step = int(self.buffer["rollouts"]) * self.settings.epochs + epoch
        return random_permutation(self.settings.rollout_size, seed=self.seed, step=step, site=SHUFFLE_SITE)

    def collect(self, model: Trainable) -> tuple[dict[str, float], int]:
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

    def accumulate(self, model: Trainable, rows: np.ndarray) -> BatchResult:
        """Add the gradient of a minibatch, in micro-batches."""
        n_tokens = int(np.count_nonzero(self.buffer.mask[rows]))
        total: dict[str, float] = {}
        for first in range(0, len(rows), self.micro_size):
            part = policy_and_value_gradient(
                model, take(self.buffer, rows[first : first + self.micro_size]), self.settings, n_tokens
            )
            total = {name: total.get(name, 0.0) + value for name, value in part.items()}
        return BatchResult(total.pop("loss"), len(rows) * self.buffer.tokens.shape[1], total)


def explained_variance(values: np.ndarray, returns: np.ndarray) -> float:
    """1 - Var(R - V) / Var(R): 1 for a perfect critic, 0 for one that knows the mean only."""
    variance = returns.var()
    return 0.0 if variance == 0 else float(1.0 - (returns - values).var() / variance)
