"""The compiled loops give the pieces, ids and merges of the plain ones."""

import sysconfig
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numba import config

from npllm.kernels.compiled_cache import CompiledCache
from npllm.tokenizer import Tokenizer, fast_encoding, fast_path, fast_training, tokenizer, train_bpe
from npllm.tokenizer.bpe_encoding import BytePairEncoder
from npllm.tokenizer.bpe_training import learn_merges
from npllm.tokenizer.byte_table import BYTE_TO_ID, ID_TO_BYTE
from npllm.tokenizer.fast_training import CompiledCounter, learn_merges_compiled
from npllm.tokenizer.kernels import encoding, learning
from npllm.tokenizer.kernels.encoding import LONGEST
from npllm.tokenizer.pretokenize import CL100K_SPLIT, GPT2_SPLIT, Splitter
from npllm.tokenizer.tokenizer import END_OF_TEXT
from npllm.tokenizer.training import count_pieces
from npllm.tokenizer.vocabulary import Vocabulary

# Letters and signs of one to four bytes; endings in upper and lower case; digits and
# white space of all kinds. Python and the patterns do not agree on \x1c.
SIGNS = "aZé漢𐐀1²三𝟙.'’_😀\u0301\ud7ff\ue000\U0010ffff \n\r\t\x0b\x1c\x85\xa0\u2028\u3000"
ENDINGS = ["'s", "'S", "'ſ", "'T", "'ll", "'lL", "'Ve", "'RE", "'d", "'m", "'é", "'l", "'r"]
SPACES = ["  x", " \n", "\r\n", "1234"]
VALID = st.characters(exclude_categories=["Cs"])
TEXTS = st.lists(st.sampled_from([*SIGNS, *ENDINGS, *SPACES]) | VALID, max_size=30).map("".join)
SPLITS = pytest.mark.parametrize("pattern", [GPT2_SPLIT, CL100K_SPLIT], ids=["gpt2", "cl100k"])


@pytest.fixture(autouse=True, scope="module")
def _small_tables():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_training, "SLOTS", 1 << 12)
        patch.setattr(fast_encoding, "REMEMBERED_PIECES", 1 << 11)
        yield


@pytest.fixture(scope="module")
def real_text():
    """A slice of the standard library, with tables of signs: 600 kB."""
    folder = Path(sysconfig.get_path("stdlib"))
    names = ["argparse.py", "html/entities.py", "_pydecimal.py", "locale.py", "inspect.py"]
    return "".join((folder / name).read_text(encoding="utf-8") for name in names)


def compiled_counts(pattern, *texts):
    counter = CompiledCounter(pattern)
    for text in texts:
        counter.count(text.encode())
    return counter.counts()


def plain_counts(pattern, *texts):
    return Counter(piece.encode() for text in texts for piece in Splitter(pattern).pieces(text))


@SPLITS
@settings(max_examples=300)
@given(text=TEXTS)
@example(text="I'ſay")
@example(text="x\n\n  y  ")
def test_the_pieces_of_the_pattern(pattern, text):
    assert compiled_counts(pattern, text) == plain_counts(pattern, text)


@SPLITS
def test_the_class_of_every_code_point(pattern):
    """Each between a letter and a blank. Of the many code points, every seventh."""
    signs = [chr(i) for i in [*range(0x3100), *range(0x3100, 0xD800, 7), *range(0xE000, 0x110000, 7)]]
    text = "".join(f"a{sign} " for sign in signs)
    assert compiled_counts(pattern, text) == plain_counts(pattern, text)


@SPLITS
def test_the_pieces_of_real_text(pattern, real_text):
    half = len(real_text) // 2
    texts = real_text[:half], "", real_text[half:]
    assert compiled_counts(pattern, *texts) == plain_counts(pattern, *texts)


def test_more_pieces_than_the_table_holds(monkeypatch):
    monkeypatch.setattr(fast_training, "SLOTS", 16)
    monkeypatch.setattr(fast_training, "KEY_BYTES", 40)
    text = " ".join(map(str, range(100))) + " " + "x" * 41 + " 7 7" + "y" * 50
    assert compiled_counts(GPT2_SPLIT, text, text) == plain_counts(GPT2_SPLIT, text, text)


small_pieces = st.binary(min_size=1, max_size=12).map(lambda piece: bytes(b"ab\xffc"[byte % 4] for byte in piece))
runs = st.integers(1, 12).map(lambda length: b"a" * length)


@settings(max_examples=100)
@given(st.dictionaries(small_pieces | runs, st.integers(1, 4), max_size=8), st.integers(0, 30))
@example({b"ab": 2**32 + 1, b"cd": 2**32}, 1)
def test_the_merges_of_the_definition(piece_counts, n_merges):
    assert learn_merges_compiled(piece_counts, n_merges) == learn_merges(piece_counts, n_merges)


def test_the_merges_of_real_text(real_text):
    counts = count_pieces([real_text], ())
    assert learn_merges_compiled(counts, 800) == learn_merges(counts, 800)


@pytest.fixture(scope="module", params=["gpt2", "cl100k"])
def encoder(request, real_text):
    """Of a tokenizer that has met few of the signs below."""
    text = real_text[:50_000] + "=" * 300 + "漢字'll" * 9
    return BytePairEncoder(train_bpe([text], 600, split=request.param).vocabulary)


