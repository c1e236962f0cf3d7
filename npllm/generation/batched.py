"""Generates many responses at once, for rollouts, best-of-n and evaluation."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from npllm.errors import ConfigError, DataError
from npllm.generation.kv_cache import KVCache
from npllm.generation.sampling import choose_tokens
from npllm.kernels.gemm.few_rows import MOST_ROWS
from npllm.model import GPT
from npllm.reference.random import random_words
from npllm.reference.random_streams import BATCH_GENERATION

FEWEST_ROWS = MOST_ROWS + 1  # in a product: fewer are summed in another order, which rounds differently


class Completions(NamedTuple):
    """The responses of a model to B prompts.

    tokens: (B, max_tokens) int32, the stop token included, 0 after it. lengths: (B,)
    int64. stopped: (B,) bool, whether there is a stop token.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    stopped: np.ndarray


def generate_batch(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    stop_id: int,
    temperature: float = 1.0,
    seed: int = 0,
    first_id: int = 0,
    width: int | None = None,
) -> Completions:
    """Continue every prompt until its stop token, or for max_tokens.

    Apart from rounding, the n-th token of response i depends only on (seed, first_id +
    i, n), on its prompt and on the model, not on the other prompts. Raises ConfigError
    when max_tokens is below 1, and DataError when there is no prompt, for an empty
    prompt and for one that leaves no room in the context.

    width: the tokens that every prompt is padded to; None = the longest prompt's. With
    a width a response has the same bits in any batch. At least FEWEST_ROWS responses
    are then computed, even if fewer go on.
    """
    check_prompts(prompts, max_tokens, model.config.block_size)
    B, fewest = len(prompts), 1 if width is None else FEWEST_ROWS
    prompts = [*prompts, *[prompts[-1]] * (fewest - B)]
    N, width = len(prompts), width or max(map(len, prompts))
    padded = np.zeros((N, width), np.int32)  # padded on the left, so that all continue at the same column
    for row, prompt in zip(padded, prompts, strict=True):
        row[width - len(prompt) :] = prompt
    starts = np.array([width - len(prompt) for prompt in prompts], np.int32)
    cache = KVCache(model, N, starts, capacity=width + max_tokens)
    tokens = np.zeros((N, max_tokens), np.int32)
    lengths, stopped = np.zeros(N, np.int64), np.arange(N) >= B
    rows, pending = np.arange(N), padded  # responses in the cache; their tokens not yet in it
    for n in range(max_tokens):
        logits = model.extend(pending, cache)  # (rows, V)
        words = random_words(N, seed=seed, step=n, stream=BATCH_GENERATION, first=first_id)
        chosen = choose_tokens(logits, words[rows] / 2.0**32, temperature)
        running = ~stopped[rows]  # the others wait to be removed
        tokens[rows[running], n] = chosen[running]
        lengths[rows[running]] = n + 1
        stopped[rows[running]] = chosen[running] == stop_id
        going_on = ~stopped[rows]
        if not going_on.any():
            break
        n_kept = max(going_on.sum(), fewest)
        if 2 * n_kept <= len(rows):  # not for every row that ends: it copies the cache
            kept = np.zeros(len(rows), bool)
            kept[np.argsort(~going_on, kind="stable")[:n_kept]] = True
            cache.keep(kept)
            rows, chosen = rows[kept], chosen[kept]
        pending = chosen[:, None]
    return Completions(tokens[:B], lengths[:B], stopped[:B])


def check_prompts(prompts: Sequence[Sequence[int]], max_tokens: int, block_size: int) -> None:
    """Raise DataError for no prompt, an empty or a long one.

    Raise ConfigError when max_tokens is below 1.
    """
    if max_tokens < 1:
        raise ConfigError(f"max_tokens is {max_tokens}; set it to at least 1.")
    if not prompts:
        raise DataError("There is no prompt; give at least one.")
    for number, prompt in enumerate(prompts, 1):
        if not len(prompt):
            raise DataError(f"Prompt {number} has no tokens; leave it out.")
        if len(prompt) + max_tokens > block_size:
            raise DataError(
                f"Prompt {number} has {len(prompt)} tokens; with {max_tokens} of a response it is longer than "
                f"model.block_size = {block_size}; shorten it, or lower max_tokens."
            )
