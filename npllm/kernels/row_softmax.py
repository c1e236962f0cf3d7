"""The two passes of a softmax over one contiguous row: what the loss and the attention of generation share."""

from npllm.kernels.jit import inlined, summing
from npllm.kernels.vector_math import exp, larger


@inlined
def row_maximum(row):
    """The largest element of a row; NaN if any is."""
    maximum = row[0]
    for j in range(1, len(row)):
        maximum = larger(maximum, row[j])
    return maximum


@summing
def row_exponentials(row, maximum):
    """row = exp(row - maximum); returns the sum."""
    total = row.dtype.type(0.0)
    for j in range(len(row)):
        row[j] = exp(row[j] - maximum)
        total += row[j]
    return total
