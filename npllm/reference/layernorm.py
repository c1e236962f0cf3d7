r"""LayerNorm: zero mean and unit variance for each row, then a scale and an offset.

Forward, for one row x of width C:

$$
mean = \sum_i x_i / C
variance = \sum_i (x_i - mean)^2 / C
rstd = 1 / \sqrt{variance + eps}
x_hat = (x - mean) rstd
y = weight \cdot x_hat + bias
$$

Backward. Let $g = dy \cdot weight$, the gradient of $x_hat$. An element of x acts on
$x_hat$ directly, through the mean and through rstd:

$$
\partial x_hat_j / \partial x_i = rstd (\delta_{i,j} - 1/C - x_hat_i x_hat_j / C)
$$

Summing $g_j$ times this over j gives

$$
dx = rstd (g - mean(g) - x_hat mean(g x_hat))
$$

The two subtractions show what leaves y unchanged: adding a constant to the row (the
direction of ones) and scaling the row (the direction of $x_hat$). The gradient has no
component along either direction.

$$
dweight = \sum_n dy_n x_hat_n             % over the rows n
dbias = \sum_n dy_n
$$

Why cache mean and rstd, (N,) each, and not $x_hat$, (N, C): x is kept anyway, and
$x_hat$ costs one subtraction and one product to compute again.

Source: Ba, Kiros & Hinton, "Layer normalization", 2016.
"""

from typing import NamedTuple

import numpy as np


class LayerNormCache(NamedTuple):
    x: np.ndarray  # (N, C)
    mean: np.ndarray  # (N,)
    rstd: np.ndarray  # (N,)


def layernorm_forward(x, weight, bias=None, eps=1e-5):
    """Normalise each row of x, (N, C), by its mean and standard deviation.

    weight: (C,). bias: (C,) or None. Returns y, (N, C), of x's dtype, and the cache for
    the backward.
    """
    mean = x.mean(axis=1)
    centred = x - mean[:, None]
    rstd = 1.0 / np.sqrt((centred**2).mean(axis=1) + eps)
    y = centred * rstd[:, None] * weight
    if bias is not None:
        y += bias
    return y, LayerNormCache(x, mean, rstd)


def layernorm_backward(dy, cache, weight, dweight, dbias=None):
    """Return dx, (N, C), the gradient of `layernorm_forward`.

    dy: (N, C). Adds to dweight and dbias, (C,) each; dbias may be None.
    """
    x_hat = (cache.x - cache.mean[:, None]) * cache.rstd[:, None]
    dweight += (dy * x_hat).sum(axis=0)
    if dbias is not None:
        dbias += dy.sum(axis=0)
    g = dy * weight
    along_ones = g.mean(axis=1, keepdims=True)
    along_x_hat = (g * x_hat).mean(axis=1, keepdims=True)
    return cache.rstd[:, None] * (g - along_ones - x_hat * along_x_hat)
