"""The function that computes every matrix product of the kernels."""

import threading
from math import prod
from typing import Literal

import numpy as np
from numba import get_num_threads

from npllm.kernels.bfloat16 import rounded, widen
from npllm.kernels.gelu import gelu_forward
from npllm.kernels.gemm.driver import multiply, panel_elements, tile_elements
from npllm.kernels.gemm.few_rows import MOST_ROWS, PARTS, multiply_dots, multiply_rows
from npllm.memory.aligned import aligned_empty

_engine = "npllm"
_kept = threading.local()  # scratch of each calling thread, by name and dtype


def set_gemm(engine: Literal["npllm", "blas"]) -> None:
    """Choose what multiplies matrices: "npllm", this package, or "blas", NumPy's BLAS.

    BLAS serves comparisons and may give other bits. Raises ValueError for another name.
    """
    if engine not in ("npllm", "blas"):
        raise ValueError(f"The engine {engine!r} does not exist; choose 'npllm' or 'blas'.")
    global _engine
    _engine = engine


def matmul(a, b, out, *, addend=None, bias=None, activated=None):
    """Compute out = a @ b + addend + bias, then activated = gelu(out), and return out.

    a: (M, K), b: (K, N), each C-contiguous or the transpose of such a matrix. out,
    addend, activated: (M, N). bias: (N,). addend, bias and activated may be None, and
    addend may be `out`. All but a and b are C-contiguous, and all have one float dtype.
    With float32, a and b may be bfloat16 (uint16); if only one of them is, the other is
    rounded.
    """
    if np.uint16 in (a.dtype, b.dtype):
        a, b = (_in_bfloat16(name, factor) for name, factor in (("a", a), ("b", b)))
    if _engine == "blas":
        return _blas(a, b, out, addend, bias, activated)
    nothing, threads = _scratch("nothing", (1, 0), out.dtype), get_num_threads()
    addend, activated = (nothing if array is None else array for array in (addend, activated))
    epilogue = addend, nothing[0] if bias is None else bias, activated
    few_rows, (K, N) = len(a) <= MOST_ROWS and a.flags.c_contiguous, b.shape
    if few_rows and b.flags.c_contiguous and a.dtype == out.dtype:
        multiply_rows(a, b, out, *epilogue, _scratch("sums", (PARTS, len(a), N), out.dtype))
    elif few_rows and b.T.flags.c_contiguous and a.dtype == out.dtype:
        multiply_dots(a, b.T, out, *epilogue, threads)
    elif few_rows and b.T.flags.c_contiguous and K % 2 == 0:
        multiply_dots(a.view(np.uint32), b.T.view(np.uint32), out, *epilogue, threads)
    else:
        multiply(*_flat(a), *_flat(b), K, out, *epilogue, *panels_and_tiles(threads, a.dtype, out.dtype))
    return out


def panels_and_tiles(threads, factors, out) -> tuple[np.ndarray, np.ndarray]:
    """Return the scratch of `driver` for products of two dtypes, a row a thread."""
    panels = _scratch("panels", (threads, panel_elements(factors.itemsize)), factors)
    return panels, _scratch("tiles", (threads, tile_elements(out.itemsize)), out)


def _blas(a, b, out, addend, bias, activated):
    product = widen(a) @ widen(b)
    np.copyto(out, sum((each for each in (addend, bias) if each is not None), start=product))
    if activated is not None:
        np.copyto(activated, gelu_forward(out))
    return out


def _flat(matrix) -> tuple[np.ndarray, int, int]:
    """Return the elements in the order of memory, and the row and column steps."""
    if matrix.flags.c_contiguous:
        return matrix.reshape(-1), matrix.shape[1], 1
    return matrix.T.reshape(-1), 1, matrix.shape[0]


def _in_bfloat16(name, matrix):
    if matrix.dtype == np.uint16:
        return matrix
    return rounded(matrix, empty=lambda shape, dtype: _scratch(name, shape, np.dtype(dtype)))


def _scratch(name, shape, dtype):
    """Return memory that the next product of this thread uses again.

    Allocating it anew would take longer than many a product.
    """
    kept, key, size = _kept.__dict__, (name, dtype), prod(shape)
    if key not in kept or kept[key].size < size:
        kept[key] = aligned_empty(size * dtype.itemsize).view(dtype)
    return kept[key][:size].reshape(shape)
