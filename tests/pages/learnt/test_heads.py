"""Scores of attention heads on attention made by hand."""

import numpy as np
import pytest

from npllm.pages.learnt import heads
from npllm.pages.learnt.heads import HeadScores, ScoreSums

TOKENS = np.array([[3, 1, 3, 2, 1, 3]])
T = TOKENS.shape[1]
UNIFORM = np.tril(np.ones((T, T))) / np.arange(1, T + 1)[:, None]


def attention_of(*matrices) -> np.ndarray:
    """Attention of one layer and one text, with a head for each matrix."""
    return np.stack(matrices)[None, None]


def scores_of(attention: np.ndarray, wanted: np.ndarray) -> HeadScores:
    sums = ScoreSums(attention.shape[0], attention.shape[2])
    sums.add(attention, wanted)
    return sums.result()


def looking_at(keys) -> np.ndarray:
    """Attention whose query i looks at keys[i] only."""
    return np.eye(T)[keys]


EXACT = {
    "previous token": (heads.previous_token(TOKENS), [0, 0, 1, 2, 3, 4]),
    "first token": (heads.first_token(TOKENS), [0, 0, 0, 0, 0, 0]),
    "same token": (heads.same_token(TOKENS), [0, 1, 0, 3, 1, 2]),
    "matching bracket": (
        heads.matching_bracket(np.array([[0, 1, 2, 4, 3, 4]]), [b"f(", b"[", b"x", b")", b"]"]),
        [0, 1, 2, 1, 0, 5],
    ),
    "induction": (heads.induction(heads.repeated_rows(1, T, 9, seed=0)), [0, 1, 2, 1, 2, 3]),
}


@pytest.mark.parametrize("kind", heads.KINDS)
def test_a_head_that_looks_nowhere_else_gets_one_and_uniform_attention_gets_chance(kind):
    wanted, keys = EXACT[kind]
    exact, uniform = scores_of(attention_of(looking_at(keys), UNIFORM), wanted).scores[0]
    chance = scores_of(attention_of(UNIFORM), wanted).chance
    assert exact == 1.0
    assert uniform == pytest.approx(chance)
    assert chance < 1.0


def test_a_head_of_one_kind_does_not_count_as_another():
    first = attention_of(looking_at(EXACT["first token"][1]))
    assert scores_of(first, EXACT["induction"][0]).scores[0, 0] == 0.0
    assert scores_of(first, EXACT["previous token"][0]).scores[0, 0] == pytest.approx(1 / (T - 1))  # query 1 only


def test_chance_is_the_mean_over_the_queries_with_a_wanted_key():
    assert scores_of(attention_of(UNIFORM), heads.previous_token(TOKENS)).chance == pytest.approx(
        np.mean([1 / (i + 1) for i in range(1, T)])
    )
    same = scores_of(attention_of(UNIFORM), heads.same_token(TOKENS))
    assert (same.chance, same.queries) == (pytest.approx((1 / 3 + 1 / 5 + 2 / 6) / 3), 3)


def test_batches_add_up():
    rng = np.random.default_rng(0)
    attention, tokens = rng.random((2, 5, 3, T, T)), rng.integers(0, 3, (5, T))
    wanted, parts = heads.same_token(tokens), ScoreSums(2, 3)
    for part in (slice(0, 2), slice(2, 5)):
        parts.add(attention[:, part], wanted[part])
    whole = scores_of(attention, wanted)
    np.testing.assert_allclose(parts.result().scores, whole.scores)
    assert parts.result().queries == whole.queries


def test_without_queries_there_is_no_score():
    found = scores_of(attention_of(UNIFORM), np.zeros((1, T, T), bool))
    assert found.queries == 0
    assert np.isnan(found.scores).all()
    assert heads.name_of({"same token": found}, 0, 0) is None


def test_repeated_rows_repeat_once_and_depend_on_the_seed():
    rows = heads.repeated_rows(3, 11, 50, seed=1)
    assert rows.shape == (3, 10)
    np.testing.assert_array_equal(rows[:, :5], rows[:, 5:])
    assert len(np.unique(rows[:, :5])) > 5
    np.testing.assert_array_equal(rows, heads.repeated_rows(3, 11, 50, seed=1))
    assert (rows != heads.repeated_rows(3, 11, 50, seed=2)).any()


def test_a_head_is_named_after_the_kind_furthest_from_chance():
    scores = {
        "previous token": HeadScores(np.array([[0.5, 0.3, 0.1]]), 0.1, 9),
        "first token": HeadScores(np.array([[0.6, 0.3, 0.1]]), 0.5, 9),
    }
    assert [heads.name_of(scores, 0, head) for head in range(3)] == ["previous token", None, None]
