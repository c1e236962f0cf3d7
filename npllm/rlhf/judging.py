"""How a policy is judged: what it writes, what the gold reward and the reward model say of it, how far it has gone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from npllm.data.prompt_format import PromptFormat
from npllm.model import GPT
from npllm.rlhf.divergence import exact_kl
from npllm.rlhf.ppo import Gold
from npllm.rlhf.responses import decode_responses, respond
from npllm.rlhf.reward_curves import best_of_divergence, best_of_mean, doubled
from npllm.rlhf.scores import Scores, scale_of, score
from npllm.rlhf.sequences import Sequences, join, rewards_of, width_of
from npllm.rlhf.tasks import Response, Task
from npllm.tokenizer import Tokenizer

JUDGING_SEED = 2**32 + 1  # other random numbers than in training

Round = tuple[list[Response], Sequences]  # one response to each prompt, as texts and as tokens


@dataclass(frozen=True)
class Verdict:
    """On one method: figures of its responses, one to each of the same prompts.

    gold, proxy, won: (n,); won is 1 where gold is above that of the fine-tuned model's response, 1/2 where equal.
    kl: exact, in nats per response. distinct_1, distinct_2: share of the words, and pairs of words, that occur once.
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
    curve: tuple[tuple[float, float], ...] = ()  # of best-of-n: (KL, mean gold) for n = 1, 2, 4 ...


class Judge:
    """The task's prompts, the reference and the reward model, held against one policy after another."""

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
    ):
        self.task, self.tokenizer, self.reference, self.reward = task, tokenizer, reference, reward
        self.max_tokens, self.missing_stop_score = max_tokens, missing_stop_score
        prompts = task.judged_prompts()
        self.prompts = [prompts[i % len(prompts)] for i in range(n)]
        asked = PromptFormat(tokenizer)
        longest = max(len(asked.encode(prompt)) for prompt in self.prompts) + max_tokens
        self.width = width_of(longest, reference.config.block_size)
        self.baseline: np.ndarray | None = None  # gold of the first policy judged

    def ask(self, policy: GPT, number: int = 0) -> Round:
        """One response to each prompt, also as tokens. Another number gives other ones."""
        first_id = number * len(self.prompts)
        answers = respond(
            policy, self.tokenizer, self.prompts, max_tokens=self.max_tokens, seed=JUDGING_SEED, first_id=first_id
        )
        return answers.responses, join(answers.prompts, answers.tokens, self.width)

    def judge(self, method: str, policy: GPT) -> Verdict:
        """Judge what a policy writes."""
        responses, sequences = self.ask(policy)
        kl = exact_kl(policy, self.reference, sequences)
        return self._verdict(method, responses, rewards_of(self.reward, sequences), kl)

    def judge_best_of(self, n: int, policy: GPT) -> Verdict:
        """Judge the response of n that PPO would reward most, for each prompt.

        The verdict's curve says how the gold reward grows with n. Among responses with equal
        rewards the first is judged; they stand in a random order.
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
        """What PPO rewards the responses of these rounds with.

        raw_scores: (n, prompts) float64, the reward model's outputs. They are calibrated to
        mean 0 and deviation 1 over all responses. Returns arrays of shape (n, prompts).
        """
        stopped = np.array([[response.stopped for response in responses] for responses, _ in rounds])
        return score(raw_scores, stopped, scale_of(raw_scores), self.missing_stop_score)

    def ask_often(self, policy: GPT, n: int) -> tuple[list[Round], np.ndarray]:
        """n rounds of one response to each prompt, and their gold rewards, (n, prompts)."""
        rounds = [self.ask(policy, number) for number in range(n)]
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
    """Of all runs of n tokens in all texts, how many are different from one another, as a share.

    (Li et al., "A diversity-promoting objective function for neural conversation models", 2016.)
    """
    runs = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
    return len(set(runs)) / len(runs) if runs else 0.0


def gold_of(task: Task, prompts: Sequence[str], tokenizer: Tokenizer) -> Gold:
    """The gold reward of responses in tokens, for the log of a run on these prompts."""

    def gold(numbers, tokens, stopped) -> np.ndarray:
        responses = decode_responses([prompts[i] for i in numbers], tokens, stopped, tokenizer)
        return np.array([task.gold(response) for response in responses])

    return gold
