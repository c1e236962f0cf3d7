"""The norm of the whole gradient.

See `npllm.reference.gradient_norm` for the mathematics. The threads compute the
reference's partial sums, one per chunk, in parallel.
"""

import numpy as np
from numba import prange

from npllm.kernels.jit import parallel, summing
from npllm.reference.gradient_norm import CHUNK


def gradient_norm(grads):
    """Return the Euclidean norm of a flat array of any float dtype, as a float."""
    return float(np.sqrt(_sum_of_squares(grads, np.empty(-(-len(grads) // CHUNK)))))


@parallel
def _sum_of_squares(grads, partials):
    for c in prange(len(partials)):
        partials[c] = _chunk_sum_of_squares(grads[c * CHUNK : (c + 1) * CHUNK])
    total = 0.0
    for c in range(len(partials)):
        total += partials[c]
    return total


@summing
def _chunk_sum_of_squares(chunk):
    total = 0.0
    for i in range(len(chunk)):
        value = np.float64(chunk[i])
        total += value * value
    return total
