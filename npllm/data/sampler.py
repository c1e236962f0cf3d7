"""Which windows of the token stream a step trains on, as a pure function of sample ids.

Every training sample has an absolute id: 0, 1, 2, ... over the whole run. Sample `id`
belongs to epoch id // windows_per_epoch. Within the epoch a random permutation gives
its window. There is no iterator and no state, which has three advantages. A run that is
resumed at id 70,000 gets the same samples as an uninterrupted run, and nothing has to
be replayed. A span of bad data is skipped by leaving out a range of ids, and no later
sample changes. Ids, unlike step numbers, keep their meaning when the batch size ramps
up or the number of processes changes.

The windows of an epoch do not overlap. Each has block_size + 1 tokens: block_size
inputs and, one place later, their targets. No token is a target twice in an epoch, so
the tokens of a range of ids that is left out are left out for the whole epoch.

A few tokens between the windows are left out, a different number each time, and each
epoch starts at its own offset. So the edges of the windows differ from epoch to epoch.
With fixed edges, the tokens just after an edge would have a short context in every
epoch. With one offset for all windows of an epoch, a text that repeats itself, such as
lines of equal length, would show only some of its phases in an epoch, and the loss
would jump at the start of the next one. The number of windows does not depend on what
is drawn; otherwise one division could not give the epoch of an id.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from npllm.errors import DataError
from npllm.reference.lm_head_loss import IGNORED
from npllm.reference.random import random_permutation, random_words
from npllm.reference.random_streams import RECORD_ORDER, WINDOW_GAPS, WINDOW_ORDER

WINDOW_TOKENS_PER_GAP_TOKEN = 32  # an epoch leaves out one token of 33, and each epoch different ones


class WindowSampler:
    """Start positions of training windows by absolute sample id.

    Equal arguments always give equal positions. n_tokens: length of the training
    stream. block_size: T, inputs per window. seed: below 2^64. Raises DataError when
    the stream is too short for one window.
    """

    def __init__(self, n_tokens: int, block_size: int, seed: int) -> None:
        if n_tokens < block_size + 1:
            raise DataError(
                f"the training text has {n_tokens} tokens but one window needs {block_size + 1}; give a smaller "
                "--model.block_size or more text."
            )
        self.block_size = block_size
        self.seed = seed
        share = WINDOW_TOKENS_PER_GAP_TOKEN
        self.windows_per_epoch = max((n_tokens - block_size) * share // ((share + 1) * block_size), 1)
        spare = n_tokens - 1 - self.windows_per_epoch * block_size
        self.n_shifts = min(block_size, spare + 1)  # T, except when the text is so short that it holds one window
        self.gap_tokens = spare - (self.n_shifts - 1)  # between the windows and after the last one
        # Two, because a batch at the end of an epoch needs both.
        self._epoch_starts = functools.lru_cache(maxsize=2)(self._draw_epoch)

    def positions(self, ids: np.ndarray) -> np.ndarray:
        """Return the start offsets of the samples `ids`, int64 of the same shape.

        ids: any shape, in any order, >= 0.
        """
        ids = np.asarray(ids, np.int64)
        if ids.size and ids.min() < 0:
            raise DataError(f"sample id {ids.min()} is negative; use ids from 0 on.")
        epochs, ranks = np.divmod(ids, self.windows_per_epoch)
        starts = np.empty_like(ranks)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            starts[here] = self._epoch_starts(int(epoch))[ranks[here]]
        return starts

    def _draw_epoch(self, epoch: int) -> np.ndarray:
        """Start offsets of one epoch in training order, (windows_per_epoch,) int64."""
        words = random_words(self.windows_per_epoch + 1, seed=self.seed, step=epoch, stream=WINDOW_GAPS).astype(
            np.int64
        )
        shift = words[-1] * self.n_shifts >> 32  # uniform: a word is a fraction of 2^32
        gaps_before = np.sort(words[:-1] * (self.gap_tokens + 1) >> 32)  # (windows,), ascending, so no windows overlap
        order = random_permutation(self.windows_per_epoch, seed=self.seed, step=epoch, stream=WINDOW_ORDER)
        return shift + self.block_size * order + gaps_before[order]


def next_ids(first: int, count: int, skipped: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return the next `count` sample ids from `first` on, (count,) int64.

    Ids in the ranges `skipped`, each [start, end), are left out.
    """
    ids = np.arange(first, first + count)
    for start, end in sorted(skipped):
        start = max(start, first)  # ids before are not in the range, or skipped already
        if start < end:
            ids[ids >= start] += end - start
            first = end
    return ids


