"""The log-probability of given texts."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from npllm.errors import DataError
from npllm.generation.batched import FEWEST_ROWS
from npllm.model import GPT
from npllm.reference.lm_head_loss import IGNORED

ROWS_AT_ONCE = 16
LOGITS_AT_ONCE = 1 << 22  # in memory, to find the likeliest tokens


class Likelihood(NamedTuple):
    """log_probability: of all tokens of a continuation, in nats. is_greedy: whether
    each of them is the likeliest one."""

    log_probability: float
    is_greedy: bool


def log_likelihoods(
    model: GPT, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], *, rows: int = ROWS_AT_ONCE
) -> list[Likelihood]:
    """Return the likelihood of each continuation after its context, without dropout.

    pairs: ids of a context, of at least one token, and of its continuation. Where both
    are longer than the model sees, the start of the context is left out. rows: how many
    go through the model at once; it does not change the results. Raises DataError for
    an empty context and for a continuation of more than block_size tokens.
    """
    T = model.config.block_size
    for context, continuation in pairs:
        if not len(context):
            raise DataError("A context has no tokens; start it with the end-of-text token.")
        if len(continuation) > T:
            raise DataError(
                f"A continuation has {len(continuation)} tokens, but the model sees model.block_size = {T}; take "
                "shorter ones or a model that sees more."
            )
    lengths = [min(len(context) + len(continuation), T + 1) for context, continuation in pairs]
    results = dict.fromkeys(range(len(pairs)), Likelihood(0.0, True))  # of an empty continuation
    some = [i for i in results if len(pairs[i][1])]
    order = sorted(some, key=lengths.__getitem__)  # rows of one pass have about the same length
    for first in range(0, len(order), rows):
        part = order[first : first + rows]
        results |= zip(part, _of_one_pass(model, [pairs[i] for i in part]), strict=True)
    return list(results.values())


def _of_one_pass(model: GPT, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Likelihood]:
    texts = [[*context, *continuation][-(model.config.block_size + 1) :] for context, continuation in pairs]
    width = max(map(len, texts)) - 1
    shape = max(len(texts), -(-FEWEST_ROWS // width)), width
    tokens, targets = np.zeros(shape, np.int32), np.full(shape, IGNORED, np.int32)  # (B, T), filled up on the right
    for row, (text, (_, continuation)) in enumerate(zip(texts, pairs, strict=True)):
        n = len(text) - 1
        tokens[row, :n] = text[:-1]
        targets[row, n - len(continuation) : n] = continuation
    targets = targets.reshape(-1)
    wanted = np.flatnonzero(targets != IGNORED)
    wanted = np.resize(wanted, max(len(wanted), FEWEST_ROWS))  # a few rows are repeated
    hidden, targets = model.hidden(tokens)[wanted], targets[wanted]  # (n, C), (n,)
    log_probabilities, _, _ = model.log_probability_forward(hidden, targets)
    hits = _likeliest(model, hidden) == targets
    ends = np.cumsum([len(continuation) for _, continuation in pairs])
    return [
        Likelihood(float(each.sum(dtype=np.float64)), bool(hit.all()))
        for each, hit, _ in zip(np.split(log_probabilities, ends), np.split(hits, ends), pairs, strict=False)
    ]


def _likeliest(model: GPT, hidden: np.ndarray) -> np.ndarray:
    """Return the likeliest token after each row, (n,), of rows before the head,
    (n, C)."""
    n_parts = -(-len(hidden) * model.config.vocab_size // LOGITS_AT_ONCE)
    return np.concatenate([model.logits_of(part).argmax(axis=1) for part in np.array_split(hidden, n_parts)])
