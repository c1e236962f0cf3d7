"""How a policy is judged: what it writes, what the gold reward and the reward model say of it, how far it has gone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log, sqrt

import numpy as np

from npllm.data.chat import encode_prompt
from npllm.model import GPT
from npllm.rlhf.divergence import exact_kl
from npllm.rlhf.ppo import Gold
from npllm.rlhf.responses import decode_responses, respond
from npllm.rlhf.sequences import Sequences, join, rewards_of, width_of
from npllm.rlhf.tasks import Response, Task
from npllm.tokenizer import Tokenizer

JUDGING_SEED = 2**32 + 1  # other random numbers than in training


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


def interval(values: np.ndarray) -> float:
    """Half the width of a 95 % confidence interval of the mean."""
    return 1.96 * float(values.std(ddof=1)) / sqrt(len(values)) if len(values) > 1 else 0.0


class Judge:
    """The task's prompts, the reference and the reward model, held against one policy after another."""

    def __init__(self, task: Task, tokenizer: Tokenizer, reference: GPT, reward: GPT, *, max_tokens: int, n: int):
        self.task, self.tokenizer, self.reference, self.reward = task, tokenizer, reference, reward
        self.max_tokens = max_tokens
        prompts = task.judged_prompts()
        self.prompts = [prompts[i % len(prompts)] for i in range(n)]
        longest = max(len(encode_prompt(tokenizer, prompt)) for prompt in self.prompts) + max_tokens
        self.width = width_of(longest, reference.config.block_size)
        self.baseline: np.ndarray | None = None  # gold of the first policy judged

    def ask(self, policy: GPT, number: int = 0) -> tuple[list[Response], Sequences]:
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
        """Judge the one of n responses that the reward model likes best.

        Its divergence is not more than log n - (n - 1) / n (Beirami et al., "Theoretical guarantees on the best-of-n
        alignment policy", 2024).
        """
        rounds = [self.ask(policy, number) for number in range(n)]
        proxies = np.stack([rewards_of(self.reward, sequences) for _, sequences in rounds])  # (n, prompts)

        def best_of(m: int) -> Verdict:
            winners = proxies[:m].argmax(axis=0)
            responses = [rounds[winner][0][i] for i, winner in enumerate(winners)]
            return self._verdict(f"best of {m}", responses, proxies[:m].max(axis=0), log(m) - (m - 1) / m)

        verdicts = [best_of(2**power) for power in range(n.bit_length()) if 2**power < n] + [best_of(n)]
        curve = tuple((verdict.kl, float(verdict.gold.mean())) for verdict in verdicts)
        return replace(verdicts[-1], curve=curve)

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