def assert_same_ids(encoder, text):
    np.testing.assert_array_equal(encoder.compiled.encode(text.encode()), encoder.encode_plainly(text))


@settings(max_examples=200)
@given(text=TEXTS | st.text(alphabet="theca'sor =\n", max_size=250))
def test_the_ids_of_the_plain_encoder(encoder, text):
    assert_same_ids(encoder, text)


def test_the_ids_of_real_text(encoder, real_text):
    assert_same_ids(encoder, real_text)


@pytest.mark.parametrize("length", [LONGEST - 1, LONGEST, LONGEST + 1, 3 * LONGEST])
def test_long_pieces(encoder, length):
    for unit in ("=", "e", "漢"):
        assert_same_ids(encoder, f"the {unit * length} the {unit * (length // 3)}")


def test_two_texts_at_the_same_time(encoder, monkeypatch):
    """The second one starts in the middle of the first."""
    first, second = "the mat " * 9 + "=" * 300 + " the hat", "other cats " * 50
    both = BytePairEncoder(encoder.vocabulary)
    inner = []

    def encode_long(piece):
        inner.append(both.compiled.encode(second.encode()))
        return both.encode_piece(piece)

    monkeypatch.setattr(both.compiled, "_encode_long", encode_long)
    assert_same_ids(both, first)
    np.testing.assert_array_equal(inner[0], both.encode_plainly(second))


def test_documents_in_several_threads_have_the_same_ids(encoder, real_text, monkeypatch):
    monkeypatch.setattr(tokenizer, "WORTH_THREADS", 0)
    monkeypatch.setattr(tokenizer, "usable_cores", lambda: 4)
    monkeypatch.setattr(fast_path, "pays", lambda n_characters, pattern: True)
    texts = [real_text[start : start + 5_000] for start in range(0, len(real_text), 5_000)]
    for text, ids in zip(texts, Tokenizer(encoder.vocabulary).encode_documents(texts), strict=True):
        np.testing.assert_array_equal(ids, encoder.encode_plainly(text))


@pytest.mark.parametrize("name", ["REMEMBERED_PIECES", "REMEMBERED_BYTES", "REMEMBERED_IDS", "IDS_AT_ONCE"])
def test_without_room_the_ids_are_the_same(encoder, real_text, monkeypatch, name):
    monkeypatch.setattr(fast_encoding, name, 300)
    assert_same_ids(BytePairEncoder(encoder.vocabulary), real_text[:20_000])


@st.composite
def vocabularies(draw):
    """Merges of a, b, c in any order, so that a product may precede its parts; and with
    whole tokens that merging does not make."""
    tokens, pairs = [bytes([byte]) for byte in ID_TO_BYTE], []
    abc = [BYTE_TO_ID[byte] for byte in b"abc"]
    for _ in range(draw(st.integers(0, 8))):
        left, right = draw(st.tuples(*[st.sampled_from([*abc, *range(256, len(tokens))])] * 2))
        if tokens[left] + tokens[right] not in tokens:
            tokens.append(tokens[left] + tokens[right])
            pairs.append((left, right))
    merges = tuple(draw(st.permutations(pairs)))
    return Vocabulary(tuple(tokens), {}, merges=merges, ignore_merges=draw(st.booleans()))


@settings(max_examples=100)
@given(vocabularies(), st.text(alphabet="abc ", max_size=40))
def test_merges_in_any_order(vocabulary, text):
    assert_same_ids(BytePairEncoder(vocabulary), text)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.skipif(config.DISABLE_JIT, reason="nothing is compiled")
def test_a_process_changes_when_it_pays(monkeypatch, kept):
    monkeypatch.setattr("npllm.kernels.compiled_cache.is_lacking", lambda kernel: not kept)
    size = fast_path.WORTH_LOADING // 4
    plain = [fast_path.pays(size, GPT2_SPLIT) for _ in range(100)].index(True) + 1
    assert plain == (4 if kept else 4 * fast_path.WORTH_COMPILING // fast_path.WORTH_LOADING)
    assert not fast_path.pays(100, GPT2_SPLIT)
    assert not fast_path.pays(size, r"\p{L}+")


def test_without_a_compiler_nothing_changes(monkeypatch):
    monkeypatch.setattr("numba.config.DISABLE_JIT", True)
    assert not any(fast_path.pays(1 << 24, GPT2_SPLIT) for _ in range(3))


@pytest.mark.skipif(config.DISABLE_JIT, reason="nothing is compiled")
def test_every_kernel_can_be_compiled_ahead():
    fast_path.load_kernels()
    kept = [kernel for module in (encoding, learning) for kernel in vars(module).values() if is_kept(kernel)]
    assert len(kept) == 4
    assert all(kernel.signatures for kernel in kept)


def is_kept(kernel):
    return isinstance(getattr(kernel, "_cache", None), CompiledCache)


def test_a_large_text_takes_the_compiled_path(real_text, monkeypatch):
    plain = train_bpe([real_text], 400)
    monkeypatch.setattr(fast_path, "pays", lambda n_characters, pattern: True)
    compiled = train_bpe([real_text + END_OF_TEXT] * 2, 400)
    assert compiled.vocabulary == plain.vocabulary
    assert "compiled" not in vars(compiled._encoder)
    assert compiled.encode(real_text) == plain._encoder.encode_plainly(real_text).tolist()
    assert "compiled" in vars(compiled._encoder)
