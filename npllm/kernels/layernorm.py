"""LayerNorm. See `npllm.reference.layernorm` for the mathematics and `norm_rows` for the kernels."""

import numpy as np

from npllm.kernels.norm_rows import norm_backward, norm_forward
from npllm.reference.layernorm import LayerNormCache


def layernorm_forward(x, weight, bias=None, eps=1e-5, *, empty=np.empty):
    """Normalise each row of x, (N, C), by its mean and standard deviation.

    weight: (C,). bias: (C,) or None. Returns y, (N, C), of x's dtype, and the cache for the backward.
    """
    _, y, mean, rstd = norm_forward(x, None, weight, bias, eps, True, empty)
    return y, LayerNormCache(x, mean, rstd)


def layernorm_backward(dy, cache, weight, dweight, dbias=None, *, empty=np.empty):
    """Gradient of `layernorm_forward`: adds to dweight and dbias, (C,) each, and returns dx, (N, C)."""
    return norm_backward(None, dy, cache.x, cache.mean, cache.rstd, weight, dweight, dbias, empty)
