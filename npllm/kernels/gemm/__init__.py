"""Matrix products: `driver` cuts them into blocks, `micro_kernel` computes them.

`python -m benchmarks gemm` measures them.
"""

from npllm.kernels.gemm.matmul import matmul, set_gemm

__all__ = ["matmul", "set_gemm"]
