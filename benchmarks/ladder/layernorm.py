"""LayerNorm, forward.

The loop adds along a row in order, so every addition waits for the previous one. The
kernel spreads the sums over the lanes of a register, in a fixed order.
"""

import numpy as np
from numba import prange

import npllm.kernels
import npllm.reference
from benchmarks.ladder.task import Task, blank, normal

EPS = 1e-5

SMALL = (16, 512)  # sizes for the loop in Python


def loop(x, weight, bias, y):
    C = x.shape[1]
    for n in prange(x.shape[0]):
        mean = x.dtype.type(0.0)
        for j in range(C):
            mean += x[n, j]
        mean /= C
        variance = x.dtype.type(0.0)
        for j in range(C):
            variance += (x[n, j] - mean) ** 2
        variance /= C
        for j in range(C):
            y[n, j] = (x[n, j] - mean) / np.sqrt(variance + EPS) * weight[j] + bias[j]


def numpy(x, weight, bias):
    return npllm.reference.layernorm_forward(x, weight, bias, EPS)[:1]


def kernel(empty, x, weight, bias):
    return npllm.kernels.layernorm_forward(x, weight, bias, EPS, empty=empty)[:1]


def task(N=16384, C=1024) -> Task:
    return Task(
        operation="LayerNorm",
        shape=f"{N}×{C}",
        flops=8.0 * N * C,
        n_bytes=8.0 * N * C,
        inputs=(normal(N, C), normal(C, seed=1), normal(C, seed=2)),
        outputs=(blank(N, C),),
        loop=loop,
        numpy=numpy,
        kernel=kernel,
        in_torch="layernorm",
    )
