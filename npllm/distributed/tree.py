"""The binary tree over which the parts of a batch are added.

The parts, its micro-batches, are the leaves 0, ..., n - 1. An inner node is the sum of
its two halves:

    node(lo, hi) = node(lo, mid) + node(mid, hi)
    mid - lo     = the largest power of two below hi - lo

So the order of all additions, and with it every bit of the sum, follows from n alone.
Ranks split the leaves where the tree does: each rank adds a whole subtree, and the
sums of the ranks are added over the upper levels of the same tree. Any number of ranks
that is a power of two then gives the same bits.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def larger_half(n: int) -> int:
    """Return the number of leaves in the left half of n > 1: a power of two."""
    return 1 << ((n - 1).bit_length() - 1)


def leaves_of(rank: int, size: int, n: int) -> range:
    """Return the leaves of a tree of n that one of `size` ranks adds.

    size: a power of two. Where there are more ranks than leaves, some have none.
    """
    lo, hi = 0, n
    while size > 1:
        size //= 2
        mid = lo + larger_half(hi - lo) if hi - lo > 1 else hi
        if rank < size:
            hi = mid
        else:
            lo, rank = mid, rank - size
    return range(lo, hi)


def finished_by(leaf: int, n: int) -> int:
    """Return how many nodes of a tree of n leaves are complete when `leaf` is, and were
    not before. Their left halves wait, the smallest last."""
    if leaf == n - 1:
        return leaf.bit_count()
    return (leaf ^ (leaf + 1)).bit_length() - 1


def most_waiting(n: int) -> int:
    """Return how many sums wait at most while the leaves of a tree of n are added in
    their order."""
    return max(0, n.bit_length() - 1)


def fold(values: Sequence[T | None], add: Callable[[T, T], T]) -> T | None:
    """Return the sum of one value for each rank, over the upper levels of the tree.

    None = the rank has no leaf. Nothing is added for it: not zero either, since
    -0.0 + 0.0 is 0.0.
    """
    while len(values) > 1:
        pairs = zip(values[::2], values[1::2], strict=True)
        values = [left if right is None else add(left, right) for left, right in pairs]
    return values[0]
