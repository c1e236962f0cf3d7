"""The softmax over one contiguous row, as two passes.

The loss, the policy and cached attention use it.
"""

from npllm.kernels.jit import inlined, summing
from npllm.kernels.vector_math import exp, larger


@inlined
def row_maximum(row):
    """Return the largest element of a row, or NaN if any element is NaN."""
    maximum = row[0]
    for j in range(1, len(row)):
        maximum = larger(maximum, row[j])
    return maximum


@summing
def row_exponentials(row, maximum):
    """row = exp(row - maximum), in place; return its sum."""
    total = row.dtype.type(0.0)
    for j in range(len(row)):
        row[j] = exp(row[j] - maximum)
        total += row[j]
    return total
