"""Writing text, one token at a time."""

from collections.abc import Iterator
from itertools import count, islice

import numpy as np

from npllm.errors import ConfigError, DataError
from npllm.generation.kv_cache import KVCache
from npllm.generation.sampling import SAMPLING_SITE, check_sampling, choose_token
from npllm.model import GPT
from npllm.reference.random import random_words


def generate_tokens(
    model: GPT,
    prompt: list[int],
    *,
    max_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[int]:
    """Yield up to max_tokens token ids that follow the prompt (at least one id).

    The n-th choice depends on (seed, n) and the logits only. A model knows positions up to block_size: when they are
    used up, the older half of the text is forgotten and the younger half takes its place at the front.
    Raises ConfigError for a setting outside its range, at once and not at the first token.
    """
    check_sampling(max_tokens, temperature, top_k, top_p, seed)
    return islice(_continuation(model, prompt, temperature, top_k, top_p, seed), max_tokens)


def _continuation(
    model: GPT, prompt: list[int], temperature: float, top_k: int | None, top_p: float, seed: int
) -> Iterator[int]:
    """`generate_tokens` without an end."""
    text = list(prompt)
    cache = KVCache(model, batch=1)
    pending = text[-cache.capacity :]  # not yet in the cache
    for n in count():
        if cache.length + len(pending) > cache.capacity:
            pending = text[-max(1, cache.capacity // 2) :]
            cache.length = 0
        logits = model.extend(np.array([pending], np.int32), cache)[0]  # (V,)
        uniform = random_words(1, seed=seed, step=n, site=SAMPLING_SITE)[0] / 2.0**32
        token = choose_token(logits, uniform, temperature, top_k, top_p)
        text.append(token)
        pending = [token]
        yield token


def generate(
    model: GPT,
    tokenizer,
    prompt: str = "",
    *,
    max_tokens: int = 256,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[str]:
    """Yield the text that follows the prompt, piece by piece, until the end-of-text token or max_tokens.

    An empty prompt stands for the beginning of a document. Raises ConfigError for a setting outside its range and
    DataError for a prompt that the tokenizer cannot write, at once and not at the first piece.
    """
    ids = tokenizer.encode(prompt) or document_start(tokenizer)
    tokens = generate_tokens(
        model, ids, max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
    )
    return _text_pieces(tokens, tokenizer)


def _text_pieces(tokens: Iterator[int], tokenizer) -> Iterator[str]:
    """The text of tokens up to end-of-text, in whole characters."""
    decoder = tokenizer.stream_decoder()
    for token in tokens:
        if token == tokenizer.eot_id:
            break
        if piece := decoder.push(token):
            yield piece
    if rest := decoder.finish():
        yield rest


def document_start(tokenizer) -> list[int]:
    """What stands before a document: the end of the one before or, in a vocabulary without that token, a newline."""
    if tokenizer.eot_id is not None:
        return [tokenizer.eot_id]
    try:
        return tokenizer.encode("\n")
    except DataError as error:
        raise ConfigError("This vocabulary has no token that can begin a text: give a prompt.") from error
