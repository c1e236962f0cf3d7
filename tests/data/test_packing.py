"""Packed rows hold each example once and whole. No target is in another example."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npllm.data.chat import Example
from npllm.data.packing import PackedRows, pack, pad
from npllm.errors import DataError

BLOCK_SIZE = 12


def example(tokens: list[int], is_target: list[int]) -> Example:
    return Example(np.array(tokens, np.int32), np.array(is_target, bool))


def unpack(rows: PackedRows) -> list[tuple]:
    """Return the tokens and the targets of each run of positions with the same start.

    The runs are in reading order, without padding. Also asserts that padding comes last
    in a row and that its positions see no others.
    """
    found = []
    for tokens, targets, starts in zip(*(array.tolist() for array in rows), strict=True):
        begin = 0
        while begin < len(starts):
            end = begin + starts[begin:].count(begin)
            assert starts[begin:end] == [begin] * (end - begin)
            if tokens[begin] == 0:  # the examples of these tests have tokens above 0
                assert (tokens[begin:], targets[begin:]) == ([0] * (len(tokens) - begin), [-1] * (len(tokens) - begin))
                assert starts[begin:] == list(range(begin, len(starts)))
                break
            found.append((tuple(tokens[begin:end]), tuple(targets[begin:end])))
            begin = end
    return found


def expected(one: Example) -> tuple:
    tokens, is_target = one.tokens.tolist(), one.is_target.tolist()
    return tuple(tokens[:-1]), tuple(t if on else -1 for t, on in zip(tokens[1:], is_target[1:], strict=True))


@st.composite
def examples(draw) -> list[Example]:
    lengths = draw(st.lists(st.integers(2, BLOCK_SIZE + 1), min_size=1, max_size=20))
    made = []
    for number, length in enumerate(lengths):
        is_target = draw(st.lists(st.booleans(), min_size=length - 1, max_size=length - 1).filter(any))
        made.append(example(list(range(100 * number + 1, 100 * number + 1 + length)), [False, *is_target]))
    return made


def test_a_row_by_hand():
    rows = pack([example([5, 6, 7, 8], [0, 0, 1, 1]), example([1, 2, 3], [0, 0, 1])], block_size=6)
    assert rows.tokens.tolist() == [[5, 6, 7, 1, 2, 0]]
    assert rows.targets.tolist() == [[-1, 7, 8, -1, 3, -1]]
    assert rows.starts.tolist() == [[0, 0, 0, 3, 3, 5]]
    assert [array.dtype for array in rows] == [np.int32] * 3


@given(examples())
def test_every_example_is_placed_once_and_whole_with_targets_of_its_own(given_examples):
    rows = pack(given_examples, BLOCK_SIZE)
    assert rows.tokens.shape == rows.targets.shape == rows.starts.shape == (len(rows.tokens), BLOCK_SIZE)
    assert sorted(unpack(rows)) == sorted(map(expected, given_examples))


@given(examples())
def test_rows_and_examples_are_in_order_and_rows_are_well_filled(given_examples):
    rows = pack(given_examples, BLOCK_SIZE)
    numbers = [
        [tokens[0] // 100 for tokens, _ in unpack(PackedRows(*(a[None] for a in row)))]
        for row in zip(*rows, strict=True)
    ]
    assert numbers == sorted(sorted(row) for row in numbers)
    used = sorted(np.count_nonzero(rows.tokens, axis=1))
    assert len(used) == 1 or used[0] + used[1] > BLOCK_SIZE  # else two rows would fit into one


@given(examples())
def test_the_rows_depend_on_the_examples_alone(given_examples):
    once, again = pack(given_examples, BLOCK_SIZE), pack(tuple(given_examples), BLOCK_SIZE)
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))


@given(examples())
def test_padded_rows_hold_one_example_each_in_order(given_examples):
    rows = pad(given_examples, BLOCK_SIZE)
    assert rows.tokens.shape == (len(given_examples), max(len(one.tokens) for one in given_examples) - 1)
    assert [array.dtype for array in rows] == [np.int32] * 3
    assert unpack(rows) == [expected(one) for one in given_examples]


def test_short_examples_fill_the_gaps_of_long_ones():
    """Next fit, or first fit in the order given, would take a third row."""
    sizes = [4, 6, 8, 6]
    made = [example(list(range(1, n + 2)), [0, *[1] * n]) for n in sizes]
    assert len(pack(made, BLOCK_SIZE).tokens) == 2


def test_an_example_goes_where_it_leaves_the_least_room():
    """5 fills the row that has 7, and 3 + 3 fill the row that has 6. In the emptier
    row, 5 would leave no room for the second 3."""
    made = [example(list(range(1, n + 2)), [0, *[1] * n]) for n in (7, 6, 5, 3, 3)]
    assert len(pack(made, BLOCK_SIZE).tokens) == 2


def test_many_examples_are_packed_tightly():
    lengths = np.random.default_rng(0).integers(2, 66, size=5000)
    rows = pack([example([1] * n, [0] + [1] * (n - 1)) for n in lengths], block_size=128)
    assert len(rows.tokens) == np.ceil(np.sum(lengths - 1) / 128)
    assert np.count_nonzero(rows.tokens) == np.count_nonzero(rows.targets == 1) == np.sum(lengths - 1)


@pytest.mark.parametrize("arrange", [pack, pad])
def test_examples_that_cannot_be_learnt_from(arrange):
    good = example([1] * (BLOCK_SIZE + 1), [0] + [1] * BLOCK_SIZE)
    assert arrange([good], BLOCK_SIZE).tokens.shape == (1, BLOCK_SIZE)
    long = example([1] * (BLOCK_SIZE + 2), [0] + [1] * (BLOCK_SIZE + 1))
    with pytest.raises(DataError, match=r"example 2 has 14 tokens, more than model.block_size \+ 1 = 13; shorten"):
        arrange([good, long], BLOCK_SIZE)
    for silent in (example([1, 2, 3], [0, 0, 0]), example([1, 2], [1, 0]), example([], [])):
        with pytest.raises(DataError, match="example 2 has no token to learn from; give it a response, or remove it"):
            arrange([good, silent], BLOCK_SIZE)
    with pytest.raises(DataError, match="there are no examples; give at least one"):
        arrange([], BLOCK_SIZE)
