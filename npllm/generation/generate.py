"""Generates text, one token at a time."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice

import numpy as np

from npllm.data.prompt_format import PromptFormat
from npllm.data.records import PromptText
from npllm.errors import ConfigError, NpllmWarning
from npllm.generation.kv_cache import KVCache
from npllm.generation.sampling import Sampling, check_max_tokens
from npllm.generation.stop_texts import before_stop, check_stop
from npllm.model import GPT


def generate_tokens(
    model: GPT,
    prompt: list[int],
    *,
    max_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    sample: int = 0,
    last: Callable[[list[int], int], list[int]] = lambda ids, room: ids[-room:],
    on_reread: Callable[[], object] = lambda: None,
) -> Iterator[int]:
    """Yield up to max_tokens token ids that follow the prompt (at least one id).

    The n-th choice depends only on (seed, sample, n) and the logits. repetition_penalty
    lowers the logits of the tokens among the last block_size of the text. A model knows
    positions up to block_size. When they are used up, the older half of the text is
    dropped and the newer half moves to the front, where the model reads it again.
    last(ids, room) returns the ids that are kept where there is room for so many, as in
    `PromptFormat`. on_reread is called each time.

    Raises ConfigError for a setting outside its range, at the call and not at the first
    token.
    """
    check_max_tokens(max_tokens)
    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        sample=sample,
    )
    return islice(_continuation(model, prompt, sampling, last, on_reread), max_tokens)


def _continuation(model: GPT, prompt, sampling: Sampling, last, on_reread) -> Iterator[int]:
    """Like `generate_tokens`, but without an end."""
    text = list(prompt)
    cache = KVCache(model, batch=1)
    pending = last(text, cache.capacity)  # not yet in the cache
    for n in count():
        if cache.length + len(pending) > cache.capacity:
            pending = last(text, max(1, cache.capacity // 2))
            cache.length = 0
            on_reread()
        logits = model.extend(np.array([pending], np.int32), cache)[0]  # (V,)
        token = sampling.choose(logits, n, text[-model.config.block_size :])
        text.append(token)
        pending = [token]
        yield token


def generate(
    model: GPT,
    tokenizer,
    prompt: PromptText = "",
    *,
    max_tokens: int = 256,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop: Sequence[str] = (),
    seed: int = 0,
    sample: int = 0,
    on_reread: Callable[[], object] = lambda: None,
) -> Iterator[str]:
    """Yield the text that follows the prompt, piece by piece.

    It stops when the model ends the text, before the first of the texts `stop`, or
    after max_tokens. An empty prompt stands for the beginning of a document. For a
    model that learnt from conversations, the prompt becomes a message of the user and
    the text is the model's answer; the prompt may then also be the messages of a
    conversation. Special tokens and incomplete characters are not yielded. A prompt
    longer than model.block_size loses its beginning, or its oldest turns (see
    `PromptFormat.last`), with an NpllmWarning.

    min_p leaves out tokens with less than min_p times the probability of the likeliest
    one. repetition_penalty above 1 makes tokens that occurred already less likely.
    sample: the number of the text; each number gives another text of the same seed,
    whichever others are generated. on_reread: called each time when block_size is used
    up, and the model reads the newer half of the text again.

    Raises ConfigError for a setting outside its range and for a model that judges
    texts, and DataError for a prompt that the tokenizer cannot encode; all at the call
    and not at the first piece.
    """
    check_writes(model, "This model")
    check_stop(stop)
    asked = PromptFormat(tokenizer)
    ids, room = asked.encode(prompt), model.config.block_size
    tokens = generate_tokens(
        model,
        ids,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        sample=sample,
        last=asked.last,
        on_reread=on_reread,
    )
    if len(ids) > room:
        what = f"The prompt has {len(ids)} tokens, but the model sees {room} at once; its beginning is left out."
        warnings.warn(what, NpllmWarning, stacklevel=2)
    return before_stop(asked.pieces(tokens), stop)


def check_writes(model: GPT, name: object) -> None:
    """Raise ConfigError for a model that judges texts instead of generating them."""
    if model.config.n_outputs:
        kind, verb = ("a reward model", "score") if model.config.n_outputs == 1 else ("a classifier", "predict")
        raise ConfigError(
            f"{name} is {kind}, which only judges texts (npllm {verb}); take the run that it was trained from, or "
            "another of npllm pretrain, sft, ppo or dpo."
        )
