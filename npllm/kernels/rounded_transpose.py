"""The transpose of a matrix in bfloat16.

Generation reads the weights in this form; they are rounded once for each text.
"""

import numpy as np
from numba import prange

from npllm.kernels.bfloat16 import round_each
from npllm.kernels.chunks import chunk_count
from npllm.kernels.gemm.instructions import transpose_square
from npllm.kernels.gemm.tile import register_lanes
from npllm.kernels.jit import parallel, part

PIECE_COLUMNS = 16  # float32 in a cache line
PIECE_ROWS = 256  # of so many columns: they fit the L1 cache


def round_transposed(rounded, x):
    """rounded = the transpose of x in bfloat16.

    rounded: (N, K) uint16. x: (K, N) float32. Both C-contiguous.
    """
    _round_transposed(rounded, x.reshape(-1))


@parallel
def _round_transposed(rounded, x):
    for c in prange(chunk_count(len(rounded), PIECE_COLUMNS)):
        first, block = np.int64(c) * PIECE_COLUMNS, np.empty(PIECE_COLUMNS * PIECE_ROWS, x.dtype)
        N, K = rounded.shape
        count = min(PIECE_COLUMNS, N - first)
        for k in range(0, K, PIECE_ROWS):
            depth = min(PIECE_ROWS, K - k)
            _transpose(x, k * N + first, N, depth, count, block)
            for j in range(count):
                round_each(block[j * PIECE_ROWS : j * PIECE_ROWS + depth], rounded[first + j, k : k + depth])


@part
def _transpose(x, start, step, depth, count, block):
    """block = the transpose of a part of x.

    The part has `depth` rows of `count` elements and starts at x[start]. x: flat. step:
    the elements from row to row of x. block: (PIECE_COLUMNS, PIECE_ROWS), flat.
    """
    lanes = register_lanes(x.itemsize)
    whole = depth - depth % lanes if count == PIECE_COLUMNS else 0
    for k in range(0, whole, lanes):
        for j in range(0, PIECE_COLUMNS, lanes):
            transpose_square(x, start + k * step + j, step, block, j * PIECE_ROWS + k, PIECE_ROWS)
    for k in range(whole, depth):
        for j in range(count):
            block[j * PIECE_ROWS + k] = x[start + k * step + j]
