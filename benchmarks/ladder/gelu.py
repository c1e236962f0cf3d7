"""GELU in its tanh form, forward.

The loop calls the C library's tanh. The kernel computes tanh with the exp of
`exponential`, so the loop can be vectorised. Each iteration of the parallel loop is a
chunk of fixed size.
"""

import numpy as np
from numba import prange

import npllm.kernels
import npllm.reference
from benchmarks.ladder.task import Task, blank, normal
from npllm.reference.gelu import CUBIC, SQRT_2_OVER_PI

SMALL = (16, 512)  # sizes for the loop in Python


def loop(x, y):
    for n in prange(x.shape[0]):
        for j in range(x.shape[1]):
            u = SQRT_2_OVER_PI * (x[n, j] + CUBIC * x[n, j] ** 3)
            y[n, j] = 0.5 * x[n, j] * (1.0 + np.tanh(u))


def numpy(x):
    return (npllm.reference.gelu_forward(x),)


def kernel(empty, x):
    return (npllm.kernels.gelu_forward(x, empty=empty),)


def task(N=4096, C=4096) -> Task:
    return Task(
        operation="GELU",
        shape=f"{N}×{C}",
        flops=9.0 * N * C,
        n_bytes=8.0 * N * C,
        inputs=(normal(N, C),),
        outputs=(blank(N, C),),
        loop=loop,
        numpy=numpy,
        kernel=kernel,
        in_torch="gelu",
    )
