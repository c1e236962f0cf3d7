"""Linear layer: y = x @ W + b, optionally followed by GELU or by adding a residual.

Forward, with rows n, inputs i, outputs o:

    z[n,o] = sum_i x[n,i] W[i,o] + b[o]                 y = z  |  gelu(z)  |  residual + z

Backward. Let dz be the gradient of z. Every z[n,o] holds x[n,i] once, with the factor W[i,o], so by the chain rule

    dx[n,i] = sum_o dz[n,o] W[i,o]      ->   dx = dz @ W.T
    dW[i,o] = sum_n x[n,i] dz[n,o]      ->   dW = x.T @ dz
    db[o]   = sum_n dz[n,o]             ->   db = dz summed over the rows

The shapes leave no other choice: (N,in) can only come from (N,out) and (out,in).

What the epilogues add: for "gelu", dz = dy * gelu'(z). For "residual", dz = dy, and dy is the residual's gradient as
well: the caller has it already. They are part of this op because a fast kernel applies them to a tile of z while the
tile is still in registers; here they are plain compositions.

Why cache x: dW needs it. Why cache z with "gelu": gelu' needs it and gelu cannot be inverted (it is not monotonic).

Source: Rumelhart, Hinton & Williams, "Learning representations by back-propagating errors", 1986.
"""

from typing import NamedTuple

import numpy as np

from npllm.reference.gelu import gelu_backward, gelu_forward


class LinearCache(NamedTuple):
    x: np.ndarray  # (N, in)
    pre_activation: np.ndarray | None  # (N, out), only with the GELU epilogue


def linear_forward(x, weight, bias=None, *, epilogue="none", residual=None):
    """Multiply rows by a matrix.

    x: (N, in). weight: (in, out). bias: (out,) or None. epilogue: "none", "gelu" or "residual"; the last one adds
    `residual`, (N, out). All of one float dtype. Returns y, (N, out), and the cache for the backward.
    """
    z = x @ weight
    if bias is not None:
        z += bias
    if epilogue == "gelu":
        return gelu_forward(z), LinearCache(x, z)
    if epilogue == "residual":
        z += residual
    return z, LinearCache(x, None)


def linear_backward(dy, cache, weight, dweight, dbias=None):
    """Gradient of `linear_forward`.

    dy: (N, out). Adds to dweight, (in, out), and to dbias, (out,), unless it is None. Returns dx, (N, in).
    """
    dz = dy if cache.pre_activation is None else gelu_backward(dy, cache.pre_activation)
    dweight += cache.x.T @ dz
    if dbias is not None:
        dbias += dz.sum(axis=0)
    return dz @ weight.T
