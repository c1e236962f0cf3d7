"""The function through which every matrix product of the kernels goes."""

import threading
from typing import Literal

import numpy as np
from numba import get_num_threads

from npllm.aligned import aligned_empty
from npllm.kernels.gelu import gelu_forward
from npllm.kernels.gemm.driver import multiply, scratch_elements
from npllm.kernels.gemm.few_rows import MOST_ROWS, multiply_few_rows

_engine = "npllm"
_kept = threading.local()  # scratch, for each caller's thread, dtype and number of threads


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
    nothing = _nothing(out.dtype)
    addend, activated = (nothing if array is None else array for array in (addend, activated))
    bias, threads = nothing[0] if bias is None else bias, get_num_threads()
    if len(a) <= MOST_ROWS and a.flags.c_contiguous:
        multiply_few_rows(a, *_flat(b), out, addend, bias, activated, threads)
    else:
        scratch = _scratch(out.dtype, threads)
        multiply(*_flat(a), *_flat(b), a.shape[1], out, addend, bias, activated, scratch)
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


def _nothing(dtype):
    """(1, 0)"""
    return _keep(("nothing", dtype), lambda: np.empty((1, 0), dtype))


def _scratch(dtype, threads):
    """(threads, scratch_elements), used again by every product: a thread's part is larger than many a matrix."""

    size = threads * scratch_elements(dtype.itemsize)
    return _keep((dtype, threads), lambda: aligned_empty(size * dtype.itemsize).view(dtype).reshape(threads, -1))


def _keep(key, make):
    kept = _kept.__dict__
    if key not in kept:
        kept[key] = make()
    return kept[key]
