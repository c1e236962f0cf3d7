"""Prompts with their responses as rows of tokens, as the losses of reinforcement learning take them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from npllm.errors import DataError
from npllm.model import GPT
from npllm.reference.lm_head_loss import IGNORED
from npllm.training.evaluation import rows_at_once

WIDTH_STEP = (
    8  # a row's length is a multiple of it: the products of 1 to 4 rows round in another way than those of more
)
SEQUENCES_AT_ONCE = 32


class Sequences(NamedTuple):
    """Row b is a prompt, its response and padding.

    tokens: (B, W) int32. targets: (B, W) int32: targets[b, t] is the token of column t + 1 where that is one of the
    response, else -1. last: (B,), the column of the response's last token.
    """

    tokens: np.ndarray
    targets: np.ndarray
    last: np.ndarray


def width_of(longest: int, block_size: int) -> int:
    """W for sequences of up to `longest` tokens."""
    return min(block_size, -(-longest // WIDTH_STEP) * WIDTH_STEP)


def join(prompts: Sequence[Sequence[int]], responses: Sequence[np.ndarray], width: int) -> Sequences:
    """Rows of `width` columns. Raises DataError for what does not fit, and for an empty prompt or response."""
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
    """A few rows at a time, as many as a pass of a model takes at once."""
    rows = rows_in_part(sequences.tokens.shape[1])
    for first in range(0, len(sequences.tokens), rows):
        yield Sequences(*(array[first : first + rows] for array in sequences))


def rows_in_part(width: int) -> int:
    """How many rows are read at once."""
    return rows_at_once(width, SEQUENCES_AT_ONCE)


def response_log_probability(model: GPT, hidden: np.ndarray, sequences: Sequences) -> np.ndarray:
    """Of each token of the responses, (B, W) float64, in nats; 0 elsewhere. hidden: (B·W, C), over the temperature."""
    log_probability, _, _ = model.log_probability_forward(hidden, sequences.targets.reshape(-1))
    return log_probability.reshape(sequences.targets.shape).astype(np.float64)


def sequence_log_probability(model: GPT, sequences: Sequences) -> np.ndarray:
    """Of each token of the responses, (B, W) float64, in nats; 0 elsewhere. Without dropout."""
    parts = in_parts(sequences)
    return np.concatenate([response_log_probability(model, model.hidden(part.tokens), part) for part in parts])


def rewards_of(model: GPT, sequences: Sequences) -> np.ndarray:
    """What the second head says at each response's last token, (B,) float64."""
    rewards = []
    for part in in_parts(sequences):
        at = last_rows(part.tokens, part.last)
        rewards.append(model.readout(model.hidden(part.tokens)[at])[:, 0].astype(np.float64))
    return np.concatenate(rewards)


def values_of(model: GPT, sequences: Sequences) -> np.ndarray:
    """What the second head says of the state after every column, (B, W) float64."""
    values = []
    for part in in_parts(sequences):
        outputs = model.readout(model.hidden(part.tokens))[:, 0]
        values.append(outputs.reshape(part.tokens.shape).astype(np.float64))
    return np.concatenate(values)


def last_rows(tokens, last):
    """The rows of (B, W) tokens, flattened, that the columns `last`, (B,), are."""
    return np.arange(len(tokens)) * tokens.shape[1] + last
