"""The loss of a model on a held-out text."""

from math import exp, log, log2
from typing import NamedTuple

import numpy as np
from rich.console import Console

from npllm.data.sampler import batch, count_windows, evaluation_batches
from npllm.model import GPT
from npllm.output import tracked
from npllm.reference.lm_head_loss import IGNORED

EVALUATION_ROWS = 16
TOKENS_AT_ONCE = 1 << 15
MOST_COUNTED = 1 << 22  # tokens that pair_table_loss counts
PREDICTED_AT_ONCE = 1 << 20  # tokens, by the table of pairs; one takes 40 bytes
PRIOR_PAIRS = 5.0


class Evaluation(NamedTuple):
    """The result on a whole text.

    loss: mean, nats per token. perplexity: exp(loss). bits_per_byte: the bits of all
    tokens, per byte of the text in UTF-8.
    """

    loss: float
    perplexity: float
    bits_per_byte: float
    n_tokens: int
    n_bytes: int


def rows_at_once(T: int, most: int | None = None) -> int:
    """How many rows of T tokens go into one forward pass: `most` (None =
    EVALUATION_ROWS), or fewer if they are long, so that evaluation does not take more
    memory than training."""
    return max(1, min(EVALUATION_ROWS if most is None else most, TOKENS_AT_ONCE // T))


def evaluate(
    model: GPT, tokens: np.ndarray, n_bytes: int, console: Console | None = None, *, stride: int | None = None
) -> Evaluation:
    """The loss of a model on all of `tokens`, (n_tokens,), the tokens of a text of
    n_bytes bytes.

    The text is cut into windows of block_size tokens. Every token but the first is
    predicted once, from the tokens before it in its window. The first token is not
    predicted; in bits_per_byte it costs log2(V).

    console: shows how much is done; None = nothing is shown. stride: None = windows do
    not overlap. A stride of N gives each token at least block_size - N tokens before
    it, and takes block_size / N times as long: see `evaluation_batches`. Raises
    DataError for fewer than 2 tokens.
    """
    nll, n_targets = 0.0, 0
    T = model.config.block_size
    rows = rows_at_once(T)
    n_batches = -(-count_windows(len(tokens), T, stride) // rows)
    for x, y in tracked(evaluation_batches(tokens, T, rows, stride), n_batches, "evaluating", console):
        nll += float(model.negative_log_likelihood(x, y).sum(dtype=np.float64))
        n_targets += int(np.count_nonzero(y != IGNORED))
    loss = nll / n_targets
    bits = nll / log(2) + log2(model.config.vocab_size)
    return Evaluation(loss, exp(min(loss, 700.0)), bits / n_bytes, n_targets, n_bytes)


def pair_table_loss(train: np.ndarray, val: np.ndarray, vocab_size: int) -> float:
    """The loss of a bigram model in nats per token: trained by counting on `train`,
    (n_train,), and evaluated on `val`, (n_val,). A trained network should be better.

    p(b | a) = (n(a, b) + k p(b)) / (n(a) + k) with k = PRIOR_PAIRS, and p(b) smoothed
    by one. (MacKay & Peto, "A hierarchical Dirichlet language model", 1995.)
    """
    train = train[:MOST_COUNTED].astype(np.int64)
    single = np.bincount(train, minlength=vocab_size)  # (V,)
    first = np.bincount(train[:-1], minlength=vocab_size)
    pairs, counts = np.unique(train[:-1] * vocab_size + train[1:], return_counts=True)
    prior = (single + 1) / (len(train) + vocab_size)  # (V,)
    nll = 0.0
    for start in range(0, len(val) - 1, PREDICTED_AT_ONCE):
        part = val[start : start + PREDICTED_AT_ONCE + 1].astype(np.int64)
        wanted = part[:-1] * vocab_size + part[1:]
        at = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
        seen = np.where(pairs[at] == wanted, counts[at], 0)
        nll -= np.log((seen + PRIOR_PAIRS * prior[part[1:]]) / (first[part[:-1]] + PRIOR_PAIRS)).sum()
    return float(nll) / (len(val) - 1)


def quick_loss(model: GPT, tokens: np.ndarray, n_windows: int = 32, console: Console | None = None) -> float:
    """The loss, nats per token, on n_windows windows spread evenly over `tokens`,
    (n_tokens,). It is measured during training. console: as in `evaluate`."""
    T = min(model.config.block_size, len(tokens) - 1)
    rows = rows_at_once(T)
    positions = np.unique(np.linspace(0, len(tokens) - 1 - T, n_windows).astype(np.int64))
    parts = np.split(positions, range(rows, len(positions), rows))
    losses = [
        model.negative_log_likelihood(*batch(tokens, part, T)).mean(dtype=np.float64) * len(part)
        for part in tracked(parts, len(parts), "evaluating", console)
    ]
    return float(sum(losses)) / len(positions)
