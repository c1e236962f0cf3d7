"""The order of training data. Each window comes once an epoch; ids decide the order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npllm.data import sampler as sampler_module
from npllm.data.sampler import RowSampler, WindowSampler, batch, count_windows, evaluation_batches, next_ids
from npllm.errors import DataError

SEEDS = st.integers(0, 2**64 - 1)


@settings(deadline=None)
@given(block_size=st.integers(1, 40), spare=st.integers(0, 4000), seed=SEEDS, epoch=st.integers(0, 10**6))
def test_the_windows_of_an_epoch_lie_one_behind_the_other(block_size, spare, seed, epoch):
    n_tokens = block_size + 1 + spare
    sampler = WindowSampler(n_tokens, block_size, seed)
    count = sampler.windows_per_epoch
    starts = np.sort(sampler.positions(np.arange(epoch * count, (epoch + 1) * count)))
    assert (np.diff(starts) >= block_size).all()  # no token is a target twice
    assert starts[0] >= 0
    assert starts[-1] + block_size + 1 <= n_tokens  # inputs and the last target are inside the text
    left_out = n_tokens - 1 - count * block_size
    assert left_out <= n_tokens / 33 + 2 * block_size


def test_every_offset_occurs_in_an_epoch_and_no_window_keeps_its_own():
    sampler = WindowSampler(n_tokens=20_000, block_size=32, seed=3)
    count = sampler.windows_per_epoch
    epochs = [np.sort(sampler.positions(np.arange(e * count, (e + 1) * count))) for e in range(60)]
    for starts in epochs:
        assert len(np.unique(starts % 32)) == 32
    for window in (0, count // 2, count - 1):
        offsets = [int(starts[window]) - 32 * window for starts in epochs]
        assert len(set(offsets)) > 20


@pytest.mark.parametrize("period", [10, 16, 17, 32])
def test_lines_of_equal_length_are_seen_in_every_phase_alike(period):
    """If windows kept step with the lines, one epoch would show some phases and the
    next epoch others."""
    sampler = WindowSampler(n_tokens=17_000 * period, block_size=16, seed=0)
    starts = sampler.positions(np.arange(sampler.windows_per_epoch))
    counts = np.bincount(starts % period, minlength=period)
    assert counts.min() > 0.7 * counts.mean()
    assert counts.max() < 1.3 * counts.mean()


def test_positions_do_not_depend_on_the_order_of_asking():
    ids = np.arange(500)  # nine epochs, more than the sampler remembers
    expected = WindowSampler(1000, 16, seed=7).positions(ids)
    shuffled = np.random.default_rng(0).permutation(ids)
    other = WindowSampler(1000, 16, seed=7)
    np.testing.assert_array_equal(other.positions(shuffled), expected[shuffled])
    np.testing.assert_array_equal([other.positions([i])[0] for i in ids[::-1]], expected[::-1])


def test_skipping_a_range_moves_no_other_sample():
    ids = np.arange(300)
    whole = WindowSampler(1000, 16, seed=7).positions(ids)
    resumed = WindowSampler(1000, 16, seed=7)
    kept = np.r_[0:40, 100:300]
    parts = [resumed.positions(kept[i : i + 12]) for i in range(0, len(kept), 12)]
    np.testing.assert_array_equal(np.concatenate(parts), whole[kept])


def test_epochs_and_seeds_differ():
    first, second = (WindowSampler(1000, 16, seed=7).positions(np.arange(59) + 59 * epoch) for epoch in (0, 1))
    other_seed = WindowSampler(1000, 16, seed=8).positions(np.arange(59))
    high_half = WindowSampler(1000, 16, seed=7 + 2**32).positions(np.arange(59))
    for a, b in ((first, second), (first, other_seed), (first, high_half)):
        assert np.mean(np.argsort(a) == np.argsort(b)) < 0.2  # the order differs, not just the offsets


def test_frozen_positions():
    """The order of data is part of the run format: a change breaks unfinished runs."""
    ids = [0, 1, 2, 58, 59, 60, 1000, 10**9]
    assert WindowSampler(1000, 16, seed=7).positions(ids).tolist() == [688, 606, 705, 555, 879, 29, 201, 971]
    assert WindowSampler(1000, 16, seed=8).positions(ids).tolist() == [562, 829, 513, 329, 893, 811, 523, 265]


def test_two_epochs_are_remembered(monkeypatch):
    drawn = []

    def counting(n, **address):
        drawn.append(address["step"])
        return np.arange(n)

    monkeypatch.setattr(sampler_module, "random_permutation", counting)
    sampler = WindowSampler(1000, 16, seed=7)
    for _ in range(3):
        sampler.positions([58, 59])
    assert drawn == [0, 1]
    sampler.positions([200])
    sampler.positions([0])
    assert drawn == [0, 1, 3, 0]


def test_bad_sizes_and_ids_are_errors():
    with pytest.raises(DataError, match=r"has 64 tokens .* needs 65.*--model.block_size"):
        WindowSampler(64, 64, seed=0)
    assert WindowSampler(65, 64, seed=0).positions([0, 1, 5]).tolist() == [0, 0, 0]
    with pytest.raises(DataError, match="-3 is negative"):
        WindowSampler(65, 64, seed=0).positions([5, -3])


def test_batch_targets_are_the_next_tokens():
    tokens = np.arange(65436, 65536, dtype=np.uint16)  # above the range of int16
    x, y = batch(tokens, np.array([0, 90, 7]), block_size=9)
    assert x.shape == y.shape == (3, 9)
    assert x.dtype == y.dtype == np.int32
    assert x.flags.c_contiguous
    assert y.flags.c_contiguous
    np.testing.assert_array_equal(x[1], np.arange(65526, 65535))
    np.testing.assert_array_equal(y, x + 1)


@settings(deadline=None)
@given(n_tokens=st.integers(2, 300), block_size=st.integers(1, 50), rows=st.integers(1, 6))
def test_evaluation_covers_each_target_once(n_tokens, block_size, rows):
    tokens = np.random.default_rng(n_tokens).integers(0, 2**16, n_tokens).astype(np.uint16)
    batches = list(evaluation_batches(tokens, block_size, rows))
    assert all(x.shape == y.shape == (rows, block_size) for x, y in batches[:-1])
    assert 1 <= len(batches[-1][0]) <= rows
    assert {array.dtype for pair in batches for array in pair} == {np.dtype(np.int32)}
    x, y = (np.concatenate([pair[side].reshape(-1) for pair in batches]) for side in (0, 1))
    counted = y != -1
    np.testing.assert_array_equal(y[counted], tokens[1:])
    np.testing.assert_array_equal(x[counted], tokens[:-1])
    assert not counted[n_tokens - 1 :].any()  # padding comes last
    assert len(y) - (n_tokens - 1) < block_size
    assert x[~counted].sum() == 0


@given(n_tokens=st.integers(2, 60), block_size=st.integers(1, 9), rows=st.integers(1, 5), data=st.data())
def test_with_a_stride_each_target_counts_once_behind_many_tokens(n_tokens, block_size, rows, data):
    stride = data.draw(st.integers(1, block_size))
    tokens = np.arange(n_tokens).astype(np.uint16)
    batches = list(evaluation_batches(tokens, block_size, rows, stride))
    x, y = (np.concatenate([pair[side] for pair in batches]) for side in (0, 1))
    assert len(x) == count_windows(n_tokens, block_size, stride)
    assert {array.dtype for pair in batches for array in pair} == {np.dtype(np.int32)}
    window, column = np.nonzero(y != -1)
    targets = y[window, column]
    assert targets.tolist() == list(range(1, n_tokens))
    np.testing.assert_array_equal(targets, x[window, column] + 1)
    before = column + 1
    assert (before >= np.minimum(targets, block_size - stride + 1)).all()
    np.testing.assert_array_equal(x[window, 0] + column, x[window, column])  # the text itself stands before it


def test_evaluation_needs_a_target():
    with pytest.raises(DataError, match="has 1 tokens"):
        next(evaluation_batches(np.zeros(1, np.uint16), 8, 2))


@given(
    first=st.integers(0, 20),
    count=st.integers(1, 30),
    ranges=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 12)), max_size=5),
)
def test_the_next_ids_are_those_in_no_range(first, count, ranges):
    """Ranges come in any order. They may be empty, overlap or precede the first id."""
    skipped = [(start, start + length) for start, length in ranges]
    left = [i for i in range(first, 200) if not any(start <= i < end for start, end in skipped)]
    assert next_ids(first, count, skipped).tolist() == left[:count]


@given(n_rows=st.integers(1, 30), epoch=st.integers(0, 10**6), seed=SEEDS)
def test_every_epoch_has_each_row_once(n_rows, epoch, seed):
    rows = RowSampler(n_rows, seed).rows(np.arange(epoch * n_rows, (epoch + 1) * n_rows))
    assert sorted(rows.tolist()) == list(range(n_rows))


def test_the_order_of_rows_is_one_of_its_epoch_and_seed():
    """With a constant order, or that of the file, the same records would always be in
    one batch."""
    ids = np.arange(100)
    orders = [RowSampler(100, seed).rows(ids + 100 * epoch) for seed, epoch in ((7, 0), (7, 1), (8, 0))]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert np.mean(orders[a] == orders[b]) < 0.2
    assert all(np.mean(order == ids) < 0.2 for order in orders)
    expected = np.concatenate(orders[:2])
    np.testing.assert_array_equal(RowSampler(100, 7).rows(np.arange(200)[::-1]), expected[::-1])


def test_frozen_rows():
    """Like the order of windows, this order is part of the run format."""
    assert RowSampler(7, seed=4).rows(np.arange(14)).tolist() == [4, 5, 3, 0, 2, 6, 1, 2, 4, 3, 0, 1, 6, 5]
    assert RowSampler(7, seed=5).rows(np.arange(7)).tolist() == [5, 2, 1, 0, 6, 4, 3]
