"""PPO and its relatives: the policy writes, the reward model judges, what was better
than expected becomes likelier.

    repeat:  1 write        B responses to prompts, with the policy
             2 judge        log pi and log ref of every token; one score for
                            each response, from the reward model
             3 calibrate    in the first rollout only: fix the scale of the scores
             4 advantages   r_t = -beta (log pi_t - log ref_t), + the score at the
                            last token; GAE with a critic (ppo), or against the
                            other responses to the same prompt (rloo, grpo)
             5 update       E epochs of minibatches, in a new order each time, with
                            clipped losses; a policy that has left its rollout too
                            far behind writes a new one first

Several ranks share out the responses of step 1, and the parts of the judgement, so each
policy writes a part of its rollout. Every rank then has the whole rollout, with the
same bits as one process.

The steps are in generation/batched.py (1), divergence.py and sequences.py (2),
advantages.py (4), ppo_gradient.py and losses.py (5).

Logits are divided by the temperature wherever a probability is meant: in writing, for
the reference and in the updates. Otherwise the ratio of new to old probabilities would
not start at exactly 1.

What this PPO leaves out, and why:

- Dropout. A ratio compares two passes, and would not start at 1 with two masks.
- Weights shared by policy and critic. The value loss would then move the policy, and
  its weight would have to be tuned against that.
- A running scale of the scores. It would change what a reward means between rollouts;
  step 3 fixes it once.
- A KL term in the loss, which GRPO's paper has. Here all three methods have it in the
  reward, so that one beta and one target mean the same for each.
- A language-model loss on pretraining text (InstructGPT's ptx). The KL penalty alone
  keeps the policy near the reference.
- Older rollouts. The clip bounds how far the policy may leave the one that wrote a
  response, and says nothing about a policy from long before.
- Writing while learning. One machine has the same cores for both, and the rollouts of a
  resumed run would depend on their timing.

Source: Ziegler et al., "Fine-tuning language models from human preferences", 2019, and
its code; Stiennon et al., "Learning to summarize from human feedback", 2020; Huang et
al., "The N implementation details of RLHF with PPO", 2023.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

import numpy as np

from npllm.data.sampler import RowSampler
from npllm.distributed import share_out, team
from npllm.errors import ConfigError
from npllm.generation.batched import Completions, check_prompts, generate_batch
from npllm.model import GPT, Trainable
from npllm.reference.random import random_permutation
from npllm.reference.random_streams import MINIBATCH_ORDER
from npllm.rlhf.advantages import generalised_advantages, group_relative, leave_one_out, token_rewards, whitened
from npllm.rlhf.divergence import Comparison, compare
from npllm.rlhf.ppo_gradient import networks, policy_and_value_gradient
from npllm.rlhf.ppo_settings import PPOSettings
from npllm.rlhf.rollout import RolloutBuffer, check_rollout, take
from npllm.rlhf.scores import Scale, Scores, scale_of, score
from npllm.rlhf.sequences import Sequences, in_parts, join, rewards_of, values_of, width_of
from npllm.training.loop import BatchResult, accumulate

Gold = Callable[[Sequence[int], Sequence[np.ndarray], np.ndarray], np.ndarray]  # prompt numbers, responses, stopped


@dataclass(frozen=True)
class Scorers:
    """What responses are scored with: the reference that the policy must stay near, and
    the reward model.

    Neither is ever changed. gold: a true score to log, where there is one.
    """

    reference: GPT
    reward: GPT
    gold: Gold | None = None


class Written(NamedTuple):
    """B responses of the policy.

    prompt_numbers: (B,), which prompt each one answers. responses: the tokens of each.
    lengths: (B,), in tokens. stopped: (B,) bool, whether the last token is the stop
    token. sequences: prompts and responses in rows.
    """

    prompt_numbers: np.ndarray
    responses: list[np.ndarray]
    lengths: np.ndarray
    stopped: np.ndarray
    sequences: Sequences


class PPOGradients:
    """The gradient of one minibatch; collects a rollout first where the last one is
    used up."""

    def __init__(
        self,
        settings: PPOSettings,
        prompts: Sequence[Sequence[int]],
        scorers: Scorers,
        *,
        stop_id: int,
        minibatch: int,
        micro_size: int,
        seed: int,
        block_size: int,
    ):
        if settings.rollout_size % minibatch:
            raise ConfigError(
                f"ppo.rollout_size = {settings.rollout_size} is no multiple of batch.size = {minibatch}; leave one of "
                f"them out, or set ppo.rollout_size to {minibatch * ceil(settings.rollout_size / minibatch)}."
            )
        check_prompts(prompts, settings.max_tokens, block_size)
        self.settings, self.prompts, self.scorers = settings, prompts, scorers
        self.stop_id, self.minibatch, self.micro_size, self.seed = stop_id, minibatch, micro_size, seed
        self.minibatches_per_epoch = settings.rollout_size // minibatch
        self.minibatches_per_rollout = self.minibatches_per_epoch * settings.epochs
        self.sampler = RowSampler(len(prompts), seed)
        width = width_of(max(map(len, prompts)) + settings.max_tokens, block_size)
        self.buffer = RolloutBuffer(settings.rollout_size, width, settings.kl_coef)

    def __call__(self, model: Trainable, ids: np.ndarray, step: int) -> BatchResult:
        """The samples' ids are not used: a rollout decides what there is to learn
        from."""
        buffer, figures, n_written = self.buffer, {}, 0
        is_new = buffer.rollouts == 0 or buffer.minibatches_used == self.minibatches_per_rollout
        if is_new:
            figures, n_written = self.collect(model)
        result = self.accumulate(model, self.next_rows())
        if not is_new and result.figures["policy/approx_kl"] > self.settings.max_update_kl:
            model.grads.flat[:] = 0.0  # the policy has left what wrote these responses: write new ones
            figures, n_written = self.collect(model)
            result = self.accumulate(model, self.next_rows())
        buffer.minibatches_used += 1
        return BatchResult(result.loss, result.tokens + n_written, figures | dict(result.figures))

    def check_rollout(self, arrays: dict[str, np.ndarray]) -> None:
        """Raise ValueError unless these arrays of a checkpoint can be those of a
        rollout of this run."""
        vocab_size = self.scorers.reference.config.vocab_size
        check_rollout(arrays, self.buffer.tokens.shape, vocab_size, self.minibatches_per_rollout)

    def collect(self, model: Trainable) -> tuple[dict[str, float], int]:
        """Steps 1 to 4: fill the buffer with a new rollout.

        Returns figures about it, and how many tokens were written.
        """
        buffer, (policy, critic) = self.buffer, networks(model)
        written = self.write(policy, group=1 if critic else self.settings.group)
        buffer.put(written.sequences)
        comparison, raw_scores = self.judge(policy, written.sequences)
        buffer.log_probability[...] = comparison.log_probability
        if buffer.rollouts == 0:
            self.calibrate(raw_scores, critic)
        scores = self.score(raw_scores, written.stopped)
        rewards = token_rewards(
            scores.rewarded, comparison.log_probability, comparison.reference, buffer.mask, buffer.kl_coef
        )
        self.find_advantages(rewards, critic, written.sequences)
        figures = self.describe(written, comparison, scores, rewards)
        self.adapt_kl_coef(figures["objective/kl"])
        buffer.rollouts += 1
        buffer.minibatches_used = 0
        return figures, int(written.lengths.sum())

    def write(self, policy: GPT, group: int) -> Written:
        """Step 1: `group` responses to each of the next prompts, rollout_size in
        all."""
        size, number = self.settings.rollout_size, self.buffer.rollouts
        n_prompts = size // group
        numbers = self.sampler.rows(np.arange(number * n_prompts, (number + 1) * n_prompts)).repeat(group)
        prompts = [self.prompts[i] for i in numbers]

        def write(rows: range) -> Completions:
            return generate_batch(
                policy,
                prompts[rows.start : rows.stop],
                max_tokens=self.settings.max_tokens,
                stop_id=self.stop_id,
                temperature=self.settings.temperature,
                seed=self.seed,
                first_id=number * size + rows.start,
                width=max(map(len, prompts)),
            )

        written = share_out(equal_parts(size, team().size), write)
        completions = Completions(*map(np.concatenate, zip(*written, strict=True)))
        responses = [tokens[:length] for tokens, length in zip(completions.tokens, completions.lengths, strict=True)]
        sequences = join(prompts, responses, self.buffer.tokens.shape[1])
        return Written(numbers, responses, completions.lengths, completions.stopped, sequences)

    def judge(self, policy: GPT, sequences: Sequences) -> tuple[Comparison, np.ndarray]:
        """Step 2: the policy beside the reference, and the reward model's scores as
        they are, (B,) float64."""
        scorers, temperature = self.scorers, self.settings.temperature

        def judge(part: Sequences) -> tuple[Comparison, np.ndarray]:
            return compare(policy, scorers.reference, part, temperature), rewards_of(scorers.reward, part)

        comparisons, rewards = zip(*share_out(list(in_parts(sequences)), judge), strict=True)
        return Comparison(*map(np.concatenate, zip(*comparisons, strict=True))), np.concatenate(rewards)

    def calibrate(self, raw_scores: np.ndarray, critic: GPT | None) -> None:
        """Step 3, in the first rollout only: fix the scale of the scores, for the whole
        run.

        A reward model is trained on differences, so its scores have an arbitrary mean,
        and a deviation that depends on how long it was trained. Nothing is learnt yet,
        so the first responses are the reference's: over them the scores get mean 0 and
        deviation 1. beta, missing_stop_score and the learning rate then mean the same
        with every reward model.

        The critic starts as a copy of the reward model and has to predict calibrated
        scores, so its scalar head h·w + b becomes (h·w + b - mean) / deviation. This
        changes parameters outside of the optimiser, before its first update.
        """
        buffer = self.buffer
        buffer.score_mean, buffer.score_std = scale_of(raw_scores)
        if critic is not None:
            weight, bias = critic.params["readout.weight"], critic.params["readout.bias"]
            weight[...] /= buffer.score_std
            bias[...] -= buffer.score_mean
            bias[...] /= buffer.score_std

    def score(self, raw_scores: np.ndarray, stopped: np.ndarray) -> Scores:
        """The scores on the scale of `calibrate`, all (B,)."""
        scale = Scale(self.buffer.score_mean, self.buffer.score_std)
        return score(raw_scores, stopped, scale, self.settings.missing_stop_score)

    def find_advantages(self, rewards: np.ndarray, critic: GPT | None, sequences: Sequences) -> None:
        """Step 4: from the rewards of the tokens, (B, W), to what the updates weight
        them with."""
        settings, buffer, mask = self.settings, self.buffer, self.buffer.mask
        if critic is not None:
            values = share_out(list(in_parts(sequences)), lambda part: values_of(critic, part))
            buffer.values[...] = np.where(mask, np.concatenate(values), 0.0)
            advantages, buffer.returns[...] = generalised_advantages(
                rewards, buffer.values, mask, settings.gamma, settings.lam
            )
            buffer.advantages[...] = whitened(advantages, mask)
            return
        relative = leave_one_out if settings.method == "rloo" else group_relative
        of_response = relative(rewards.sum(axis=1), settings.group)
        buffer.advantages[...] = np.where(mask, of_response[:, None], 0.0)

    def next_rows(self) -> np.ndarray:
        """The rows of the rollout's next minibatch, (minibatch,)."""
        epoch, number = divmod(self.buffer.minibatches_used, self.minibatches_per_epoch)
        return self.shuffled(epoch)[number * self.minibatch : (number + 1) * self.minibatch]

    def shuffled(self, epoch: int) -> np.ndarray:
        """The order of the rows in an epoch of the present rollout: a fresh one each
        time."""
        step = self.buffer.rollouts * self.settings.epochs + epoch
        return random_permutation(self.settings.rollout_size, seed=self.seed, step=step, stream=MINIBATCH_ORDER)

    def accumulate(self, model: Trainable, rows: np.ndarray) -> BatchResult:
        """Step 5: add the gradient of a minibatch, in micro-batches. The optimiser
        makes the update from it."""
        n_tokens = int(np.count_nonzero(self.buffer.mask[rows]))

        def gradient(part: slice, _) -> tuple[float, dict[str, float]]:
            return policy_and_value_gradient(model, take(self.buffer, rows[part]), self.settings, n_tokens)

        loss, figures = accumulate(model.grads, len(rows), self.micro_size, gradient)
        return BatchResult(loss, len(rows) * self.buffer.tokens.shape[1], figures)

    def describe(
        self, written: Written, comparison: Comparison, scores: Scores, rewards: np.ndarray
    ) -> dict[str, float]:
        """Figures of a rollout for metrics.jsonl. rewards: of the tokens, (B, W)."""
        buffer, mask = self.buffer, self.buffer.mask
        kl = (comparison.log_probability - comparison.reference).sum(axis=1)  # (B,): k1, an estimate for each response
        figures = {
            "objective/kl": float(kl.mean()),
            "objective/exact_kl": float(comparison.kl.mean()),
            "objective/kl_coef": buffer.kl_coef,
            "objective/entropy": float(-buffer.log_probability.sum(axis=1).mean()),
            "objective/score": float(scores.rewarded.mean()),
            "objective/proxy": float(scores.proxy.mean()),
            "objective/rlhf_reward": float(rewards.sum(axis=1).mean()),
            "rollout/length": float(written.lengths.mean()),
            "rollout/stop_rate": float(written.stopped.mean()),
            "value/mean": float(buffer.values[mask].mean()),
            "value/explained_variance": explained_variance(buffer.values[mask], buffer.returns[mask]),
        }
        if self.scorers.gold:
            gold = self.scorers.gold(written.prompt_numbers, written.responses, written.stopped)
            figures["objective/gold"] = float(np.mean(gold))
        return figures

    def adapt_kl_coef(self, kl: float) -> None:
        """beta for the next rollout: higher where this one's divergence is above
        kl_target, lower where below.

        (Ziegler et al., 2019, section 2.2.)
        """
        settings = self.settings
        if settings.kl_target:
            error = np.clip(kl / settings.kl_target - 1.0, -0.2, 0.2)
            self.buffer.kl_coef *= 1.0 + float(error) * settings.rollout_size / settings.kl_horizon


def equal_parts(n: int, n_parts: int) -> list[range]:
    """Return 0, ..., n - 1 in at most n_parts parts of about equal length."""
    borders = [n * part // n_parts for part in range(n_parts + 1)]
    return [range(*pair) for pair in zip(borders, borders[1:], strict=False) if pair[0] < pair[1]]


def explained_variance(values: np.ndarray, returns: np.ndarray) -> float:
    """1 - Var(R - V) / Var(R): 1 for a perfect critic, 0 for one that knows the mean
    only."""
    variance = returns.var()
    return 0.0 if variance == 0 else float(1.0 - (returns - values).var() / variance)
