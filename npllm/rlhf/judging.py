"""Judging: what a policy writes, and how it is scored.

The gold reward and the reward model score the responses. The KL divergence measures how
far the policy has moved from the reference.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from rich.console import Console

from npllm.data.prompt_format import PromptFormat
from npllm.model import GPT
from npllm.output import tracked
from npllm.rlhf.divergence import exact_kl
from npllm.rlhf.ppo import Gold
from npllm.rlhf.responses import decode_responses, respond
from npllm.rlhf.reward_curves import best_of_divergence, best_of_mean, doubled
from npllm.rlhf.scores import Scores, scale_of, score
from npllm.rlhf.sequences import Sequences, join, rewards_of, width_of
from npllm.rlhf.tasks import Response, Task
from npllm.tokenizer import Tokenizer

JUDGING_SEED = 2**32 + 1  # so that the random numbers differ from those of training

Round = tuple[list[Response], Sequences]  # one response to each prompt, as texts and as tokens


@dataclass(frozen=True)
class Verdict:
    """The figures of one method. It writes one response to each of n prompts.

    All methods are judged on the same prompts. gold, proxy: (n,) float64, the gold
    reward and the reward model's output. won: (n,) float64, 1 where gold is above the
    gold of the first policy that was judged (the fine-tuned model), 1/2 where they are
    equal, else 0. kl: divergence from the reference in nats per response; it is exact,
    except for best-of-n, where it is an upper bound. length: mean number of tokens of
    the texts. stop_rate: share of the responses that ended by themselves. distinct_1,
    distinct_2: the diversity of single tokens and of pairs of tokens (see `distinct`).
    """

    method: str
    gold: np.ndarray
    proxy: np.ndarray
    won: np.ndarray
    kl: float
    length: float
    stop_rate: float
    distinct_1: float
    distinct_2: float
    responses: list[Response]
    curve: tuple[tuple[float, float], ...] = ()  # best-of-n only: (KL, mean gold) for n = 1, 2, 4 ...


class Judge:
    """Judges policies on the same prompts, with the same reference and reward model.

    max_tokens: length limit of a response. missing_stop_score: the reward of a response
    that reaches it, in best-of-n. n: number of prompts; the task's prompts are repeated
    if it has fewer. console: shows how much of best-of-n is done; None = nothing is
    shown.
    """

    def __init__(
        self,
        task: Task,
        tokenizer: Tokenizer,
        reference: GPT,
        reward: GPT,
        *,
        max_tokens: int,
        missing_stop_score: float,
        n: int,
        console: Console | None = None,
    ):
        self.task, self.tokenizer, self.reference, self.reward = task, tokenizer, reference, reward
        self.console = console
        self.max_tokens, self.missing_stop_score = max_tokens, missing_stop_score
        prompts = task.judged_prompts()
        self.prompts = [prompts[i % len(prompts)] for i in range(n)]
        asked = PromptFormat(tokenizer)
        longest = max(len(asked.encode(prompt)) for prompt in self.prompts) + max_tokens
        self.width = width_of(longest, reference.config.block_size)
        self.baseline: np.ndarray | None = None  # (n,), the gold of the first policy judged

    def ask(self, policy: GPT, number: int = 0) -> Round:
        """Return one response to each prompt, as texts and as tokens.

        number: the number of the round. Each round has responses of its own.
        """
        first_id = number * len(self.prompts)
        answers = respond(
            policy, self.tokenizer, self.prompts, max_tokens=self.max_tokens, seed=JUDGING_SEED, first_id=first_id
        )
        return answers.responses, join(answers.prompts, answers.tokens, self.width)

    def judge(self, method: str, policy: GPT) -> Verdict:
        """Return the verdict on a policy."""
        responses, sequences = self.ask(policy)
        kl = exact_kl(policy, self.reference, sequences)
        return self._verdict(method, responses, rewards_of(self.reward, sequences), kl)

    def judge_best_of(self, n: int, policy: GPT) -> Verdict:
        """Return the verdict on best-of-n with this policy.

        The policy writes n responses to each prompt. The one that PPO would reward most
        is judged. If several have the same reward, that is the first of them; the order
        of the n responses is random. The verdict's curve says how the gold reward grows
        with n.
        """
        rounds, gold = self.ask_often(policy, n)
        raw_scores = np.stack([rewards_of(self.reward, sequences) for _, sequences in rounds])  # (n, prompts)
        rewarded = self.scores(raw_scores, rounds).rewarded
        winners = rewarded.argmax(axis=0)  # (prompts,)
        responses = [rounds[winner][0][i] for i, winner in enumerate(winners)]
        proxy = raw_scores[winners, np.arange(len(winners))]
        verdict = self._verdict(f"best of {n}", responses, proxy, best_of_divergence(n))
        curve = ((best_of_divergence(m), best_of_mean(gold, rewarded, m)) for m in doubled(n))
        return replace(verdict, curve=tuple(curve))

    def scores(self, raw_scores: np.ndarray, rounds: Sequence[Round]) -> Scores:
        """Return the scores that PPO would give to the responses of n rounds.

        raw_scores: (n, prompts) float64, the reward model's outputs. They are
        calibrated to mean 0 and deviation 1 over all responses. The arrays that are
        returned have the shape (n, prompts).
        """
        stopped = np.array([[response.stopped for response in responses] for responses, _ in rounds])
        return score(raw_scores, stopped, scale_of(raw_scores), self.missing_stop_score)

    def ask_often(self, policy: GPT, n: int) -> tuple[list[Round], np.ndarray]:
        """Return n rounds of one response to each prompt, and their gold rewards.

        The gold rewards are (n, prompts) float64.
        """
        numbers = tracked(range(n), n, f"writing {n} responses to each prompt", self.console)
        rounds = [self.ask(policy, number) for number in numbers]
        return rounds, np.array([[self.task.gold(response) for response in responses] for responses, _ in rounds])

    def _verdict(self, method: str, responses: list[Response], proxy: np.ndarray, kl: float) -> Verdict:
        gold = np.array([self.task.gold(response) for response in responses])
        if self.baseline is None:
            self.baseline = gold
        won = 0.5 * (gold == self.baseline) + (gold > self.baseline)
        tokens = [self.tokenizer.encode(response.text) for response in responses]
        return Verdict(
            method,
            gold,
            proxy,
            won,
            kl,
            float(np.mean([len(ids) for ids in tokens])),
            float(np.mean([response.stopped for response in responses])),
            distinct(tokens, 1),
            distinct(tokens, 2),
            responses,
        )


def distinct(texts: Sequence[Sequence[int]], n: int) -> float:
    """Return distinct-n, the share of different n-grams among all n-grams.

    texts: token ids of each text. The n-grams of all texts are counted together. If
    there are none, the result is 0.

    Source: Li et al., "A diversity-promoting objective function for neural conversation
    models", 2016.
    """
    runs = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
    return len(set(runs)) / len(runs) if runs else 0.0


def gold_of(task: Task, prompts: Sequence[str], tokenizer: Tokenizer) -> Gold:
    """Return the function with which a run logs the gold rewards of its rollouts.

    prompts: the prompts of the run, to which the prompt numbers of the rollout refer.
    """

    def gold(numbers, tokens, stopped) -> np.ndarray:
        responses = decode_responses([prompts[i] for i in numbers], tokens, stopped, tokenizer)
        return np.array([task.gold(response) for response in responses])

    return gold
