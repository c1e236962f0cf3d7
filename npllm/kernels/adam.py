"""Adam and AdamW. See `npllm.reference.adam` for the mathematics.

One pass reads the four arrays, writes them back and sets the gradients to zero. NumPy's
reference makes a pass for every array operation.
"""

from typing import NamedTuple

import numpy as np
from numba import prange

from npllm.kernels.chunks import ELEMENTS, chunk_count
from npllm.kernels.jit import parallel, serial


class _Step(NamedTuple):
    """The scalars of one update, the same for every element."""

    lr: float  # divided by 1 - beta1^t
    beta1: float
    beta2: float
    v_correction: float  # 1 / (1 - beta2^t)
    eps: float
    shrink: float  # AdamW's decay: the factor of the parameter
    pull: float  # Adam's decay: the factor of the parameter in its gradient
    grad_scale: float


def adam_update(params, grads, m, v, *, lr, beta1, beta2, eps, weight_decay, decoupled, step, grad_scale=1.0):
    """Update flat arrays of one dtype and length in place.

    step: t, from 1. grad_scale: the clipping factor, multiplied into the gradients.
    decoupled: AdamW. Sets grads to zero, ready for the next step to add to.
    """
    shrink, pull = (1.0 - lr * weight_decay, 0.0) if decoupled else (1.0, weight_decay)
    scalars = lr / (1.0 - beta1**step), beta1, beta2, 1.0 / (1.0 - beta2**step), eps, shrink, pull, grad_scale
    _update(params, grads, m, v, _Step(*map(float, scalars)))


@parallel
def _update(params, grads, m, v, step):
    for c in prange(chunk_count(len(params), ELEMENTS)):
        chunk = slice(c * ELEMENTS, (c + 1) * ELEMENTS)
        _update_chunk(params[chunk], grads[chunk], m[chunk], v[chunk], step)


@serial
def _update_chunk(params, grads, m, v, step):
    # Scalars get the dtype of the arrays. With float64 scalars Numba would compute in
    # float64.
    real = params.dtype.type
    lr, eps, v_correction = real(step.lr), real(step.eps), real(step.v_correction)
    beta1, new1, beta2, new2 = real(step.beta1), real(1.0 - step.beta1), real(step.beta2), real(1.0 - step.beta2)
    shrink, pull, grad_scale = real(step.shrink), real(step.pull), real(step.grad_scale)
    for i in range(len(params)):
        g = grads[i] * grad_scale + pull * params[i]
        m[i] = beta1 * m[i] + new1 * g
        v[i] = beta2 * v[i] + new2 * g * g
        params[i] = shrink * params[i] - lr * m[i] / (np.sqrt(v[i] * v_correction) + eps)
        grads[i] = real(0.0)