def batch(tokens: np.ndarray, positions: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the windows of `tokens`, (n_tokens,), at `positions`, (B,).

    The inputs x and the targets y are (B, T) int32 and contiguous; y[b, t] is the token
    after x[b, t].
    """
    inputs = np.asarray(positions)[:, None] + np.arange(block_size)  # (B, T)
    return tokens[inputs].astype(np.int32), tokens[inputs + 1].astype(np.int32)


def batches(
    tokens: Sequence[int] | np.ndarray, block_size: int, rows: int, *, seed: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Return an iterator over the training batches of a text. It has no end.

    tokens: (n_tokens,). Each batch is x, y, both (rows, block_size) int32: windows of
    the text, and the token after each of their tokens, for `GPT.loss_and_grad`. In an
    epoch no token is a target twice. Equal arguments give equal batches. Raises
    DataError, at the call, when the text is too short for one window.
    """
    tokens = np.asarray(tokens)
    sampler = WindowSampler(len(tokens), block_size, seed)
    ids = (np.arange(first, first + rows) for first in itertools.count(0, rows))
    return (batch(tokens, sampler.positions(these), block_size) for these in ids)


def evaluation_batches(
    tokens: np.ndarray, block_size: int, rows: int, stride: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield batches that cover a whole split. Every token but the first is a target
    once.

    Each window starts `stride` tokens after the one before it. None = block_size: the
    windows follow one another without overlap, and the mean loss over all of them is
    the loss of the split, not an estimate from random windows. With a shorter stride
    only the last `stride` tokens of a window are targets, except in the first window,
    where all are. Each target then has at least block_size - stride tokens before it,
    or all that there are.

    Other targets are -1, which the loss ignores. The last windows are padded with
    inputs 0; causal attention keeps the padding invisible to the real tokens.

    tokens: (n_tokens,). stride: 1 to block_size. Yields x, y, each (rows, T) int32; the
    last batch may have fewer rows. Average over targets, not over batches, because
    batches hold different numbers of them. Raises DataError when there is no target at
    all.
    """
    n_targets, stride = len(tokens) - 1, stride or block_size
    if n_targets < 1:
        raise DataError(f"the text to evaluate has {len(tokens)} tokens but at least 2 are needed; give more text.")
    n_windows = count_windows(len(tokens), block_size, stride)
    columns = np.arange(block_size)
    for first in range(0, n_windows, rows):
        windows = np.arange(first, min(first + rows, n_windows))[:, None]
        places = stride * windows + columns  # (rows, T), of the inputs in the text
        inside = np.minimum(places, n_targets - 1)
        is_target = (places < n_targets) & ((columns >= block_size - stride) | (windows == 0))
        x, y = tokens[inside].astype(np.int32), tokens[inside + 1].astype(np.int32)
        yield np.where(places < n_targets, x, 0), np.where(is_target, y, IGNORED)


def count_windows(n_tokens: int, block_size: int, stride: int | None = None) -> int:
    """Return the number of windows in the batches of `evaluation_batches`."""
    return 1 + max(0, -(-(n_tokens - 1 - block_size) // (stride or block_size)))


class RowSampler:
    """Which of n rows a sample is, by its absolute id.

    Every epoch has each row once, in its own order.
    """

    def __init__(self, n_rows: int, seed: int) -> None:
        self.n_rows = n_rows
        self.seed = seed
        self._order = functools.lru_cache(maxsize=2)(self._draw_order)  # two: a batch at the end of an epoch needs both

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Return the rows, (n,) int64, of the samples `ids`, (n,) >= 0."""
        epochs, ranks = np.divmod(np.asarray(ids, np.int64), self.n_rows)
        return np.array([self._order(int(epoch))[rank] for epoch, rank in zip(epochs, ranks, strict=True)], np.int64)

    def _draw_order(self, epoch: int) -> np.ndarray:
        return random_permutation(self.n_rows, seed=self.seed, step=epoch, stream=RECORD_ORDER)
