"""Counter-based random numbers: published answers, the address of a word, statistics.

The draws of a statistic are fixed, so it passes always or never. The bounds are 5
standard deviations: wide enough for any good generator, and narrow enough for a wrong
one.
"""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npllm.reference.random import philox, random_normal, random_permutation, random_words

seeds = st.integers(0, 2**64 - 1)
words_32 = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
    ids=["zeros", "ones", "digits of pi"],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, expected):
    """Source: the file kat_vectors of the Random123 library, lines "philox4x32 10"."""
    counter, key, expected = ([int(word, 16) for word in text.split()] for text in (counter, key, expected))
    words = philox(np.array([counter]), tuple(key))
    assert words.dtype == np.uint32
    assert words.tolist() == [expected]


def test_each_counter_is_encrypted_by_itself():
    counters = np.random.default_rng(0).integers(0, 2**32, (5, 4))
    together = philox(counters, (1, 2))
    for counter, words in zip(counters, together, strict=True):
        assert philox(counter[None], (1, 2)).tolist() == [words.tolist()]


@given(seed=st.integers(2**32, 2**64 - 1), step=words_32, stream=words_32, element=st.integers(2**34, 2**60))
def test_a_word_has_the_documented_address(seed, step, stream, element):
    block = element // 4
    counter = np.array([[block % 2**32, block // 2**32, stream, step]])
    expected = philox(counter, (seed % 2**32, seed // 2**32))[0, element % 4]
    assert random_words(1, seed=seed, step=step, stream=stream, first=element).tolist() == [expected]


@given(first=st.integers(0, 2**35), cuts=st.lists(st.integers(0, 40), max_size=4), seed=seeds)
def test_words_do_not_depend_on_how_a_range_is_cut(first, cuts, seed):
    edges = [0, *sorted(cuts), 40]
    parts = [
        random_words(end - start, seed=seed, step=1, stream=2, first=first + start)
        for start, end in zip(edges, edges[1:], strict=False)
    ]
    assert np.concatenate(parts).tolist() == random_words(40, seed=seed, step=1, stream=2, first=first).tolist()


def test_seed_step_and_site_each_change_the_words():
    addresses = [{"seed": 0}, {"seed": 1}, {"seed": 2**32}, {"seed": 0, "step": 1}, {"seed": 0, "stream": 1}]
    streams = [random_words(1000, **address) for address in addresses]
    for i, a in enumerate(streams):
        for b in streams[:i]:
            assert np.count_nonzero(a == b) <= 1  # an element is equal by chance once in 2^32


def test_each_bit_of_the_words_is_fair():
    n = 20_000
    words = random_words(n, seed=3)
    ones = [np.count_nonzero(words >> np.uint32(bit) & np.uint32(1)) for bit in range(32)]
    np.testing.assert_allclose(ones, n / 2, atol=5 * np.sqrt(n / 4))


def test_normal_draws_have_the_moments_of_the_normal_distribution():
    n = 100_000
    x = random_normal(n, seed=0, step=1, stream=2)
    assert x.shape == (n,)
    assert x.dtype == np.float64
    sigma = 1 / np.sqrt(n)
    assert abs(x.mean()) < 5 * sigma
    assert abs((x**2).mean() - 1) < 5 * np.sqrt(2) * sigma
    assert abs((x**3).mean()) < 5 * np.sqrt(15) * sigma
    assert abs((x**4).mean() - 3) < 5 * np.sqrt(96) * sigma
    assert abs((x[:-1] * x[1:]).mean()) < 5 * sigma, "neighbours are correlated"
    assert abs((np.abs(x) < 1).mean() - 0.682689) < 5 * 0.4654 * sigma  # sqrt(0.6827 (1 - 0.6827)) = 0.4654


@given(n=st.integers(0, 300), seed=seeds)
def test_a_permutation_has_every_number_once(n, seed):
    order = random_permutation(n, seed=seed)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n))


def test_every_permutation_is_as_likely():
    n = 1200
    count = Counter(tuple(random_permutation(3, seed=5, step=step).tolist()) for step in range(n))
    assert len(count) == 6
    np.testing.assert_allclose(list(count.values()), n / 6, atol=5 * np.sqrt(n * 5 / 36))
