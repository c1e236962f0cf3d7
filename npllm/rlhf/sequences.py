"""Rows of tokens with a prompt and its response, and what models compute on them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from npllm.errors import DataError
from npllm.model import GPT
from npllm.reference.lm_head_loss import IGNORED
from npllm.training.evaluation import rows_at_once

# Rows are padded to a multiple of WIDTH_STEP columns, or to block_size if that is less.
# Matrix products of 1 to 4 rows are rounded differently from products of more rows.
WIDTH_STEP = 8
SEQUENCES_AT_ONCE = 32


class Sequences(NamedTuple):
    """B rows of W columns. Each row is a prompt, its response and padding.

    tokens: (B, W) int32. targets: (B, W) int32; targets[b, t] is the token of column
    t + 1 if that belongs to the response, else -1. last: (B,) int64, the column of the
    response's last token.
    """

    tokens: np.ndarray
    targets: np.ndarray
    last: np.ndarray


def width_of(longest: int, block_size: int) -> int:
    """Return W for sequences of up to `longest` tokens.

    It is the next multiple of WIDTH_STEP, or block_size if that is smaller.
    """
    return min(block_size, -(-longest // WIDTH_STEP) * WIDTH_STEP)


def join(prompts: Sequence[Sequence[int]], responses: Sequence[np.ndarray], width: int) -> Sequences:
    """Return prompts and responses as rows of `width` columns.

    Raises DataError if a prompt or a response is empty, or if both together do not fit.
    """
    tokens = np.zeros((len(prompts), width), np.int32)
    targets, last = np.full(tokens.shape, IGNORED, np.int32), np.empty(len(prompts), np.int64)
    for number, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        start, end = len(prompt), len(prompt) + len(response)
        if not start or start == end:
            raise DataError(f"Record {number + 1} has an empty prompt or response; remove it.")
        if end > width:
            raise DataError(
                f"Record {number + 1} has {end} tokens, but there is room for {width}; shorten it, or use a model with "
                "a larger model.block_size."
            )
        tokens[number, :start], tokens[number, start:end] = prompt, response
        targets[number, start - 1 : end - 1] = response
        last[number] = end - 1
    return Sequences(tokens, targets, last)


def in_parts(sequences: Sequences) -> Iterator[Sequences]:
    """Yield the sequences in parts, each small enough for one forward pass."""
    rows = rows_in_part(sequences.tokens.shape[1])
    for first in range(0, len(sequences.tokens), rows):
        yield Sequences(*(array[first : first + rows] for array in sequences))


def rows_in_part(width: int) -> int:
    """Return how many rows of `width` tokens go into one forward pass."""
    return rows_at_once(width, SEQUENCES_AT_ONCE)


def response_log_probability(model: GPT, hidden: np.ndarray, sequences: Sequences) -> np.ndarray:
    """Return the log-probability of each token of the responses, in nats.

    The result is (B, W) float64, and 0 outside the responses. hidden: (B·W, C), the
    hidden states of the rows, divided by the temperature.
    """
    log_probability, _, _ = model.log_probability_forward(hidden, sequences.targets.reshape(-1))
    return log_probability.reshape(sequences.targets.shape).astype(np.float64)


def sequence_log_probability(model: GPT, sequences: Sequences) -> np.ndarray:
    """Return the log-probability of each token of the responses, in nats.

    The result is (B, W) float64, and 0 outside the responses. Dropout is off.
    """
    parts = in_parts(sequences)
    return np.concatenate([response_log_probability(model, model.hidden(part.tokens), part) for part in parts])


def rewards_of(model: GPT, sequences: Sequences) -> np.ndarray:
    """Return the scalar head's output at each response's last token, (B,) float64."""
    rewards = []
    for part in in_parts(sequences):
        at = last_rows(part.tokens, part.last)
        rewards.append(model.readout(model.hidden(part.tokens)[at])[:, 0].astype(np.float64))
    return np.concatenate(rewards)


def values_of(model: GPT, sequences: Sequences) -> np.ndarray:
    """Return the scalar head's output at every column, (B, W) float64.

    The output at a column is the value of the state after its token.
    """
    values = []
    for part in in_parts(sequences):
        outputs = model.readout(model.hidden(part.tokens))[:, 0]
        values.append(outputs.reshape(part.tokens.shape).astype(np.float64))
    return np.concatenate(values)


def last_rows(tokens, last):
    """Return (B,), where column last[b] of row b lies in the flattened (B·W) tokens.

    tokens: (B, W). last: (B,), a column for each row.
    """
    return np.arange(len(tokens)) * tokens.shape[1] + last
