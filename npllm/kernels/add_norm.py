"""Add a branch to the residual stream and normalise the sum, in one pass over memory.

The mathematics is in `npllm.reference.add_norm`, the kernels are in `norm_rows`.
"""

import numpy as np

from npllm.kernels.norm_rows import norm_backward, norm_forward
from npllm.reference.layernorm import LayerNormCache
from npllm.reference.rmsnorm import RMSNormCache


def add_norm_forward(x, branch, weight, bias=None, eps=1e-5, *, norm="layernorm", empty=np.empty):
    """Add a branch to the residual stream and normalise the sum.

    x, branch: (N, C). norm: "layernorm" or "rmsnorm" (which has no bias). weight: (C,).
    bias: (C,) or None. Returns total and y, (N, C) each, and the norm's cache.
    """
    if norm == "rmsnorm":
        total, y, _, rstd = norm_forward(x, branch, weight, None, eps, False, empty)
        return total, y, RMSNormCache(total, rstd)
    total, y, mean, rstd = norm_forward(x, branch, weight, bias, eps, True, empty)
    return total, y, LayerNormCache(total, mean, rstd)


def add_norm_backward(dtotal, dy, cache, weight, dweight, dbias=None, *, norm="layernorm", empty=np.empty):
    """Return the gradient of x, (N, C), which is the gradient of branch as well.

    dtotal, dy: (N, C). Adds to dweight and dbias, (C,) each; dbias may be None.
    """
    if norm == "rmsnorm":
        return norm_backward(dtotal, dy, cache.x, None, cache.rstd, weight, dweight, None, empty)
    return norm_backward(dtotal, dy, cache.x, cache.mean, cache.rstd, weight, dweight, dbias, empty)
