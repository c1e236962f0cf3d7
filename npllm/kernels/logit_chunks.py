"""A pass through the last layer in chunks of rows, for the loss and the policy.

The logits of a chunk are computed, replaced by their gradient, used for dx and dweight,
and overwritten by the next chunk. So the N·V logits are never in memory at once.
"""

from npllm.kernels.bfloat16 import round_into
from npllm.kernels.gemm import matmul
from npllm.kernels.jit import serial
from npllm.reference.lm_head_loss import IGNORED

CHUNK_BYTES = 4 << 20  # of logits: they stay in the cache between the matmuls
MIN_CHUNK_ROWS = 128  # each chunk reads the whole weight twice and adds to all of dweight

# A product of 4 rows or fewer uses another kernel, with other rounding
# (`gemm.few_rows`). Chunks are therefore multiples of 8 rows: where N is a multiple of
# 8, no chunk is that short, and the result of a row does not depend on the other rows
# of the batch.
ROW_MULTIPLE = 8


def chunks_of_logits(x, weight, empty):
    """Yield for each chunk the slice of its rows, and logits and factors, (n, V).

    factors: memory in the weight's dtype for the gradient of the logits; it is the
    array of the logits itself unless the weight is bfloat16. Both arrays are valid, and
    may be changed, until the next chunk.
    """
    N, V = len(x), len(weight)
    size = chunk_size(N, V, x.itemsize)
    buffer = empty((size, V), x.dtype)
    factors = buffer if weight.dtype == x.dtype else empty((size, V), weight.dtype)
    for start in range(0, N, size):
        rows = slice(start, min(start + size, N))
        n = rows.stop - start
        yield rows, matmul(x[rows], weight.T, buffer[:n]), factors[:n]


def chunk_size(N, V, itemsize):
    """Return how many of N rows, with V logits each, make a chunk."""
    rows_in_cache = CHUNK_BYTES // (V * itemsize) // ROW_MULTIPLE * ROW_MULTIPLE
    return min(N, max(MIN_CHUNK_ROWS, rows_in_cache))


def multiply_gradient(dlogits, factors, x, weight, dweight, dx):
    """Add a chunk to dweight, (V, C), and fill its dx, (n, C).

    dlogits, factors: (n, V), as in `chunks_of_logits`.
    """
    if factors.dtype != dlogits.dtype:
        round_into(factors, dlogits)
    matmul(factors.T, x, dweight, addend=dweight)
    matmul(factors, weight, dx)


def check_targets(targets, V):
    if not _in_range(targets, V):
        raise IndexError(f"targets holds a value outside 0 ... {V - 1} that is not -1; use this model's tokenizer.")


@serial
def _in_range(targets, V):
    outside = 0
    for n in range(len(targets)):
        outside += targets[n] >= V or (targets[n] < 0 and targets[n] != IGNORED)
    return outside == 0
