"""One update of AdamW, which also sets the gradients to zero.

PyTorch's update does not, so it moves an eighth less memory. There is half an operation
per byte moved, so memory is the limit. The kernel makes one pass over flat arrays;
NumPy makes one per arithmetic operation.
"""

import numpy as np
from numba import prange

import npllm.kernels
import npllm.reference
from benchmarks.ladder.task import Task, normal

LR, BETA1, BETA2, EPS, DECAY = 1e-3, 0.9, 0.95, 1e-8, 0.1

SMALL = (2000,)  # sizes for the loop in Python


def loop(params, m, v, grads):
    for i in prange(params.shape[0]):
        m[i] = BETA1 * m[i] + (1.0 - BETA1) * grads[i]
        v[i] = BETA2 * v[i] + (1.0 - BETA2) * grads[i] ** 2
        step = m[i] / (1.0 - BETA1) / (np.sqrt(v[i] / (1.0 - BETA2)) + EPS)
        params[i] = params[i] - LR * DECAY * params[i] - LR * step
        grads[i] = 0.0


def _update(ops, params, m, v, grads):
    ops.adam_update(
        params, grads, m, v, lr=LR, beta1=BETA1, beta2=BETA2, eps=EPS, weight_decay=DECAY, decoupled=True, step=1
    )
    return params, m, v


def numpy(params, m, v, grads):
    return _update(npllm.reference, params, m, v, grads)


def kernel(empty, params, m, v, grads):
    return _update(npllm.kernels, params, m, v, grads)


def task(n=1 << 23) -> Task:
    zeros = np.zeros(n, np.float32)
    return Task(
        operation="AdamW",
        shape=f"{n}",
        flops=16.0 * n,
        n_bytes=32.0 * n,
        inputs=(normal(n), zeros, zeros, normal(n, seed=1)),
        outputs=(),
        loop=loop,
        numpy=numpy,
        kernel=kernel,
        in_torch="adamw",
    )
