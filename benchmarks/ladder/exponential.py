"""y = exp(x), element by element, on one core: half of the time of GELU and softmax.

The loop calls the C library once per element. The kernel's exp is a few multiplications
and additions, which run on all lanes of a vector register at once.
"""

import numba
import numpy as np

from benchmarks.ladder.task import Task, blank, normal
from npllm.kernels.vector_math import exp

SMALL = (2000,)  # sizes for the loop in Python


def loop(x, y):
    for i in range(len(x)):
        y[i] = np.exp(x[i])


def numpy(x):
    return (np.exp(x),)


def kernel(empty, x):
    y = empty(x.shape, x.dtype)
    _exp_all(x, y)
    return (y,)


@numba.njit(error_model="numpy", fastmath={"contract"})
def _exp_all(x, y):
    for i in range(len(x)):
        y[i] = exp(x[i])


def task(n=1 << 15) -> Task:
    return Task(
        operation="exp",
        shape=f"{n}",
        flops=n,
        n_bytes=8.0 * n,
        inputs=(normal(n),),
        outputs=(blank(n),),
        loop=loop,
        numpy=numpy,
        kernel=kernel,
        elements=n,
    )
