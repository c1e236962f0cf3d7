"""How well a model predicts a held-out text."""

from math import exp, log, log2
from typing import NamedTuple

import numpy as np

from npllm.data.sampler import batch, evaluation_batches
from npllm.model import GPT
from npllm.reference.lm_head_loss import IGNORED

EVALUATION_ROWS = 16
TOKENS_AT_ONCE = 1 << 15
MOST_COUNTED = 1 << 22  # tokens of a table of pairs
PRIOR_PAIRS = 5.0


class Evaluation(NamedTuple):
    """Of a whole text. loss: nats per token. perplexity: exp(loss). bits_per_byte: of the text's UTF-8 bytes."""

    loss: float
    perplexity: float
    bits_per_byte: float
    n_tokens: int
    n_bytes: int


def rows_at_once(T: int, most: int | None = None) -> int:
    """Of T tokens each, in a pass without a backward: `most` (None = EVALUATION_ROWS), and of long ones fewer. Else a
    model that learns from one long sequence at a time would be judged on many, in many times the memory."""
    return max(1, min(EVALUATION_ROWS if most is None else most, TOKENS_AT_ONCE // T))


def evaluate(model: GPT, tokens: np.ndarray, n_bytes: int) -> Evaluation:
    """Evaluate on all of `tokens`, (n_tokens,), that stand for a text of n_bytes bytes.

    The text is cut into windows of block_size; every token but the first is predicted once, from what stands before it
    in its window. In bits_per_byte the first token, which nothing predicts, costs log2(V).
    """
    nll, n_targets = 0.0, 0
    T = model.config.block_size
    for x, y in evaluation_batches(tokens, T, rows_at_once(T)):
        nll += float(model.negative_log_likelihood(x, y).sum(dtype=np.float64))
        n_targets += int(np.count_nonzero(y != IGNORED))
    loss = nll / n_targets
    bits = nll / log(2) + log2(model.config.vocab_size)
    return Evaluation(loss, exp(min(loss, 700.0)), bits / n_bytes, n_targets, n_bytes)


def pair_table_loss(train: np.ndarray, val: np.ndarray, vocab_size: int) -> float:
    """Nats per token of `val`, (n_val,), for a table that knows only how often each token followed each other one in
    `train`, (n_train,): what a model must beat to have learnt more than counting.

    p(b | a) = (n(a, b) + k p(b)) / (n(a) + k) with k = PRIOR_PAIRS, and p(b) smoothed by one. (MacKay & Peto, "A
    hierarchical Dirichlet language model", 1995.)
    """
    train, val = train[:MOST_COUNTED].astype(np.int64), val.astype(np.int64)
    single = np.bincount(train, minlength=vocab_size)  # (V,)
    first = np.bincount(train[:-1], minlength=vocab_size)
    pairs, counts = np.unique(train[:-1] * vocab_size + train[1:], return_counts=True)
    wanted = val[:-1] * vocab_size + val[1:]  # (n_val - 1,)
    at = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    seen = np.where(pairs[at] == wanted, counts[at], 0)
    prior = (single[val[1:]] + 1) / (len(train) + vocab_size)
    return float(-np.log((seen + PRIOR_PAIRS * prior) / (first[val[:-1]] + PRIOR_PAIRS)).mean())


def quick_loss(model: GPT, tokens: np.ndarray, n_windows: int = 32) -> float:
    """Loss on a fixed, evenly spread sample of windows of `tokens`, (n_tokens,): something to watch in training."""
    T = min(model.config.block_size, len(tokens) - 1)
    rows = rows_at_once(T)
    positions = np.unique(np.linspace(0, len(tokens) - 1 - T, n_windows).astype(np.int64))
    losses = [
        model.negative_log_likelihood(*batch(tokens, part, T)).mean(dtype=np.float64) * len(part)
        for part in np.split(positions, range(rows, len(positions), rows))
    ]
    return float(sum(losses)) / len(positions)
