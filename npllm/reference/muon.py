r"""Muon: step along the momentum of a matrix, with all its singular values made equal.

With g the clipped gradient of one matrix, (in, out):

$$
m = momentum m + (1 - momentum) g         % mean of the gradient
u = momentum m + (1 - momentum) g         % one gradient ahead (Nesterov)
p = p - lr weight_decay p - lr \max(1, out / in)^{1/2} orthogonal(u)
$$

$orthogonal(u)$ is the matrix $U V^T$ of the singular value decomposition
$u = U S V^T$: the nearest matrix with orthonormal rows or columns. The gradient of a
layer is dominated by a few directions with large singular values, and a plain step
hardly moves the others. Here every direction moves by the same length.

Newton-Schulz iteration finds $U V^T$ with matrix products alone. An odd polynomial of a
matrix acts on its singular values and on nothing else: with $X = U S V^T$,

$$
a X + b (X X^T) X + c (X X^T)^2 X = U (a S + b S^3 + c S^5) V^T
$$

Applied again and again to $X = u / |u|$, whose singular values are at most 1, it drives
them towards 1. The coefficients below have the steepest slope at zero, a, because small
singular values need most of the iterations. In return five iterations end between 0.68
and 1.13, not at 1. Jordan et al. found that training is none the worse for it.

The factor $\max(1, out / in)^{1/2}$ makes the step of a matrix that widens its input as
long as its output, for an input whose elements are about 1.

The queries, keys and values of attention come from one product with three matrices side
by side, and each of the three is made orthogonal by itself. As one wide matrix they
would share its singular values, and the part with the largest gradient would get most.

Sources: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024;
Bernstein & Newhouse, "Old optimizer, new norm: an anthology", 2024.
"""

from typing import NamedTuple

import numpy as np

COEFFICIENTS = 3.4445, -4.7750, 2.0315  # a, b, c of Jordan et al.
ITERATIONS = 5
SMALLEST_NORM = 1e-30  # a gradient of zeros stays zero


class LinearWeight(NamedTuple):
    """Where the weight of a linear layer lies in a flat array.

    Most weights are one matrix. That of attention is three side by side, for q, k
    and v.
    """

    start: int  # its first element
    n_in: int
    widths: tuple[int, ...]  # each matrix is (n_in, width)
    lr_scale: float = 1.0  # factor of the learning rate


def muon_update(params, grads, m, weights, *, lr, momentum, weight_decay, grad_scale=1.0):
    """Update weights of linear layers, in place.

    params, grads, m: (n,), flat, of one dtype. weights: where they lie in these arrays,
    a sequence of `LinearWeight`. grad_scale: the clipping factor, multiplied into the
    gradients. Sets the gradients of the weights to zero.
    """
    for start, n_in, widths, lr_scale in weights:
        end = start + n_in * sum(widths)
        p, dp, mean = (flat[start:end].reshape(n_in, -1) for flat in (params, grads, m))  # (in, sum of widths)
        rate, g = lr * lr_scale, dp * grad_scale
        mean *= momentum
        mean += (1.0 - momentum) * g
        u = momentum * mean + (1.0 - momentum) * g
        p *= 1.0 - rate * weight_decay
        for width, last in zip(widths, np.cumsum(widths), strict=True):
            columns = slice(last - width, last)
            p[:, columns] -= rate * max(1.0, width / n_in) ** 0.5 * orthogonal(u[:, columns])
        dp[...] = 0.0


def orthogonal(u):
    """Return about $U V^T$ of $u = U S V^T$, (in, out): all singular values near 1."""
    if len(u) > u.shape[1]:
        return orthogonal(u.T).T  # so that X X^T is the smaller of the two products
    a, b, c = COEFFICIENTS
    x = u / (np.sqrt((u**2).sum()) + SMALLEST_NORM)
    ones = np.eye(len(u), dtype=u.dtype)
    for _ in range(ITERATIONS):
        square = x @ x.T  # (in, in)
        x = (a * ones + square @ (b * ones + c * square)) @ x
    return x
