"""Dropout. See `npllm.reference.dropout` for the mathematics.

Its masks are those of the reference, bit by bit.
"""

from typing import NamedTuple

import numpy as np
from numba import prange

from npllm.kernels.chunks import ELEMENTS, chunk_count
from npllm.kernels.jit import inlined, parallel, serial
from npllm.kernels.random import philox_block
from npllm.reference.dropout import dropout_threshold
from npllm.reference.random import LOW_32_BITS


class Mask(NamedTuple):
    """A dropout rate and a DropoutKey as numbers that Numba can take."""

    threshold: int  # the random words below it mean "dropped"
    scale: float
    first: int
    stream: int
    step: int
    seed_low: int  # 32 bits each
    seed_high: int


NO_DROPOUT = Mask(threshold=0, scale=1.0, first=0, stream=0, step=0, seed_low=0, seed_high=0)


def mask_of(rate, key):
    """Return the Mask of a rate, 0 <= rate < 1, and a DropoutKey."""
    threshold = min(dropout_threshold(rate), LOW_32_BITS)
    scale = 1.0 / (1.0 - rate)
    return Mask(threshold, scale, key.first, key.stream, key.step, key.seed & LOW_32_BITS, key.seed >> 32)


def dropout_forward(x, rate, key, *, empty=np.empty):
    """Return y, of x's shape and dtype: x with elements dropped and the others scaled.

    x: any shape and float dtype. rate: 0 <= rate < 1. key: a DropoutKey.
    """
    y = empty(x.shape, x.dtype)
    if x.size <= ELEMENTS:
        _chunk(x.reshape(-1), y.reshape(-1), key.first, mask_of(rate, key))
    else:
        _all_chunks(x.reshape(-1), y.reshape(-1), mask_of(rate, key))
    return y


def dropout_backward(dy, rate, key, *, empty=np.empty):
    """Return dx for the gradient dy of the forward with the same rate and key."""
    return dropout_forward(dy, rate, key, empty=empty)


@parallel
def _all_chunks(x, y, mask):
    for c in prange(chunk_count(len(x), ELEMENTS)):
        start, stop = c * ELEMENTS, (c + 1) * ELEMENTS
        _chunk(x[start:stop], y[start:stop], mask.first + start, mask)


@serial
def _chunk(x, y, first, mask):
    """first: the number of x[0] in the random stream."""
    head = min(-first % 4, len(x))  # elements before the first whole block of four
    tail = head + (len(x) - head) // 4 * 4
    _part_of_block(x[:head], y[:head], first, mask)
    _whole_blocks(x[head:tail], y[head:tail], (first + head) // 4, mask)
    _part_of_block(x[tail:], y[tail:], first + tail, mask)


@inlined
def _part_of_block(x, y, first, mask):
    words = _block(first // 4, mask)
    for i in range(len(x)):
        y[i] = _masked(x[i], words[(first + i) % 4], mask)


@inlined
def _whole_blocks(x, y, first_block, mask):
    for i in range(len(x) // 4):
        w0, w1, w2, w3 = _block(first_block + i, mask)
        y[4 * i] = _masked(x[4 * i], w0, mask)
        y[4 * i + 1] = _masked(x[4 * i + 1], w1, mask)
        y[4 * i + 2] = _masked(x[4 * i + 2], w2, mask)
        y[4 * i + 3] = _masked(x[4 * i + 3], w3, mask)


@inlined
def _block(block, mask):
    stream, step = np.uint64(mask.stream), np.uint64(mask.step)
    return philox_block(np.uint64(block), stream, step, np.uint64(mask.seed_low), np.uint64(mask.seed_high))


@inlined
def _masked(x, word, mask):
    real = type(x)
    return x * (real(mask.scale) if word >= np.uint64(mask.threshold) else real(0.0))
