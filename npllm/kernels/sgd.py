"""Gradient descent with momentum, in one pass over memory.

See `npllm.reference.sgd` for the mathematics.
"""

from numba import prange

from npllm.kernels.chunks import ELEMENTS, chunk_count
from npllm.kernels.jit import parallel, serial


def sgd_update(params, grads, velocity, *, lr, momentum, weight_decay, grad_scale=1.0):
    """Update flat arrays of one dtype and length in place.

    grad_scale: the clipping factor, multiplied into the gradients. Sets grads to zero.
    """
    _update(params, grads, velocity, float(lr), float(momentum), float(weight_decay), float(grad_scale))


@parallel
def _update(params, grads, velocity, lr, momentum, weight_decay, grad_scale):
    for c in prange(chunk_count(len(params), ELEMENTS)):
        chunk = slice(c * ELEMENTS, (c + 1) * ELEMENTS)
        _update_chunk(params[chunk], grads[chunk], velocity[chunk], lr, momentum, weight_decay, grad_scale)


@serial
def _update_chunk(params, grads, velocity, lr, momentum, weight_decay, grad_scale):
    real = params.dtype.type
    lr, momentum, weight_decay, grad_scale = real(lr), real(momentum), real(weight_decay), real(grad_scale)
    for i in range(len(params)):
        velocity[i] = momentum * velocity[i] + grads[i] * grad_scale + weight_decay * params[i]
        params[i] -= lr * velocity[i]
        grads[i] = real(0.0)
