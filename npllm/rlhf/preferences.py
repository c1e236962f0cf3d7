"""Preferences that are labelled by a gold reward.

A policy answers each prompt several times, and the gold reward says which answer is
better. It takes the place of people who compare answers.
"""

from collections.abc import Sequence

from npllm.data.records import Preference
from npllm.errors import DataError
from npllm.model import GPT
from npllm.reference.random import random_permutation
from npllm.reference.random_streams import PREFERENCE_PROMPT_ORDER
from npllm.rlhf.responses import respond
from npllm.rlhf.tasks import Response, Task
from npllm.tokenizer import Tokenizer

RESPONSES_AT_ONCE = 256


def sample_preferences(
    policy: GPT,
    tokenizer: Tokenizer,
    task: Task,
    *,
    responses_per_prompt: int,
    max_tokens: int,
    temperature: float,
    n_pairs: int,
    seed: int,
) -> list[Preference]:
    """Return up to n_pairs preferences between two responses to the same prompt.

    The two have different gold rewards. Responses that were cut off at max_tokens are
    left out, because a record of two texts cannot say that one of them was cut off.
    Raises DataError if there is no such pair at all.
    """
    pairs: list[Preference] = []
    prompts = task.prompts()
    order = random_permutation(len(prompts), seed=seed, stream=PREFERENCE_PROMPT_ORDER)
    at_once = max(1, RESPONSES_AT_ONCE // responses_per_prompt)
    for first in range(0, len(prompts), at_once):
        asked = [prompts[i] for i in order[first : first + at_once] for _ in range(responses_per_prompt)]
        responses = respond(
            policy,
            tokenizer,
            asked,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            first_id=first * responses_per_prompt,
        ).responses
        for start in range(0, len(responses), responses_per_prompt):
            pairs += preference_pairs(task, responses[start : start + responses_per_prompt])
        if len(pairs) >= n_pairs:
            return pairs[:n_pairs]
    if not pairs:
        raise DataError(
            f"The gold reward of the task {task.name} told no two finished responses apart; change the task."
        )
    return pairs


def preference_pairs(task: Task, responses: Sequence[Response]) -> list[Preference]:
    """Return pairs of responses to one prompt; each response is in at most one pair.

    The finished responses are ranked by gold. The i-th of the worse half is paired with
    the i-th of the better half, so the two of every pair are half the ranking apart.
    With an odd number, the one in the middle is left out. A pair with equal gold
    rewards is left out too.
    """
    scored = [(task.gold(response), i, response.text) for i, response in enumerate(responses) if response.stopped]
    scored.sort(key=lambda item: item[:2])
    half = len(scored) // 2
    return [
        Preference(responses[0].prompt, better, worse)
        for (low, _, worse), (high, _, better) in zip(scored[:half], scored[len(scored) - half :], strict=True)
        if high > low and better != worse
    ]
