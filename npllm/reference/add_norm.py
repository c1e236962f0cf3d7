"""Add a branch to the residual stream and normalise the sum: the joint between the two halves of a block.

Forward:

    total = x + branch               y = norm(total)

Both results go on: y into the next branch, total past it. So total has two users, and its gradient two parts:

    dtotal_all = dtotal + norm_backward(dy)           dx = dbranch = dtotal_all

The first part is the reason that deep pre-norm networks train: the gradient of the residual stream comes down from
the loss by addition alone, without passing through a norm or a matrix.

The cache is the norm's own: it holds `total`, not x and branch, because only the sum is needed again.

Sources: He et al., "Deep residual learning", 2015; Xiong et al., "On layer normalization in the Transformer
architecture", 2020 (pre-norm).
"""

from npllm.reference.layernorm import layernorm_backward, layernorm_forward
from npllm.reference.rmsnorm import rmsnorm_backward, rmsnorm_forward


def add_norm_forward(x, branch, weight, bias=None, eps=1e-5, *, norm="layernorm"):
    """x, branch: (N, C). norm: "layernorm" or "rmsnorm" (which has no bias).

    Returns total and y, (N, C) each, and the norm's cache.
    """
    total = x + branch
    if norm == "rmsnorm":
        y, cache = rmsnorm_forward(total, weight, eps)
    else:
        y, cache = layernorm_forward(total, weight, bias, eps)
    return total, y, cache


def add_norm_backward(dtotal, dy, cache, weight, dweight, dbias=None, *, norm="layernorm"):
    """Adds to dweight and dbias, (C,) each, and returns the gradient of x, which is that of branch too, (N, C)."""
    if norm == "rmsnorm":
        return dtotal + rmsnorm_backward(dy, cache, weight, dweight)
    return dtotal + layernorm_backward(dy, cache, weight, dweight, dbias)
