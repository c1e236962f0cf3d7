"""The rows of the bigram table: which pairs have the same one."""

import numpy as np
import pytest

from npllm.reference.bigrams import bigram_rows

TOKENS = np.array([[5, 3, 5, 3, 4], [3, 5, 3, 5, 3]], np.int32)


def test_a_row_belongs_to_a_pair_in_its_order():
    rows = bigram_rows(TOKENS, 1 << 20)
    assert rows.dtype == np.int32
    assert rows[0, 1] == rows[0, 3] == rows[1, 2] == rows[1, 4], "(5, 3)"
    assert rows[0, 2] == rows[1, 1] == rows[1, 3], "(3, 5)"
    different = [rows[0, 0], rows[1, 0], rows[0, 1], rows[0, 2], rows[0, 4]]
    assert len(set(different)) == 5


def test_the_first_token_has_the_one_before_the_row_or_none():
    whole = bigram_rows(TOKENS, 1 << 20)
    np.testing.assert_array_equal(bigram_rows(TOKENS[:, 2:], 1 << 20, before=TOKENS[:, 1]), whole[:, 2:])
    alone = bigram_rows(TOKENS[:, 2:], 1 << 20)
    assert (alone[:, 0] != whole[:, 2]).all()
    np.testing.assert_array_equal(alone[:, 1:], whole[:, 3:])


def test_a_document_that_starts_in_a_row_is_read_like_one_alone():
    is_first = np.zeros(TOKENS.shape, bool)
    is_first[:, 2] = True
    rows = bigram_rows(TOKENS, 1 << 20, is_first=is_first)
    np.testing.assert_array_equal(rows[:, :2], bigram_rows(TOKENS[:, :2], 1 << 20))
    np.testing.assert_array_equal(rows[:, 2:], bigram_rows(TOKENS[:, 2:], 1 << 20))


@pytest.mark.parametrize("n_rows", [1, 97, 8192, 10_000])
def test_pairs_spread_evenly_over_the_rows(n_rows):
    """All pairs of 300 tokens: no row has three times its share (a hash that adds the
    two tokens has 400 rows in use). Neighbouring tokens are in rows far apart."""
    first, second = np.divmod(np.arange(90_000), 300)
    rows = bigram_rows(np.stack([first, second], axis=1), n_rows)[:, 1]
    counts = np.bincount(rows, minlength=n_rows)
    assert len(counts) == n_rows
    mean = 90_000 / n_rows
    assert counts.max() <= mean + 6 * np.sqrt(mean)


def test_more_tokens_move_no_row():
    """The table of a model that gets special tokens keeps its meaning: the row depends
    on the pair alone, here as it was computed by hand with Python's integers."""
    product = ((5 + 1) * 2**32 + 3) * 0x9E3779B97F4A7C15 % 2**64
    assert bigram_rows(TOKENS, 8192)[0, 1] == product // 2**32 % 8192
    first = 3 * 0x9E3779B97F4A7C15 % 2**64
    assert bigram_rows(TOKENS, 8192)[1, 0] == first // 2**32 % 8192
