"""Several examples in one row of the batch, each computed as if it were alone.

Fine-tuning examples have very different lengths. With one example per row most of a
batch would be padding, so short examples share a row. They must not see each other:
`starts` holds the position at which the example of each position starts. Attention is
cut off there, and positions count from there. For two examples, a b c d and p q r,
whose targets are c, d and r, with T = 6:

    tokens    a  b  c  p  q  0
    targets  -1  c  d -1  r -1        the example's next token, where it is a target
    starts    0  0  0  3  3  5        a padding position sees only itself

An example of n tokens takes n - 1 positions: its last token is predicted, but nothing
is predicted from it.

The examples are placed by best fit decreasing: the longest first, each into the fullest
row that has room. The number of rows is at most 11/9 of the smallest possible number (+
4). Source: Johnson, "Near-optimal bin packing algorithms", 1973.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from npllm.data.chat import Example
from npllm.errors import DataError
from npllm.reference.lm_head_loss import IGNORED


class PackedRows(NamedTuple):
    """R rows of T positions; each array is (R, T) int32.

    tokens: the inputs. targets: the next token, or -1. starts: where the position's
    example starts.
    """

    tokens: np.ndarray
    targets: np.ndarray
    starts: np.ndarray


def pack(examples: Sequence[Example], block_size: int) -> PackedRows:
    """Return rows of T = block_size positions that hold each example once, whole.

    Rows are in the order of the first example of each, and the examples of a row keep
    their order. Raises DataError for an example that has more than block_size + 1
    tokens or no target, and when there are no examples.
    """
    _check(examples, block_size)
    return _fill(examples, _place([_n_positions(example) for example in examples], block_size), block_size)


def pad(examples: Sequence[Example], block_size: int) -> PackedRows:
    """Return rows of the same form with one example per row, in order.

    T is the number of positions of the longest example. Raises DataError as pack does.
    """
    _check(examples, block_size)
    return _fill(examples, [[number] for number in range(len(examples))], max(map(_n_positions, examples)))


def _n_positions(example: Example) -> int:
    return len(example.tokens) - 1


def _check(examples: Sequence[Example], block_size: int) -> None:
    if not examples:
        raise DataError("there are no examples; give at least one.")
    for number, example in enumerate(examples, start=1):
        if not example.is_target[1:].any():  # nothing predicts the first token
            raise DataError(f"example {number} has no token to learn from; give it a response, or remove it.")
        if _n_positions(example) > block_size:
            raise DataError(
                f"example {number} has {len(example.tokens)} tokens, more than model.block_size + 1 = "
                f"{block_size + 1}; shorten or remove it, or use a model with a larger model.block_size."
            )


def _place(sizes: list[int], capacity: int) -> list[list[int]]:
    """The numbers of the examples in each row."""
    rows: list[list[int]] = []
    rows_with_room: dict[int, list[list[int]]] = {}  # free positions -> rows
    rooms: list[int] = []  # the keys of rows_with_room, sorted: at most `capacity` of them
    for number in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
        place = bisect_left(rooms, sizes[number])
        if place < len(rooms):
            room = rooms[place]
            row = rows_with_room[room].pop()
            if not rows_with_room[room]:
                del rows_with_room[room], rooms[place]
        else:
            room, row = capacity, []
            rows.append(row)
        row.append(number)
        left = room - sizes[number]
        if left not in rows_with_room:
            rows_with_room[left] = []
            insort(rooms, left)
        rows_with_room[left].append(row)
    return sorted(sorted(row) for row in rows)


def _fill(examples: Sequence[Example], rows: list[list[int]], width: int) -> PackedRows:
    tokens = np.zeros((len(rows), width), np.int32)
    targets = np.full((len(rows), width), IGNORED, np.int32)
    starts = np.tile(np.arange(width, dtype=np.int32), (len(rows), 1))
    for r, row in enumerate(rows):
        begin = 0
        for number in row:
            ids, is_target = examples[number]
            end = begin + len(ids) - 1
            tokens[r, begin:end] = ids[:-1]
            targets[r, begin:end] = np.where(is_target[1:], ids[1:], IGNORED)
            starts[r, begin:end] = begin
            begin = end
    return PackedRows(tokens, targets, starts)
