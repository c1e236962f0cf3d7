"""Linear layer. See `npllm.reference.linear` for the mathematics.

The forward adds bias and residual, and applies GELU, in the epilogue of the matrix
product. The backward computes the derivative of GELU and the sum for the bias in one
pass.
"""

import numpy as np
from numba import prange

from npllm.kernels.bfloat16 import rounded
from npllm.kernels.chunks import CHUNK_ROWS, add_in_order, chunk_bounds, zeros
from npllm.kernels.gelu import gelu_derivative
from npllm.kernels.gemm import matmul
from npllm.kernels.jit import parallel, part


def linear_forward(x, weight, bias=None, *, epilogue="none", residual=None, empty=np.empty, empty_y=None):
    """Multiply rows by a matrix.

    x: (N, in). weight: (in, out). bias: (out,) or None. epilogue: "none", "gelu" or
    "residual"; the last one adds `residual`, (N, out). All arrays have one float dtype,
    but with float32 the weight may be bfloat16 (uint16). The factors of every product,
    forward and backward, are then rounded to bfloat16. empty_y: allocates y with
    "gelu", because the backward needs z only; None = `empty`.

    Returns y, (N, out), and, with "gelu", z, (N, out), else None.
    """
    shape = len(x), weight.shape[1]
    y = (empty_y or empty)(shape, x.dtype) if epilogue == "gelu" else None
    residual = residual if epilogue == "residual" else None
    z = matmul(x, weight, empty(shape, x.dtype), addend=residual, bias=bias, activated=y)
    return (z, None) if y is None else (y, z)


def linear_backward(dy, x, weight, dweight, dbias=None, *, pre_activation=None, empty=np.empty):
    """Return dx, (N, in), the gradient of `linear_forward`.

    dy: (N, out). x: (N, in), as given to the forward. pre_activation: z, (N, out),
    where the epilogue was "gelu". Adds to dweight, (in, out), and to dbias, (out,),
    unless it is None.
    """
    dz, z = dy, pre_activation
    if z is not None or dbias is not None:
        dz = dy if z is None else empty(dy.shape, dy.dtype)
        dbias_parts = empty((-(-len(dy) // CHUNK_ROWS), dy.shape[1]), dy.dtype)
        dbias = zeros(dy.shape[1:], dy.dtype, empty) if dbias is None else dbias
        _epilogue_backward(dy, z, dz, dbias_parts, dbias)
    if weight.dtype == np.uint16:
        dz = rounded(dz, empty=empty)  # once for both products
    matmul(x.T, dz, dweight, addend=dweight)
    return matmul(dz, weight.T, empty(x.shape, dy.dtype))


@parallel
def _epilogue_backward(dy, z, dz, dbias_parts, dbias):
    for c in prange(len(dbias_parts)):
        start, stop = chunk_bounds(c, CHUNK_ROWS, len(dy))
        _epilogue_backward_rows(start, stop, dy, z, dz, dbias_parts[c])
    add_in_order(dbias_parts, dbias)


@part
def _epilogue_backward_rows(start, stop, dy, z, dz, dbias_part):
    """dz = dy gelu'(z), and dbias_part = the sum of dz over the rows.

    Without GELU z is None, and dz is dy itself.
    """
    dbias_part[:] = dbias_part.dtype.type(0.0)
    for n in range(start, stop):
        for j in range(dy.shape[1]):
            dz_j = dy[n, j]
            if z is not None:
                dz_j *= gelu_derivative(z[n, j])
                dz[n, j] = dz_j
            dbias_part[j] += dz_j
