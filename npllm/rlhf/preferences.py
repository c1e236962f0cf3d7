"""Preferences labelled by a gold reward: a policy answers each prompt several times, and gold says which answer is
better. This takes the place of the people who compare answers elsewhere."""

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
    """Up to n_pairs preferences between two responses to the same prompt that gold tells apart.

    Only responses that end by themselves are compared: a preference is one between texts, and does not say that a text
    was cut off. Raises DataError when gold never tells two of them apart.
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
        raise DataError(f"The gold reward of the task {task.name} told no two responses apart; change the task.")
    return pairs


def preference_pairs(task: Task, responses: Sequence[Response]) -> list[Preference]:
    """Pairs of responses to one prompt, each in one pair at most: the worse half against the better half, both from
    their worst on. So pairs are as far apart as responses are on average."""
    scored = [(task.gold(response), i, response.text) for i, response in enumerate(responses) if response.stopped]
    scored.sort(key=lambda item: item[:2])
    half = len(scored) // 2
    return [
        Preference(responses[0].prompt, better, worse)
        for (low, _, worse), (high, _, better) in zip(scored[:half], scored[len(scored) - half :], strict=True)
        if high > low and better != worse
    ]
