from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npllm.errors import DataError
from npllm.tokenizer import byte_tokenizer, train_bpe, train_char
from npllm.tokenizer import tokenizer as tokenizer_module

TEXT = "the cat's hat, the other cat's mat; they ate été, 👋👋 世界\n\n" * 3

TINY_SHAKESPEARE = Path(__file__).resolve().parents[2] / "../shared/data/tinyshakespeare.txt"


@pytest.fixture(scope="module")
def bpe():
    return train_bpe([TEXT], 290, special_tokens=("<|endoftext|>", "<|end|>"))


@given(text=st.text() | st.text(alphabet="the cat's👋世"))
def test_decoding_gives_the_text_back(bpe, text):
    for tokenizer in (bpe, byte_tokenizer(), train_char([text + "x"])):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.decode(tokenizer.encode(text, allowed_special=True)) == text


def test_a_special_token_in_text_is_text_unless_allowed(bpe):
    text = "the<|endoftext|>the<|end|>"
    the = bpe.encode("the")
    assert bpe.encode(text, allowed_special=True) == [*the, bpe.eot_id, *the, bpe.special_tokens["<|end|>"]]
    plain = bpe.encode(text)
    assert not set(plain) & set(bpe.special_tokens.values())
    assert bpe.decode(plain) == text


def test_nothing_is_merged_across_a_special_token(bpe):
    ids = bpe.encode("t<|end|>he", allowed_special=True)
    assert ids == [*bpe.encode("t"), bpe.special_tokens["<|end|>"], *bpe.encode("he")]


def test_documents_are_encoded_as_plain_text(bpe):
    texts = ["the cat", "", "a<|endoftext|>b 👋", TEXT]
    for tokenizer in (bpe, byte_tokenizer(), train_char(texts)):
        documents = tokenizer.encode_documents(iter(texts))
        assert [document.dtype for document in documents] == [np.uint32] * 4
        assert [document.tolist() for document in documents] == [tokenizer.encode(text) for text in texts]
        assert tokenizer.decode(documents[3]) == TEXT


def test_the_arrays_of_documents_can_be_written_to(bpe):
    documents = bpe.encode_documents(["the", "the"])
    documents[0][:] = 0
    assert bpe.decode(documents[1]) == "the"
    assert bpe.decode(bpe.encode("the")) == "the"


def test_decoding_replaces_half_a_character():
    ids = byte_tokenizer().encode("a👋")
    assert byte_tokenizer().decode(ids[:-1]) == "a\ufffd"
    assert byte_tokenizer().decode_bytes(ids[:-1]) == "a👋".encode()[:-1]


def test_many_ids_are_decoded_part_by_part(bpe, monkeypatch):
    """As one list of integers they would take many times the memory of their text."""
    text = "the cat sat 👋 " * 3
    ids = bpe.encode(text)
    for at_once in (1, 4, len(ids) - 1, len(ids)):
        monkeypatch.setattr(tokenizer_module, "DECODED_AT_ONCE", at_once)
        assert bpe.decode(ids) == text


def test_special_tokens_decode_to_their_text(bpe):
    assert bpe.decode([bpe.eot_id]) == "<|endoftext|>"


@pytest.mark.parametrize("bad_id", [-1, 290, 2**40])
def test_an_unknown_id_is_refused(bpe, bad_id):
    with pytest.raises(DataError, match=f"no token with id {bad_id}, only with 0 to 289; use"):
        bpe.decode([3, bad_id])


@pytest.mark.parametrize("allowed_special", [False, True])
def test_a_lone_surrogate_is_refused_with_its_place(bpe, allowed_special):
    for tokenizer in (bpe, byte_tokenizer(), train_char(["abc<|end|>"])):
        with pytest.raises(DataError, match="at character 9"):
            tokenizer.encode("ab<|end|>\udc80", allowed_special=allowed_special)
        with pytest.raises(DataError, match="at character 1"):
            tokenizer.encode_documents(["a\ud800"])


@pytest.mark.parametrize(("unknown", "name"), [("b", "U\\+0062"), ("~", "U\\+007E"), ("👋", "U\\+1F44B")])
def test_a_character_that_was_not_in_training_is_named(unknown, name):
    with pytest.raises(DataError, match=rf"'{unknown}' \({name}\) at place 2 is not among the 2 characters"):
        train_char(["ac"]).encode("ca" + unknown)


@given(ids=st.lists(st.integers(0, 289), max_size=40))
def test_streaming_gives_the_text_of_decoding(bpe, ids):
    decoder, at_once = bpe.stream_decoder(), bpe.stream_decoder().push(ids)
    text = "".join([decoder.push(i) for i in ids])
    assert text == at_once
    assert bpe.decode(ids) in (text, text + "\ufffd")  # where the last character is not complete


@given(text=st.text())
def test_streaming_never_gives_half_a_character(text):
    tokenizer = byte_tokenizer()
    decoder = tokenizer.stream_decoder()
    given_out = [decoder.push(i) for i in tokenizer.encode(text)]
    assert [part for part in given_out if part] == list(text)


def test_a_stream_that_ends_inside_a_character():
    tokenizer = byte_tokenizer()
    decoder = tokenizer.stream_decoder()
    assert [decoder.push(i) for i in tokenizer.encode("a👋")[:-1]] == ["a", "", "", ""]


@pytest.mark.skipif(not TINY_SHAKESPEARE.exists(), reason="the shared data folder is not here")
def test_tiny_shakespeare_has_65_characters():
    text = TINY_SHAKESPEARE.read_text(encoding="utf-8")
    tokenizer = train_char([text])
    assert tokenizer.vocab_size == 65
    assert tokenizer.decode(tokenizer.encode(text)) == text
