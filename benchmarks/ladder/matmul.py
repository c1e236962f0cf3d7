"""c = a @ b, which takes most of a Transformer's time.

The loop loads two numbers for each multiplication. The kernel keeps a tile of sums in
registers, so it uses every loaded number for a whole row or column of the tile.
"""

from numba import prange

from benchmarks.ladder.task import Task, blank, normal
from npllm.kernels.gemm import matmul

SMALL = (32, 32, 32)  # sizes for the loop in Python


def loop(a, b, c):
    for i in prange(a.shape[0]):
        for j in range(b.shape[1]):
            total = a.dtype.type(0.0)
            for k in range(a.shape[1]):
                total += a[i, k] * b[k, j]
            c[i, j] = total


def numpy(a, b):
    return (a @ b,)


def kernel(empty, a, b):
    return (matmul(a, b, empty((len(a), b.shape[1]), a.dtype)),)


def task(M=1024, K=512, N=512) -> Task:
    return Task(
        operation="matmul",
        shape=f"{M}×{K}×{N}",
        flops=2.0 * M * K * N,
        n_bytes=4.0 * (M * K + K * N + M * N),
        inputs=(normal(M, K), normal(K, N, seed=1)),
        outputs=(blank(M, N),),
        loop=loop,
        numpy=numpy,
        kernel=kernel,
        in_torch="matmul",
    )
