"""What is true of the tokens of a text."""

import io
import keyword
import re
import tokenize

import numpy as np
import pytest

from npllm.pages.learnt import labels
from npllm.pages.learnt.embeddings import class_of, frequent_tokens, measure_embeddings, principal_components

SOURCE = b'''def f(a, b="x # y"):  # it's a "comment"
    """Docs with 'quotes' and a # sign
        over lines."""
    if a:
        return b'\\'' + "\\"(" + [1][0]

'''


def quoted_by_tokenize(source: str) -> list[bool]:
    """Whether each character is in a string or a comment, says Python's tokenizer."""
    starts = np.cumsum([0, *(len(line) for line in source.splitlines(keepends=True))])
    inside = [False] * len(source)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.STRING, tokenize.COMMENT):
            first, end = (starts[row - 1] + column for row, column in (token.start, token.end))
            inside[first:end] = [True] * (end - first)
    return inside


def test_strings_and_comments_are_those_of_python():
    text = SOURCE.decode()
    assert labels.inside_quotes(text.encode()).tolist() == quoted_by_tokenize(text)


@pytest.mark.parametrize("module", [keyword, re])
def test_strings_and_comments_of_the_standard_library(module):
    source = open(module.__file__).read()  # noqa: SIM115
    assert source.isascii()
    assert labels.inside_quotes(source.encode()).tolist() == quoted_by_tokenize(source)


def test_what_is_no_python():
    assert labels.is_python(b"x = 1\n")
    for source in (b"", b" \n", b"the cat sat.", b"x = (", b"\0", b"(" * 100_000, b"x = 1\n" * 200_000):
        assert not labels.is_python(source)


def test_the_indentation_is_that_of_the_line():
    levels = labels.indentation(b"a\n    bc\n\n\td\n" + b" " * 40 + b"e")
    assert levels.tolist() == [0, 0, *[-1] * 4, 1, 1, 1, -1, -1, 1, 1, *[-1] * 40, 4]


def test_a_bracket_belongs_to_the_innermost_open_one():
    assert labels.bracket_pairs([b"f(", b"a[", b"1", b"]", b"))", b"(x)"]) == [(3, 1), (4, 0)]
    assert labels.bracket_pairs([b"(", b"]", b")"]) == [(2, 0)]


@pytest.mark.parametrize(
    ("piece", "name"),
    [
        (b" the", "word after a space"),
        (b"ing", "word or its part"),
        (b"\n    ", "white space"),
        (b"12", "number"),
        (b"):\n", "signs"),
        (b"Error", "capitalised"),
        (b"MAX", "capitals"),
        (b"\xff", "signs"),
        (b"x1_", "mixed"),
    ],
)
def test_the_class_of_a_token(piece, name):
    assert class_of(piece) == name


def test_neighbours_of_planted_embeddings():
    """Words and numbers lie in two directions, so neighbours have one class."""
    rng = np.random.default_rng(0)
    pieces = [b"one", b"1", b"two", b"2", b"three", b"3", b"unused"]
    embedding = rng.normal(size=(7, 6)) * 0.01
    embedding[:6] += np.array([[0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]] * 3)
    tokens = frequent_tokens(np.array([1, 1, 1, 0, 0, 2, 3, 4, 5]), 7)
    assert tokens.tolist() == [1, 0, 2, 3, 4, 5]  # the unused one is left out
    found = measure_embeddings(embedding, tokens, pieces, n_shown=2)
    assert found.same_class == 1.0
    assert found.chance == pytest.approx(2 * 3 * 2 / (6 * 5))
    assert {other for other, _ in found.nearest[0].others[:2]} == {3, 5}
    assert found.explained[0] > 0.9


def test_the_map_is_that_of_the_covariance():
    embedding = np.random.default_rng(1).normal(size=(30, 5)) * [5, 3, 1, 1, 1]
    places, shares = principal_components(embedding)
    values = np.sort(np.linalg.eigvalsh(np.cov(embedding.T, bias=True)))[::-1]
    np.testing.assert_allclose(places.var(axis=0), values[:2])
    np.testing.assert_allclose(shares, values[:2] / values.sum())


def test_a_map_of_one_token_is_a_point():
    places, _ = principal_components(np.ones((1, 4)))
    assert places.tolist() == [[0.0, 0.0]]
