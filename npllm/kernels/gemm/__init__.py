"""Matrix products. `driver` says how they are cut, `micro_kernel` how they are computed.

Measured by `python -m benchmarks gemm`.
"""

from npllm.kernels.gemm.matmul import matmul, set_gemm

__all__ = ["matmul", "set_gemm"]
