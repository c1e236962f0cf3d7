"""RMSNorm: LayerNorm without the mean. Scale every row to unit root-mean-square.

Forward, for one row x of width C:

    rstd = 1 / sqrt(sum(x^2) / C + eps)         x_hat = x rstd         y = weight x_hat

Backward. With g = dy * weight and d x_hat[j] / d x[i] = rstd (delta[ij] - x_hat[i] x_hat[j] / C):

    dx = rstd (g - x_hat mean(g x_hat))         dweight = sum over rows of dy x_hat

Compare LayerNorm: the term mean(g) is gone, because nothing is subtracted from the row and so the direction of ones
is seen. Only scaling the row leaves y as it was.

Why cache rstd, (N,): it is the only reduction, and x_hat = x rstd follows from it.

Source: Zhang & Sennrich, "Root mean square layer normalization", 2019.
"""

from typing import NamedTuple

import numpy as np


class RMSNormCache(NamedTuple):
    x: np.ndarray  # (N, C)
    rstd: np.ndarray  # (N,)


def rmsnorm_forward(x, weight, eps=1e-5):
    """Scale each row of x, (N, C), by its root-mean-square and by weight, (C,). Returns y, (N, C), and the cache."""
    rstd = 1.0 / np.sqrt((x**2).mean(axis=1) + eps)
    return x * rstd[:, None] * weight, RMSNormCache(x, rstd)


def rmsnorm_backward(dy, cache, weight, dweight):
    """Gradient of `rmsnorm_forward`: adds to dweight, (C,), and returns dx, (N, C)."""
    x_hat = cache.x * cache.rstd[:, None]
    dweight += (dy * x_hat).sum(axis=0)
    g = dy * weight
    return cache.rstd[:, None] * (g - x_hat * (g * x_hat).mean(axis=1, keepdims=True))
