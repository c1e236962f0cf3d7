"""Texts in a store: piece by piece they are the same text, with the same tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npllm.data import documents
from npllm.data.documents import TextStore, stored
from npllm.data.sources import Reading, ReadingOptions
from npllm.tokenizer import train_bpe

# Letters, digits and signs of one to four bytes, endings such as 'll, and white space
# of all kinds: Python and the tokenizer's pattern do not agree on \x1c.
SIGNS = "ab'lls 1.é漢😀 \n\n \t\r\x1c\x85\u3000"
TEXTS = st.text(st.sampled_from(SIGNS), max_size=60)
TRAINING = "".join(sign * 3 + "ab 'll\n\n a" for sign in SIGNS) * 2
TOKENIZERS = [train_bpe([TRAINING], 300, split=split) for split in ("gpt2", "cl100k")]


@pytest.fixture(autouse=True, scope="module")
def _small_pieces():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "PIECE", 7)
        yield


@given(TEXTS)
def test_pieces_have_the_tokens_of_the_text(text):
    """A cut after white space, or inside of it, would change the tokens there."""
    pieces = list(stored(text).pieces())
    assert "".join(pieces) == text
    assert all(pieces)
    for tokenizer in TOKENIZERS:
        assert [i for piece in pieces for i in tokenizer.encode(piece)] == tokenizer.encode(text)


def test_a_text_is_cut_often_and_one_without_white_space_never():
    assert len(list(stored("one two three four five").pieces())) == 4
    assert list(stored("one-two-three-four-five").pieces()) == ["one-two-three-four-five"]


@given(TEXTS, st.data())
def test_a_cut_counts_characters(text, data):
    n = data.draw(st.integers(0, len(text)))
    beginning, end = stored(text).cut(n)
    assert (str(beginning), str(end)) == (text[:n], text[n:])
    assert (beginning.n_characters, end.n_characters) == (n, len(text) - n)
    assert [beginning, end] == [stored(text[:n]), stored(text[n:])]


@given(st.lists(TEXTS, max_size=4), st.integers(1, 9), st.sampled_from(["%", "%%", "<%>"]))
def test_a_separator_may_lie_across_two_pieces(texts, width, separator):
    whole = separator.join(texts)
    pieces = [whole[place : place + width] for place in range(0, len(whole), width)]
    store = TextStore()
    found = list(Reading(ReadingOptions(separator=separator), store, print)._separated(pieces))
    store.seal()
    assert [str(text) for text in found] == whole.split(separator)


def test_what_is_forgotten_leaves_the_texts_before_it():
    store = TextStore()
    first = store.put(["one"])
    store.put(["two"])
    store.add("three")
    store.forget(first.n_bytes)
    last = store.put(["four"])
    store.seal()
    assert (str(first), str(last)) == ("one", "four")
