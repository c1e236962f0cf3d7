"""The logits of a head, their mean cross-entropy, and its gradients.

The loop keeps all logits, (N, V). The kernel computes them for a chunk of rows, turns
them into gradients in place, and uses these for both products before the next chunk.
"""

import numpy as np
from numba import prange

import npllm.kernels
import npllm.reference
from benchmarks.ladder.task import Task, blank, normal

SMALL = (8, 32, 128)  # sizes for the loop in Python


def loop(x, weight, targets, loss, dx, dweight, nll, dlogits):
    """x: (N, C). weight: (V, C). loss: (1,).

    nll, (N,), and dlogits, (N, V), are what a simple program would keep.
    """
    (N, C), V = x.shape, weight.shape[0]
    for n in prange(N):
        for v in range(V):
            logit = x.dtype.type(0.0)
            for c in range(C):
                logit += x[n, c] * weight[v, c]
            dlogits[n, v] = logit
        maximum = dlogits[n].max()
        of_target = dlogits[n, targets[n]]
        total = x.dtype.type(0.0)
        for v in range(V):
            dlogits[n, v] = np.exp(dlogits[n, v] - maximum)
            total += dlogits[n, v]
        nll[n] = maximum + np.log(total) - of_target
        for v in range(V):
            dlogits[n, v] /= total * N
        dlogits[n, targets[n]] -= x.dtype.type(1.0 / N)
    loss[0] = nll.mean()
    for n in prange(N):
        for c in range(C):
            total = x.dtype.type(0.0)
            for v in range(V):
                total += dlogits[n, v] * weight[v, c]
            dx[n, c] = total
    for v in prange(V):
        for c in range(C):
            total = x.dtype.type(0.0)
            for n in range(N):
                total += dlogits[n, v] * x[n, c]
            dweight[v, c] = total


def _loss_and_grad(ops, x, weight, targets, dweight, **memory):
    dweight.fill(0.0)
    loss, dx = ops.lm_head_loss_and_grad(x, weight, targets, len(x), dweight, **memory)
    return np.array([loss]), dx, dweight


def numpy(x, weight, targets):
    return _loss_and_grad(npllm.reference, x, weight, targets, np.empty_like(weight))


def kernel(empty, x, weight, targets):
    dweight = empty(weight.shape, x.dtype)
    return _loss_and_grad(npllm.kernels, x, weight, targets, dweight, empty=empty)


def task(N=256, C=256, V=4096) -> Task:
    return Task(
        operation="head + cross-entropy",
        shape=f"{N}×{C}×{V}",
        flops=6.0 * N * C * V,
        n_bytes=8.0 * (N * C + V * C),
        inputs=(normal(N, C), normal(V, C, seed=1) / np.float32(C**0.5), np.arange(N, dtype=np.int32) % V),
        outputs=(blank(1), blank(N, C), blank(V, C), blank(N), blank(N, V)),
        loop=loop,
        numpy=numpy,
        kernel=kernel,
        in_torch="cross_entropy",
    )
