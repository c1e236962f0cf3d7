"""RMSNorm: mathematics in `npllm.reference.rmsnorm`, kernels in `norm_rows`."""

import numpy as np

from npllm.kernels.norm_rows import norm_backward, norm_forward
from npllm.reference.rmsnorm import RMSNormCache


def rmsnorm_forward(x, weight, eps=1e-5, *, empty=np.empty):
    """Scale each row of x, (N, C), by its root-mean-square and by weight, (C,).

    Returns y, (N, C), and the cache for the backward.
    """
    _, y, _, rstd = norm_forward(x, None, weight, None, eps, False, empty)
    return y, RMSNormCache(x, rstd)


def rmsnorm_backward(dy, cache, weight, dweight, *, empty=np.empty):
    """Return dx, (N, C), the gradient of `rmsnorm_forward`.

    dy: (N, C). Adds to dweight, (C,).
    """
    return norm_backward(None, dy, cache.x, None, cache.rstd, weight, dweight, None, empty)
