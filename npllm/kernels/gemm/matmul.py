"""The function through which every matrix product of the kernels goes."""

import threading
from math import prod
from typing import Literal

import numpy as np
from numba import get_num_threads

from npllm.aligned import aligned_empty
from npllm.kernels.gelu import gelu_forward
from npllm.kernels.gemm.driver import multiply, scratch_elements
from npllm.kernels.gemm.few_rows import MOST_ROWS, PARTS, multiply_dots, multiply_rows

_engine = "npllm"
_kept = threading.local()  # scratch of each caller's thread, by dtype


def set_gemm(engine: Literal["npllm", "blas"]) -> None:
    """Choose who multiplies matrices: this package or, to compare, NumPy's BLAS, which may give other bits."""
    if engine not in ("npllm", "blas"):
        raise ValueError(f"The engine {engine!r} is neither 'npllm' nor 'blas'.")
    global _engine
    _engine = engine


def matmul(a, b, out, *, addend=None, bias=None, activated=None):
    """out = a @ b + addend + bias; then activated = gelu(out). Returns out.

    a: (M, K), b: (K, N): C-contiguous or transposed. out, addend, activated: (M, N). bias: (N,). The addend may be
    `out`. Whatever is not None is of one float dtype, and C-contiguous but for a and b.
    """
    if _engine == "blas":
        return _blas(a, b, out, addend, bias, activated)
    nothing = np.empty((1, 0), out.dtype)
    addend, activated = (nothing if array is None else array for array in (addend, activated))
    bias, threads = nothing[0] if bias is None else bias, get_num_threads()
    if len(a) > MOST_ROWS or not a.flags.c_contiguous:
        scratch = _scratch((threads, scratch_elements(out.itemsize)), out.dtype)
        multiply(*_flat(a), *_flat(b), a.shape[1], out, addend, bias, activated, scratch)
    elif b.flags.c_contiguous:
        multiply_rows(a, b, out, addend, bias, activated, _scratch((PARTS, *out.shape), out.dtype))
    else:
        multiply_dots(a, b.T, out, addend, bias, activated, threads)
    return out


def _blas(a, b, out, addend, bias, activated):
    np.copyto(out, sum((each for each in (addend, bias) if each is not None), start=a @ b))
    if activated is not None:
        np.copyto(activated, gelu_forward(out))
    return out


def _flat(matrix) -> tuple[np.ndarray, int, int]:
    """The elements in the order of memory, and how many it is to the next row and column."""
    if matrix.flags.c_contiguous:
        return matrix.reshape(-1), matrix.shape[1], 1
    return matrix.T.reshape(-1), 1, matrix.shape[0]


def _scratch(shape, dtype):
    """Memory that the next product uses again: making it anew would take longer than many a product."""
    kept, size = _kept.__dict__, prod(shape)
    if dtype not in kept or kept[dtype].size < size:
        kept[dtype] = aligned_empty(size * dtype.itemsize).view(dtype)
    return kept[dtype][:size].reshape(shape)
