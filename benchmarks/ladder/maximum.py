"""The largest element of a row, on one core: the first pass of a softmax.

The loop compares, and the compiler does not vectorise comparisons because of NaN. The
kernel uses LLVM's maximum, which is one instruction for all lanes and keeps NaN.
"""

import numba

from benchmarks.ladder.task import Task, blank, normal
from npllm.kernels.row_softmax import row_maximum

SMALL = (2000,)  # sizes for the loop in Python


def loop(x, largest):
    largest[0] = x[0]
    for i in range(len(x)):
        largest[0] = max(largest[0], x[i])


def numpy(x):
    return (x.max(keepdims=True),)


def kernel(empty, x):
    largest = empty(1, x.dtype)
    largest[0] = _maximum(x)
    return (largest,)


@numba.njit(error_model="numpy", fastmath={"contract"})
def _maximum(x):
    return row_maximum(x)


def task(n=1 << 15) -> Task:
    return Task(
        operation="row maximum",
        shape=f"{n}",
        flops=n,
        n_bytes=4.0 * n,
        inputs=(normal(n),),
        outputs=(blank(1),),
        loop=loop,
        numpy=numpy,
        kernel=kernel,
        elements=n,
    )
