import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from line_counter import count_lines

from npllm.tokenizer import bpe_encoding, train_bpe
from npllm.tokenizer.bpe_encoding import LONG_PIECE, BytePairEncoder, merge_by_heap, merge_by_scanning
from npllm.tokenizer.byte_table import BYTE_TO_ID, ID_TO_BYTE, text_to_bytes
from npllm.tokenizer.gpt2_files import read_merges
from npllm.tokenizer.naive_bpe import naive_encode
from npllm.tokenizer.vocabulary import Vocabulary

BYTES = tuple(bytes([byte]) for byte in ID_TO_BYTE)

# All merges of GPT-2 that the texts below can use, in GPT-2's order.
GPT2_MERGES = """\
h e\ni n\nĠ w\ni s\no r\nl e\nl l\nl d\nn d\ne l\ni v\nĠw or\nin d\ni b\ne ll\nib le\nb le\nĠwor ld\nor ld\nb l\nhe l
v is\nl o\nw orld\nd iv\nð Ł\nv i\nib l\nd i\nell o\nĠ ðŁ\nhe ll\nis ible\ns i\nll o\nw o\nis i\nvis ible\nĠw o
hell o\nðŁ ĳ\nr l\nĠðŁ ĳ"""


@st.composite
def rank_tables(draw):
    """(ranks, products) over the ids 0 ... 3 and up, in any order: the rank of a
    product may be lower than those of its parts."""
    pairs = []
    for product in range(4, 4 + draw(st.integers(1, 8))):
        pair = draw(st.tuples(st.integers(0, product - 1), st.integers(0, product - 1)))
        if pair not in pairs:
            pairs.append(pair)
    order = draw(st.permutations(range(len(pairs))))
    return {pairs[i]: rank for rank, i in enumerate(order)}, [4 + i for i in order]


@settings(max_examples=100)
@given(rank_tables(), st.lists(st.integers(0, 3), max_size=60) | st.integers(1, 60).map(lambda length: [0] * length))
def test_scanning_and_heap_give_the_ids_of_the_definition(table, ids):
    expected = naive_encode(ids, *table)
    assert merge_by_scanning(list(ids), *table) == expected
    assert merge_by_heap(list(ids), *table) == expected


@pytest.mark.parametrize("merge", [merge_by_scanning, merge_by_heap])
def test_a_pair_whose_left_token_finds_a_better_partner(merge):
    a, b, c, bc, ab, abc = range(6)
    assert merge([a, b, c], {(b, c): 0, (a, b): 1, (a, bc): 2}, [bc, ab, abc]) == [abc]


@pytest.fixture(scope="module")
def trained():
    text = "the cat's hat, the other cat's mat; there are the other hats they ate" + "=" * 300
    return train_bpe([text], 290)


@given(text=st.text(alphabet="theca'sor =\n", max_size=250) | st.text())
def test_a_trained_tokenizer_gives_the_ids_of_the_definition(trained, text):
    vocabulary = trained.vocabulary
    ranks = {pair: rank for rank, pair in enumerate(vocabulary.merges)}
    products = [256 + rank for rank in range(len(ranks))]
    pieces = trained._encoder._splitter.pieces(text)
    expected = [naive_encode([BYTE_TO_ID[byte] for byte in piece.encode()], ranks, products) for piece in pieces]
    assert trained.encode(text) == sum(expected, [])


def test_a_trained_token_is_one_id(trained):
    for i, token in enumerate(trained.vocabulary.tokens[:-1]):
        assert trained._encoder.encode_piece(token) == [i]


def test_whole_pieces_come_first_only_if_the_vocabulary_says_so():
    tokens = (*BYTES, b"xy", b"xyz")  # no merge makes xyz
    x, y, z, space = (BYTE_TO_ID[byte] for byte in b"xyz ")
    assert encode(Vocabulary(tokens, {}, merges=((x, y),)), "xyz") == [256, z]
    assert encode(Vocabulary(tokens, {}, merges=((x, y),), ignore_merges=True), "xyz xyz") == [257, space, 256, z]


def encode(vocabulary, text):
    return BytePairEncoder(vocabulary).encode(text).tolist()


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("hello world", ["hello", " world"]),
        ("indivisible", ["ind", "iv", "isible"]),
        ("hello 👋 world 🌍", ["hello", b" \xf0\x9f\x91", b"\x8b", " world", b" \xf0\x9f", b"\x8c", b"\x8d"]),
    ],
)
def test_the_tokens_of_gpt2(text, tokens):
    ids = {token: i for i, token in enumerate(BYTES)}
    merges = []
    for left, right in read_merges(GPT2_MERGES, "merges"):
        left_bytes, right_bytes = text_to_bytes(left), text_to_bytes(right)
        merges.append((ids[left_bytes], ids[right_bytes]))
        ids[left_bytes + right_bytes] = len(ids)
    encoded = encode(Vocabulary(tuple(ids), {}, merges=tuple(merges)), text)
    expected = [token if isinstance(token, bytes) else token.encode() for token in tokens]
    assert [tuple(ids)[i] for i in encoded] == expected


def test_long_pieces_never_go_to_the_scan(trained, monkeypatch):
    scanned = []

    def recording_scan(ids, ranks, products):
        scanned.append(len(ids))
        return merge_by_scanning(ids, ranks, products)

    monkeypatch.setattr(bpe_encoding, "merge_by_scanning", recording_scan)
    encoder = BytePairEncoder(trained.vocabulary)
    encoder.encode("=" * (LONG_PIECE - 1) + " " + "é" * LONG_PIECE + "=" * LONG_PIECE)
    assert scanned == [LONG_PIECE - 1]


@pytest.mark.parametrize("unit", ["=", "the"])
def test_the_work_for_a_long_repeat_grows_with_its_length(trained, unit):
    def lines(length):
        encoder = BytePairEncoder(trained.vocabulary)
        with count_lines("bpe_encoding.py") as count:
            encoder.encode(unit * (length // len(unit)))
        return count.executed

    assert lines(8_000) < 2.2 * lines(4_000)


def test_the_remembered_pieces_are_bounded(trained, monkeypatch):
    monkeypatch.setattr(bpe_encoding, "MAX_REMEMBERED_PIECES", 10)
    encoder = BytePairEncoder(trained.vocabulary)
    text = " ".join(map(str, range(100))) + " " + "x" * 1000
    ids = encoder.encode(text)
    assert len(encoder._remembered) <= 10
    assert all(len(piece) < 100 for piece in encoder._remembered)
    np.testing.assert_array_equal(ids, BytePairEncoder(trained.vocabulary).encode(text))
