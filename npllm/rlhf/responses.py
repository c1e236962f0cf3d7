"""Texts in, texts out: what a policy answers to prompts, as words and as tokens."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from npllm.data.prompt_format import PromptFormat
from npllm.generation.batched import generate_batch
from npllm.model import GPT
from npllm.tokenizer import Tokenizer


class Response(NamedTuple):
    """A prompt and what the model answered. stopped: it ended by itself, before the longest length allowed."""

    prompt: str
    text: str
    stopped: bool


class TokenizedResponses(NamedTuple):
    """Responses as texts and as tokens.

    prompts: ids of each. tokens: of each response, the stop token included.
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
    """One answer to each prompt; the same for the same seed and ids, first_id and those after it."""
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
    """Responses as texts: what `generate` would print of them."""
    asked = PromptFormat(tokenizer)
    return [
        Response(prompt, asked.decode(ids.tolist()), bool(ended))
        for prompt, ids, ended in zip(prompts, tokens, stopped, strict=True)
    ]
