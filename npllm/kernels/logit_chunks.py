"""A chunk of rows at a time through the last layer: what its loss and its policy share.

The logits of a chunk are computed, turned into their gradient in place, used for dx and dweight, and overwritten by the
next chunk's. So the N·V numbers are never held.
"""

from npllm.kernels.bfloat16 import round_into
from npllm.kernels.gemm import matmul
from npllm.kernels.jit import serial
from npllm.reference.lm_head_loss import IGNORED

CHUNK_BYTES = 4 << 20  # of logits: they stay in the cache between the matmuls
MIN_CHUNK_ROWS = 128  # however large the vocabulary: every chunk reads the weight twice and adds to all of dweight

# A product of 4 rows or fewer takes another path, with other rounding (`gemm.few_rows`). With whole eights in every
# chunk none is that short where N is a multiple of 8, and then the result of a row does not depend on which rows, and
# how many, are around it.
ROW_MULTIPLE = 8


def chunks_of_logits(x, weight, empty):
    """Of each chunk the slice of the rows, the logits, and room for them in the weight's dtype, which is the logits
    themselves unless that is bfloat16. They are valid, and free to be changed, until the next chunk."""
    N, V = len(x), len(weight)
    size = chunk_size(N, V, x.itemsize)
    buffer = empty((size, V), x.dtype)
    factors = buffer if weight.dtype == x.dtype else empty((size, V), weight.dtype)
    for start in range(0, N, size):
        rows = slice(start, min(start + size, N))
        n = rows.stop - start
        yield rows, matmul(x[rows], weight.T, buffer[:n]), factors[:n]


def chunk_size(N, V, itemsize):
    """How many of N rows have their logits, V each, computed at once."""
    rows_in_cache = CHUNK_BYTES // (V * itemsize) // ROW_MULTIPLE * ROW_MULTIPLE
    return min(N, max(MIN_CHUNK_ROWS, rows_in_cache))


def multiply_gradient(dlogits, factors, x, weight, dweight, dx):
    """What a chunk adds to dweight, (V, C), and its dx, (n, C); dlogits, factors: (n, V), as in `chunks_of_logits`."""
    if factors.dtype != dlogits.dtype:
        round_into(factors, dlogits)
    matmul(factors.T, x, dweight, addend=dweight)
    matmul(factors, weight, dx)


def check_targets(targets, V):
    if not _in_range(targets, V):
        raise IndexError(f"targets holds a value outside 0 ... {V - 1} that is not -1: use this model's tokenizer.")


@serial
def _in_range(targets, V):
    outside = 0
    for n in range(len(targets)):
        outside += targets[n] >= V or (targets[n] < 0 and targets[n] != IGNORED)
    return outside == 0
