r"""RMSNorm: LayerNorm without the mean. Scale every row to unit root-mean-square.

Forward, for one row x of width C:

$$
rstd = 1 / \sqrt{\sum_i x_i^2 / C + eps}
x_hat = x rstd
y = weight \cdot x_hat
$$

Backward. Let $g = dy \cdot weight$, the gradient of $x_hat$. With

$$
\partial x_hat_j / \partial x_i = rstd (\delta_{i,j} - x_hat_i x_hat_j / C)
$$

it follows that

$$
dx = rstd (g - x_hat mean(g x_hat))
dweight = \sum_n dy_n x_hat_n             % over the rows n
$$

LayerNorm has the term $mean(g)$ as well. It is missing here because no mean is
subtracted, so y changes when a constant is added to the row. Only scaling the row
leaves y unchanged.

Why cache rstd, (N,): it is the only reduction, and $x_hat = x rstd$ follows from it.

Source: Zhang & Sennrich, "Root mean square layer normalization", 2019.
"""

from typing import NamedTuple

import numpy as np


class RMSNormCache(NamedTuple):
    x: np.ndarray  # (N, C)
    rstd: np.ndarray  # (N,)


def rmsnorm_forward(x, weight, eps=1e-5):
    """Scale each row of x, (N, C), by its root-mean-square and by weight, (C,).

    Returns y, (N, C), and the cache for the backward.
    """
    rstd = 1.0 / np.sqrt((x**2).mean(axis=1) + eps)
    return x * rstd[:, None] * weight, RMSNormCache(x, rstd)


def rmsnorm_backward(dy, cache, weight, dweight):
    """Return dx, (N, C), the gradient of `rmsnorm_forward`.

    dy: (N, C). Adds to dweight, (C,).
    """
    x_hat = cache.x * cache.rstd[:, None]
    dweight += (dy * x_hat).sum(axis=0)
    g = dy * weight
    return cache.rstd[:, None] * (g - x_hat * (g * x_hat).mean(axis=1, keepdims=True))
