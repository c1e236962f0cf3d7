r"""Add a branch to the residual stream and normalise the sum, between the two branches.

Forward:

$$
total = x + branch
y = norm(total)
$$

y goes into the next branch, and total goes past it. So total is used twice, and its
gradient, which is that of x and of branch, has two parts:

$$
dx = dbranch = dtotal + norm_backward(dy)
$$

The first part is the reason that deep pre-norm networks train: the gradient of the
residual stream reaches every block by addition alone, without passing through a norm or
a matrix.

The cache is the norm's own. It holds `total`, not x and branch, because the backward
needs only the sum.

Sources: He et al., "Deep residual learning", 2015; Xiong et al., "On layer
normalization in the Transformer architecture", 2020 (pre-norm).
"""

from npllm.reference.layernorm import layernorm_backward, layernorm_forward
from npllm.reference.rmsnorm import rmsnorm_backward, rmsnorm_forward


def add_norm_forward(x, branch, weight, bias=None, eps=1e-5, *, norm="layernorm"):
    """Add a branch to the residual stream and normalise the sum.

    x, branch: (N, C). norm: "layernorm" or "rmsnorm" (which has no bias). weight: (C,).
    bias: (C,) or None. Returns total and y, (N, C) each, and the norm's cache.
    """
    total = x + branch
    if norm == "rmsnorm":
        y, cache = rmsnorm_forward(total, weight, eps)
    else:
        y, cache = layernorm_forward(total, weight, bias, eps)
    return total, y, cache


def add_norm_backward(dtotal, dy, cache, weight, dweight, dbias=None, *, norm="layernorm"):
    """Return the gradient of x, (N, C), which is the gradient of branch as well.

    dtotal, dy: (N, C). Adds to dweight and dbias, (C,) each; dbias may be None.
    """
    if norm == "rmsnorm":
        return dtotal + rmsnorm_backward(dy, cache, weight, dweight)
    return dtotal + layernorm_backward(dy, cache, weight, dweight, dbias)
