r"""SwiGLU: a gated activation. A smooth gate scales each unit of the other half.

Forward, element by element, with the logistic function $\sigma$:

$$
silu(g) = g \sigma(g)
y = silu(gate) \cdot up
$$

Backward. $\sigma' = \sigma (1 - \sigma)$, so by the product rule

$$
dup = dy \cdot silu(gate)
dgate = dy \cdot up \cdot \sigma(gate) (1 + gate (1 - \sigma(gate)))
$$

Why cache gate and up, and not $\sigma(gate)$: the derivatives need both, and $\sigma$
costs one exponential.

Source: Shazeer, "GLU variants improve Transformer", 2020.
"""

from typing import NamedTuple

import numpy as np


class SwiGLUCache(NamedTuple):
    gate: np.ndarray
    up: np.ndarray


def sigmoid(x):
    r"""Return $1 / (1 + \exp(-x))$, by way of tanh, which cannot overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def swiglu_forward(gate, up):
    r"""Return $y = silu(gate) \cdot up$, element by element, and the cache.

    gate, up: two arrays of one shape and float dtype; y has the same.
    """
    return gate * sigmoid(gate) * up, SwiGLUCache(gate, up)


def swiglu_backward(dy, cache):
    """Return dgate and dup, each of dy's shape."""
    gate, up = cache
    sigma = sigmoid(gate)
    return dy * up * sigma * (1.0 + gate * (1.0 - sigma)), dy * gate * sigma
