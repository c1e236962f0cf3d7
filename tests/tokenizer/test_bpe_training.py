import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from line_counter import count_lines

from npllm.errors import ConfigError, DataError
from npllm.tokenizer import byte_tokenizer, train_bpe, train_char
from npllm.tokenizer.bpe_training import learn_merges
from npllm.tokenizer.byte_table import BYTE_TO_ID, ID_TO_BYTE
from npllm.tokenizer.naive_bpe import naive_encode, naive_learn_merges


def merge_texts(merges):
    """Merges as pairs of bytes."""
    tokens = [bytes([byte]) for byte in ID_TO_BYTE]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    return [(tokens[left], tokens[right]) for left, right in merges]


def test_the_example_of_the_docstring():
    tokenizer = train_bpe(["aaabdaaabac"], 256 + 3, special_tokens=())
    assert merge_texts(tokenizer.vocabulary.merges) == [(b"a", b"a"), (b"aa", b"a"), (b"aaa", b"b")]
    assert tokenizer.encode("aaabdaaabac") == [258, 67, 258, 64, 66]  # the bytes a, c, d have the ids 64, 66, 67


def test_the_example_of_the_naive_docstring():
    merges = naive_learn_merges({b"low": 1, b"lower": 1, b"lowest": 1}, 2)
    assert merge_texts(merges) == [(b"o", b"w"), (b"l", b"ow")]
    ranks, products = {pair: rank for rank, pair in enumerate(merges)}, [256, 257]
    assert naive_encode([BYTE_TO_ID[byte] for byte in b"slow"], ranks, products) == [BYTE_TO_ID[ord("s")], 257]


def test_ties_go_to_the_greatest_pair():
    merges = learn_merges({b"low": 5, b"lower": 2, b"widest": 3, b"newest": 6}, 6)
    assert merge_texts(merges) == [
        (b"s", b"t"),  # as frequent as (e, s), 9 times
        (b"e", b"st"),
        (b"o", b"w"),  # as frequent as (l, o), 7 times
        (b"l", b"ow"),
        (b"w", b"est"),  # as frequent as (e, w) and (n, e), 6 times
        (b"n", b"e"),
    ]


def test_a_longer_token_is_greater_than_its_beginning():
    # Once "ab" is a token, (ab, z) and (a, z) occur twice each.
    merges = learn_merges({b"ab": 9, b"abz": 2, b"az": 2}, 2)
    assert merge_texts(merges) == [(b"a", b"b"), (b"ab", b"z")]


def test_bytes_above_127_compare_as_numbers():
    assert merge_texts(learn_merges({b"\xc3\xa9": 2, b"zz": 2}, 1)) == [(b"\xc3", b"\xa9")]


small_pieces = st.binary(min_size=1, max_size=12).map(lambda piece: bytes(b"ab\xffc"[byte % 4] for byte in piece))
runs = st.integers(1, 12).map(lambda length: b"a" * length)


@settings(max_examples=100)
@given(st.dictionaries(small_pieces | runs, st.integers(1, 4), max_size=8), st.integers(0, 30))
def test_same_merges_as_recounting_everything(piece_counts, n_merges):
    assert learn_merges(piece_counts, n_merges) == naive_learn_merges(piece_counts, n_merges)


def test_counts_do_not_overflow_32_bits():
    assert merge_texts(learn_merges({b"ab": 2**32 + 1, b"cd": 2**32}, 1)) == [(b"a", b"b")]


def test_the_work_grows_with_the_places_merged_not_with_merges_times_text():
    piece = bytes(random.Random(1).choices(b"acgt", k=10_000))
    with count_lines("bpe_training.py") as lines:
        assert len(learn_merges({piece: 1}, 400)) == 400
    assert lines.executed < 60 * len(piece)  # looking through the piece for each merge: 400 * len(piece) at least


def test_the_order_of_documents_does_not_matter():
    texts = ["the cat sat on the mat", "that hat is the cat's", "a mat, a hat"]
    assert train_bpe(texts, 270).sha256() == train_bpe(texts[::-1], 270).sha256()


def test_merges_do_not_reach_into_or_across_special_tokens():
    text = "xy<|endoftext|>" * 5
    assert train_bpe([text], 258).vocabulary.tokens[256:] == (b"xy", b"<|endoftext|>")
    with pytest.raises(ConfigError, match="fills only 258 entries"):
        train_bpe([text], 259)


def test_special_tokens_take_the_last_ids_in_the_order_given():
    tokenizer = train_bpe(["abab"], 260, special_tokens=("<|user|>", "<|endoftext|>", "<|pad|>"))
    assert tokenizer.special_tokens == {"<|user|>": 257, "<|endoftext|>": 258, "<|pad|>": 259}
    assert tokenizer.eot_id == 258


def test_the_smallest_vocabulary_has_no_merges():
    tokenizer = train_bpe(["abab"], 257)
    assert (tokenizer.kind, tokenizer.vocab_size, tokenizer.eot_id) == ("byte", 257, 256)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vocab_size": 256}, "vocab_size is 256, but the bytes and special tokens alone are 257"),
        ({"vocab_size": 262}, "vocab_size is 262, but the training text fills only 259 entries"),
        ({"vocab_size": 300, "special_tokens": ("<a>", "<a>")}, "has one twice"),
        ({"vocab_size": 300, "special_tokens": ("",)}, "has an empty text"),
        ({"vocab_size": 257, "special_tokens": ("q",)}, "'q', as an ordinary token is written"),
        ({"vocab_size": 257, "special_tokens": ("é",)}, "'é', as an ordinary token is written"),
    ],
)
def test_a_vocabulary_that_cannot_be_made_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        train_bpe(["aaa"], **arguments)


@pytest.mark.parametrize("train", [lambda texts: train_bpe(texts, 300), train_char])
def test_training_refuses_lone_surrogates(train):
    with pytest.raises(DataError, match="lone surrogate"):
        train(["abc", "a\udc80"])


def test_byte_tokenizer():
    tokenizer = byte_tokenizer()
    assert (tokenizer.kind, tokenizer.vocab_size, tokenizer.eot_id) == ("byte", 257, 256)
    assert tokenizer.encode("a é") == [64, 220, 0xC3 - 0xAE + 106, 0xA9 - 0xA1 + 94]
    assert byte_tokenizer(special_tokens=()).eot_id is None


def test_char_tokenizer():
    tokenizer = train_char(["hello", "wörld\n"])
    assert tokenizer.kind == "char"
    assert tokenizer.decode(range(tokenizer.vocab_size)) == "\ndehlorwö"
    assert tokenizer.encode("\nö") == [0, 8]
    assert tokenizer.special_tokens == {}
    assert tokenizer.eot_id is None


def test_char_tokenizer_needs_text():
    with pytest.raises(DataError, match="training text is empty"):
        train_char([""])
