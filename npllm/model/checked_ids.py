"""Checks of the token ids that a model gets."""

import numpy as np

from npllm.errors import DataError
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


def count_targets(targets: np.ndarray) -> int:
    """The number of targets that are not ignored. Raises DataError where there is
    none."""
    n_targets = int(np.count_nonzero(targets != IGNORED))
    if n_targets == 0:
        raise DataError("Every target is -1 (ignored), so there is nothing to learn; unmask some targets.")
    return n_targets
