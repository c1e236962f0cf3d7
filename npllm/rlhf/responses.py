"""The responses of a policy to prompts, as texts and as tokens."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from npllm.data.prompt_format import PromptFormat
from npllm.generation.batched import generate_batch
from npllm.model import GPT
from npllm.tokenizer import Tokenizer


class Response(NamedTuple):
    """A prompt and the model's response to it, as texts.

    stopped: whether the response ended with the stop token, within the length limit.
    """

    prompt: str
    text: str
    stopped: bool


class TokenizedResponses(NamedTuple):
    """B responses as texts and as tokens.

    prompts: the token ids of each prompt. tokens: the token ids of each response,
    (length,) int32, with the stop token if there is one.
    """

    responses: list[Response]
    prompts: list[list[int]]
    tokens: list[np.ndarray]


def respond(
    policy: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    max_tokens: int,
    seed: int,
    first_id: int,
    temperature: float = 1.0,
) -> TokenizedResponses:
    """Return one response to each prompt.

    The response to prompt i has the id first_id + i. Its random numbers depend on the
    seed and this id only. max_tokens: the length limit.
    """
    asked = PromptFormat(tokenizer)
    ids = [asked.encode(prompt) for prompt in prompts]
    written = generate_batch(
        policy,
        ids,
        max_tokens=max_tokens,
        stop_id=asked.stop_id(),
        temperature=temperature,
        seed=seed,
        first_id=first_id,
    )
    tokens = [row[:length] for row, length in zip(written.tokens, written.lengths, strict=True)]
    return TokenizedResponses(decode_responses(prompts, tokens, written.stopped, tokenizer), ids, tokens)


def decode_responses(
    prompts: Sequence[str], tokens: Sequence[np.ndarray], stopped: np.ndarray, tokenizer: Tokenizer
) -> list[Response]:
    """Return the responses as texts, as `npllm generate` would print them.

    tokens: the token ids of each response. stopped: (B,) bool.
    """
    asked = PromptFormat(tokenizer)
    return [
        Response(prompt, asked.decode(ids.tolist()), bool(ended))
        for prompt, ids, ended in zip(prompts, tokens, stopped, strict=True)
    ]
