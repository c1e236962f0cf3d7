"""The norm of the whole gradient.

See `npllm.reference.gradient_norm` for the mathematics. The threads compute the
reference's partial sums, one per chunk, in parallel.
"""

import numpy as np
from numba import prange

from npllm.kernels.jit import parallel, summing
from npllm.reference.gradient_norm import CHUNK, norm_of


def gradient_norm(grads):
    """Return the Euclidean norm of a flat array of any float dtype, as a float."""
    return norm_of(sums_of_squares(grads))


def sums_of_squares(grads):
    """Return the sum of the squares of each chunk, (n_chunks,) float64."""
    sums = np.empty(-(-len(grads) // CHUNK))
    _sums_of_squares(grads, sums)
    return sums


@parallel
def _sums_of_squares(grads, sums):
    for c in prange(len(sums)):
        sums[c] = _chunk_sum_of_squares(grads[c * CHUNK : (c + 1) * CHUNK])


@summing
def _chunk_sum_of_squares(chunk):
    total = 0.0
    for i in range(len(chunk)):
        value = np.float64(chunk[i])
        total += value * value
    return total
