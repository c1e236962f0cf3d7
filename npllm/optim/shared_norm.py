"""The norm of a gradient of which each rank has its own piece.

Nothing long is sent: a rank tells the others the sums of squares of the chunks that lie
in its piece, one number for 4096 elements. A chunk on both sides of a border between
two pieces is sent itself. All ranks then add the sums of all chunks from first to last,
which are the numbers and the order of a process that is alone.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from npllm.reference.gradient_norm import CHUNK, norm_of

SumsOfSquares = Callable[[np.ndarray], np.ndarray]  # (n,) -> (n_chunks,) float64


class Squares(NamedTuple):
    """What a rank tells about its piece of an array.

    start: the piece's place in the array. head, tail: its elements before the first
    whole chunk and after the last one; without a whole chunk all are in head. sums:
    (n_chunks,) float64, of the whole chunks between them.
    """

    start: int
    head: np.ndarray
    sums: np.ndarray
    tail: np.ndarray


def squares_of(flat: np.ndarray, own: slice, sums_of_squares: SumsOfSquares) -> Squares:
    """Return what the others need to know of one rank's piece of an array, (n,)."""
    first = min(own.stop, -(-own.start // CHUNK) * CHUNK)
    last = max(first, own.stop // CHUNK * CHUNK)
    sums = sums_of_squares(flat[first:last])
    return Squares(own.start, flat[own.start : first].copy(), sums, flat[last : own.stop].copy())


def shared_norm(parts: Sequence[Squares], sums_of_squares: SumsOfSquares) -> float:
    """Return the norm of the whole array. parts: of all ranks, in any order."""
    sums, chunk = [], np.empty(0, parts[0].head.dtype)  # chunk: the elements of one that is not complete
    for part in sorted(parts, key=lambda part: part.start):
        chunk = np.concatenate([chunk, part.head])
        if len(part.sums) or len(part.tail):
            sums += [sums_of_squares(chunk), part.sums]
            chunk = part.tail
    sums.append(sums_of_squares(chunk))
    return norm_of(np.concatenate(sums))
