"""Every matrix product of the kernels goes through these two functions: NumPy's, that is, those of its BLAS."""

import numpy as np


def matmul(a, b, out):
    """out = a @ b, of 2-D arrays, each of which may be the transpose of a C-contiguous one. Returns out."""
    return np.matmul(a, b, out=out)


def matmul_add(a, b, out, scratch):
    """out += a @ b. scratch: like out, overwritten, because NumPy cannot add a product in place."""
    out += np.matmul(a, b, out=scratch)
