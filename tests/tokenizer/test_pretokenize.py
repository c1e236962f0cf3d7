import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npllm.errors import DataError
from npllm.tokenizer.pretokenize import GPT2_SPLIT, SPLITS, SpecialSplitter, Splitter, refuse_lone_surrogates


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Hello world's 12 dogs!!", ["Hello", " world", "'s", " 12", " dogs", "!!"]),
        ("if x:\n    return", ["if", " x", ":", "\n   ", " return"]),
        ("end  \n", ["end", "  \n"]),
        ("we'll I've they're 'tis I'M", ["we", "'ll", " I", "'ve", " they", "'re", " '", "tis", " I", "'", "M"]),
        ("I'd I'm don't", ["I", "'d", " I", "'m", " don", "'t"]),
        ("l'été", ["l", "'", "été"]),
        ("x\u00b2\u4e09", ["x", "\u00b2", "\u4e09"]),
    ],
)
def test_the_pieces_of_gpt2(text, pieces):
    assert list(Splitter(GPT2_SPLIT).pieces(text)) == pieces


def test_the_pieces_of_gpt4_and_llama3():
    pieces = ["HE", "'LL", " say", ":\n\n", "123", "4", " \n", "\ttab", " ", " x", "!!\r\n", "_y"]
    assert SPLITS["cl100k"] == SPLITS["llama3"]
    assert list(Splitter(SPLITS["llama3"]).pieces("".join(pieces))) == pieces


@given(st.text())
def test_pieces_joined_are_the_text(text):
    for pattern in (GPT2_SPLIT, r"\p{L}+", r"b*", ""):
        assert "".join(Splitter(pattern).pieces(text)) == text


def test_text_between_matches_is_a_piece():
    assert list(Splitter(r"\p{L}+").pieces("  ab, c.")) == ["  ", "ab", ", ", "c", "."]


@pytest.mark.parametrize("pattern", [r"(a)|b", r"a)|(?:b"])
def test_a_pattern_that_would_lose_text_is_refused(pattern):
    with pytest.raises(Exception, match="capture groups|unbalanced parenthesis"):
        Splitter(pattern)


def test_splitting_a_long_document_needs_no_memory():
    text = "some words, " * 100_000
    splitter = Splitter(GPT2_SPLIT)
    tracemalloc.start()
    n_pieces = sum(1 for _ in splitter.pieces(text))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert n_pieces == 300_001  # "some", then "," and " some" and " words" in turn, then a last space
    assert peak < 100_000  # a list of all pieces takes 15 MB


def test_the_longest_special_token_wins():
    parts = SpecialSplitter(["<a>", "<a><b>", "+"]).parts("x<a><b><a>+")
    assert list(parts) == [("x", False), ("<a><b>", True), ("<a>", True), ("+", True)]


def test_without_special_tokens_the_text_is_one_part():
    assert list(SpecialSplitter([]).parts("x<a>")) == [("x<a>", False)]
    assert list(SpecialSplitter([]).parts("")) == []


def test_a_lone_surrogate_is_named_with_its_place():
    with pytest.raises(DataError, match=r"U\+D83D.* at character 2"):
        refuse_lone_surrogates("é \ud83d!")
