"""LayerNorm: mathematics in `npllm.reference.layernorm`, kernels in `norm_rows`."""

import numpy as np

from npllm.kernels.norm_rows import norm_backward, norm_forward
from npllm.reference.layernorm import LayerNormCache


def layernorm_forward(x, weight, bias=None, eps=1e-5, *, empty=np.empty):
    """Normalise each row of x, (N, C), by its mean and standard deviation.

    weight: (C,). bias: (C,) or None. Returns y, (N, C), of x's dtype, and the cache for
    the backward.
    """
    _, y, mean, rstd = norm_forward(x, None, weight, bias, eps, True, empty)
    return y, LayerNormCache(x, mean, rstd)


def layernorm_backward(dy, cache, weight, dweight, dbias=None, *, empty=np.empty):
    """Return dx, (N, C), the gradient of `layernorm_forward`.

    dy: (N, C). Adds to dweight and dbias, (C,) each; dbias may be None.
    """
    return norm_backward(None, dy, cache.x, cache.mean, cache.rstd, weight, dweight, dbias, empty)
