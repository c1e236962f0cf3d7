r"""Dropout: set each element to zero with probability `rate`, and scale the others.

Forward, with independent $mask_i = 1$ with probability $1 - rate$, else 0:

$$
y_i = x_i mask_i / (1 - rate)
$$

The scale keeps the mean of y equal to x.

Backward: y is linear in x, so dx is dy with the same mask and scale, and the backward
is the forward applied to dy.

Why nothing is cached: the mask is a pure function of (seed, step, stream, element), so
the backward computes it again. That saves as much memory as the activation itself. The
mask is also the same for any number of threads, for any division into micro-batches,
and after a resume.

A mask bit is an integer comparison, $word \ge rate \cdot 2^{32}$, so it is the same for
every dtype.

Source: Srivastava et al., "Dropout: a simple way to prevent neural networks from
overfitting", 2014.
"""

from typing import NamedTuple

import numpy as np

from npllm.reference.random import random_words


class DropoutKey(NamedTuple):
    """The address of a mask.

    Element i of the array is element `first + i` of the random stream
    (seed, step, stream).
    """

    seed: int
    step: int
    stream: int  # which dropout of the network
    first: int = 0  # the number of elements in earlier micro-batches of the batch


def dropout_threshold(rate: float) -> int:
    """Return the number below which a random word means "dropped"."""
    return round(rate * 2.0**32)


def dropout_scale(shape, rate, key, dtype):
    """Return the factors of the elements, an array of the given shape and dtype.

    A factor is 0 where the element is dropped, and $1 / (1 - rate)$ elsewhere.
    """
    words = random_words(int(np.prod(shape)), seed=key.seed, step=key.step, stream=key.stream, first=key.first)
    kept = (words >= dropout_threshold(rate)).reshape(shape)
    return kept.astype(dtype) * np.dtype(dtype).type(1.0 / (1.0 - rate))


def dropout_forward(x, rate, key):
    r"""Return y, of x's shape and dtype: x with elements dropped and the others scaled.

    x: any shape and float dtype. rate: $0 \le rate < 1$. key: a DropoutKey.
    """
    return x * dropout_scale(x.shape, rate, key, x.dtype)


def dropout_backward(dy, rate, key):
    """Return dx for the gradient dy of the forward with the same rate and key."""
    return dropout_forward(dy, rate, key)
