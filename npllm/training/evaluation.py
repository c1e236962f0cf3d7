"""How well a model predicts a held-out text."""

from math import exp, log, log2
from typing import NamedTuple

import numpy as np

from npllm.data.sampler import IGNORED_TARGET, batch, evaluation_batches
from npllm.model import GPT

ROWS_AT_ONCE = 16


class Evaluation(NamedTuple):
    """Of a whole text. loss: nats per token. perplexity: exp(loss). bits_per_byte: of the text's UTF-8 bytes."""

    loss: float
    perplexity: float
    bits_per_byte: float
    n_tokens: int
    n_bytes: int


def evaluate(model: GPT, tokens: np.ndarray, n_bytes: int) -> Evaluation:
    """Evaluate on all of `tokens`, (n_tokens,), that stand for a text of n_bytes bytes.

    The text is cut into windows of block_size; every token but the first is predicted once, from what stands before it
    in its window. In bits_per_byte the first token, which nothing predicts, costs log2(V).
    """
    nll, n_targets = 0.0, 0
    for x, y in evaluation_batches(tokens, model.config.block_size, ROWS_AT_ONCE):
        nll += float(model.negative_log_likelihood(x, y).sum(dtype=np.float64))
        n_targets += int(np.count_nonzero(y != IGNORED_TARGET))
    loss = nll / n_targets
    bits = nll / log(2) + log2(model.config.vocab_size)
    return Evaluation(loss, exp(min(loss, 700.0)), bits / n_bytes, n_targets, n_bytes)


def quick_loss(model: GPT, tokens: np.ndarray, n_windows: int = 32) -> float:
    """Loss on a fixed, evenly spread sample of windows of `tokens`, (n_tokens,): something to watch in training."""
    T = min(model.config.block_size, len(tokens) - 1)
    positions = np.unique(np.linspace(0, len(tokens) - 1 - T, n_windows).astype(np.int64))
    losses = [
        model.negative_log_likelihood(*batch(tokens, rows, T)).mean(dtype=np.float64) * len(rows)
        for rows in np.split(positions, range(ROWS_AT_ONCE, len(positions), ROWS_AT_ONCE))
    ]
    return float(sum(losses)) / len(positions)
