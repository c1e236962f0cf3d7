"""Choosing a token from logits: known answers, frequencies, edges."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npllm.errors import ConfigError
from npllm.generation.sampling import Sampling, check_max_tokens, choose_token, penalised, probabilities
from npllm.reference.random import random_words

P = np.array([0.1, 0.4, 0.2, 0.3])
LOGITS = np.log(P) + 7.0  # a constant changes nothing


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"temperature": 1.0}, P),
        ({"temperature": 0.5}, P**2 / (P**2).sum()),
        ({"temperature": 2.0}, P**0.5 / (P**0.5).sum()),
        ({"temperature": 1e9}, [0.25, 0.25, 0.25, 0.25]),
        ({"temperature": 1.0, "top_k": 1}, [0, 1, 0, 0]),
        ({"temperature": 1.0, "top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"temperature": 1.0, "top_k": 99}, P),
        ({"temperature": 1.0, "top_p": 1e-9}, [0, 1, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.41}, [0, 4 / 7, 0, 3 / 7]),  # 0.4 alone does not reach 0.41
        ({"temperature": 1.0, "top_p": 0.69}, [0, 4 / 7, 0, 3 / 7]),
        ({"temperature": 1.0, "top_p": 0.71}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"temperature": 1.0, "top_p": 1.0}, P),
        ({"temperature": 0.5, "top_p": 0.54}, [0, 16 / 25, 0, 9 / 25]),  # of 16/30 and 9/30: temperature comes first
        ({"temperature": 1.0, "top_k": 2, "top_p": 0.5}, [0, 1, 0, 0]),  # 4/7 of what top_k leaves reaches 0.5
        ({"temperature": 1.0, "min_p": 0.24}, P),
        ({"temperature": 1.0, "min_p": 0.26}, [0, 4 / 9, 2 / 9, 3 / 9]),  # 0.1 is less than 0.26 of 0.4
        ({"temperature": 2.0, "min_p": 0.49}, P**0.5 / (P**0.5).sum()),  # 0.1 / 0.4, with the root of each
        ({"temperature": 1.0, "min_p": 1.0}, [0, 1, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.69, "min_p": 0.76}, [0, 1, 0, 0]),
    ],
    ids=str,
)
def test_known_probabilities(settings, expected):
    np.testing.assert_allclose(probabilities(LOGITS, **settings), expected, atol=1e-8)


@pytest.mark.parametrize("settings", [{"top_k": 2}, {"top_p": 0.5}])
def test_of_equally_likely_tokens_the_lowest_ids_are_kept(settings):
    np.testing.assert_allclose(probabilities(np.zeros(4), 1.0, **settings), [0.5, 0.5, 0, 0])


@given(
    st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=9),
    st.floats(min_value=1e-300, max_value=1e300),
    st.none() | st.integers(1, 12),
    st.floats(min_value=1e-12, max_value=1.0),
    st.floats(min_value=0, max_value=1.0),
    st.floats(min_value=0, max_value=1 - 2.0**-32),
)
def test_any_setting_gives_a_distribution_and_a_token_that_it_allows(logits, temperature, top_k, top_p, min_p, uniform):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p = probabilities(logits, temperature, top_k, top_p, min_p)
        token = choose_token(logits, uniform, temperature, top_k, top_p, min_p)
    assert p.sum() == pytest.approx(1.0)
    assert (p >= 0).all()
    assert np.count_nonzero(p) <= (top_k or len(p))
    assert p[token] > 0


def test_the_token_lies_at_its_place_of_the_cumulated_probabilities():
    uniforms = [0.0, 0.0999, 0.1001, 0.4999, 0.5001, 0.6999, 0.7001, 1 - 2.0**-32]
    assert [choose_token(LOGITS, uniform, 1.0) for uniform in uniforms] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_token_without_probability_is_never_chosen():
    """Not even at the edges, where the cumulated probabilities are equal."""
    logits = [-np.inf, 0.0, -np.inf, 0.0, -np.inf]
    chosen = {choose_token(logits, uniform, 1.0) for uniform in (0.0, 0.25, 0.5, 0.75, 1 - 2.0**-32)}
    assert chosen == {1, 3}


def test_tokens_of_the_text_become_less_likely_by_the_penalty():
    """Whatever the sign of their logits, and however often they occur."""
    logits = np.array([2.0, -2.0, 0.0, 1.0, -1.0], np.float32)
    assert penalised(logits, [0, 1, 2, 1, 1], 2.0).tolist() == [1.0, -4.0, 0.0, 1.0, -1.0]
    assert penalised(logits, [3, 4], 0.5).tolist() == [2.0, -2.0, 0.0, 2.0, -0.5]
    assert penalised(logits, [], 2.0).tolist() == logits.tolist() == [2.0, -2.0, 0.0, 1.0, -1.0]


@pytest.mark.parametrize("temperature", [0.0, 1e-310])
def test_no_temperature_is_the_likeliest_token(temperature):
    assert {choose_token(LOGITS, uniform, temperature) for uniform in (0.0, 0.5, 0.999)} == {1}
    assert choose_token([2.0, 5.0, 5.0], 0.0, temperature) == 1


@pytest.mark.parametrize(
    "settings", [{"temperature": 1.0}, {"temperature": 0.7, "top_k": 5}, {"temperature": 1.3, "top_p": 0.8}], ids=str
)
def test_frequencies_are_the_probabilities(settings):
    """Pearson's chi-square of 20,000 draws with the package's own random numbers."""
    logits = np.random.default_rng(0).standard_normal(8)
    uniforms = random_words(20_000, seed=3) / 2.0**32
    counts = np.bincount([choose_token(logits, uniform, **settings) for uniform in uniforms], minlength=8)
    expected = 20_000 * probabilities(logits, **settings)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    assert chi_square < 24.3  # the 0.999 quantile for 7 degrees of freedom; fewer have a lower one


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.01}, "top_p is 1.01"),
        ({"top_p": float("nan")}, "top_p is nan"),
        ({"min_p": -0.1}, "min_p is -0.1"),
        ({"min_p": 1.1}, "min_p is 1.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty is nan"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty is inf"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"sample": -1}, "sample is -1"),
    ],
)
def test_settings_out_of_range_are_named(change, complaint):
    good = {"temperature": 0.0, "top_k": None, "top_p": 1.0, "seed": 2**64 - 1}
    Sampling(**good)
    with pytest.raises(ConfigError, match=complaint):
        Sampling(**(good | change))


def test_a_negative_number_of_tokens_is_named():
    check_max_tokens(0)
    with pytest.raises(ConfigError, match="max_tokens is -1"):
        check_max_tokens(-1)
