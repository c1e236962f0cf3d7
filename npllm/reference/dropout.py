"""Dropout: set each element to zero with probability `rate` and scale the others so that the mean stays.

Forward, with independent mask[i] = 1 with probability 1 - rate, else 0:

    y[i] = x[i] mask[i] / (1 - rate)

Backward: y is linear in x, so dx is dy under the same mask and scale, and the two functions are one.

Why nothing is cached: the mask is a pure function of (seed, step, stream, element), so the
backward makes it again. That saves as much memory as the activation itself. The mask is
also the same whatever the number of threads, whichever micro-batch the row came in, and
after a resume.

A mask bit is an integer comparison, word >= rate * 2^32, and therefore the same for every dtype.

Source: Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", 2014.
"""

from typing import NamedTuple

import numpy as np

from npllm.reference.random import random_words


class DropoutKey(NamedTuple):
    """The address of a mask: element i of the array is element `first + i` of the stream (seed, step, stream)."""

    seed: int
    step: int
    stream: int  # which dropout of the network
    first: int = 0  # elements of the earlier rows of the batch, where this array is a later micro-batch


def dropout_threshold(rate: float) -> int:
    """The random words below this one mean "dropped"."""
    return round(rate * 2.0**32)


def dropout_scale(shape, rate, key, dtype):
    """The factor of every element: 0 where it is dropped, 1 / (1 - rate) elsewhere. Of the given shape and dtype."""
    words = random_words(int(np.prod(shape)), seed=key.seed, step=key.step, stream=key.stream, first=key.first)
    kept = (words >= dropout_threshold(rate)).reshape(shape)
    return kept.astype(dtype) * np.dtype(dtype).type(1.0 / (1.0 - rate))


def dropout_forward(x, rate, key):
    """x of any shape and float dtype, 0 <= rate < 1. Returns y like x."""
    return x * dropout_scale(x.shape, rate, key, x.dtype)


def dropout_backward(dy, rate, key):
    """dx for the gradient dy of the forward with the same rate and key."""
    return dropout_forward(dy, rate, key)
