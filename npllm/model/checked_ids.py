"""Checks of what a model is given. The arrays that come back are safe to index with."""

import numpy as np

from npllm.errors import DataError
from npllm.model.config import ModelConfig
from npllm.reference.lm_head_loss import IGNORED


def whole_numbers(name: str, ids) -> np.ndarray:
    """Return ids as a contiguous array. Raises DataError unless they are (B, T)
    integers."""
    ids = np.ascontiguousarray(ids)
    if ids.ndim != 2 or ids.size == 0 or ids.dtype.kind not in "iu":
        raise DataError(f"{name} is {ids.shape} of {ids.dtype}; give a (B, T) array of integers.")
    return ids


def checked_ids(name: str, ids, lowest: int, vocab_size: int) -> np.ndarray:
    """Return ids, (B, T), as contiguous int32. Raises DataError unless they are from
    `lowest` to below vocab_size."""
    ids = whole_numbers(name, ids)
    if ids.min() < lowest or ids.max() >= vocab_size:
        raise DataError(
            f"{name} holds ids from {ids.min()} to {ids.max()}, but the vocabulary has the ids 0 to "
            f"{vocab_size - 1}; use this model's tokenizer."
        )
    return ids.astype(np.int32, copy=False)


def checked_tokens(tokens, config: ModelConfig) -> np.ndarray:
    """Return tokens, (B, T), as contiguous int32. Raises DataError for ids that are not
    in the vocabulary, and for rows longer than block_size."""
    tokens = checked_ids("tokens", tokens, 0, config.vocab_size)
    if tokens.shape[1] > config.block_size:
        raise DataError(
            f"A sequence of {tokens.shape[1]} tokens is longer than model.block_size = {config.block_size}; shorten it."
        )
    return tokens


def checked_batch(tokens, targets, config: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens and targets, (B, T) each, as contiguous int32. Raises DataError as
    `checked_tokens` does, and where the targets do not fit."""
    tokens = checked_tokens(tokens, config)
    targets = checked_ids("targets", targets, IGNORED, config.vocab_size)
    if targets.shape != tokens.shape:
        raise DataError(f"targets is {targets.shape}, but tokens is {tokens.shape}; make the shapes equal.")
    return tokens, targets


def checked_starts(starts, tokens) -> np.ndarray | None:
    """Return starts, None or (B, T), as contiguous int32. Raises DataError unless each
    is from 0 to its own position. tokens: (B, T)."""
    if starts is None:
        return None
    starts = whole_numbers("starts", starts)
    if starts.shape != np.shape(tokens) or starts.min() < 0 or (starts > np.arange(starts.shape[1])).any():
        raise DataError("starts does not fit tokens; give (B, T) integers, each from 0 to its own position.")
    return starts.astype(np.int32, copy=False)


def count_targets(targets: np.ndarray) -> int:
    """The number of targets that are not ignored. Raises DataError where there is
    none."""
    n_targets = int(np.count_nonzero(targets != IGNORED))
    if n_targets == 0:
        raise DataError("Every target is -1 (ignored), so there is nothing to learn; unmask some targets.")
    return n_targets
