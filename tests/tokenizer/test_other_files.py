"""Files of other projects: .tiktoken, vocab.json with merges.txt, and other splits."""

import json
from base64 import b64encode

import pytest

from npllm.errors import ConfigError, DataError
from npllm.tokenizer import Tokenizer, byte_tokenizer, train_bpe, train_char
from npllm.tokenizer.byte_table import ID_TO_BYTE, bytes_to_text
from npllm.tokenizer.pretokenize import CL100K_SPLIT, SPLITS

TEXT = "the cat's hat, the other cat's mat; été, 👋👋 世界 12345\r\n\n" * 3
SPECIAL = ("<|endoftext|>", "<|user|>")
BYTES = [bytes([byte]) for byte in ID_TO_BYTE]


def tiktoken_file(path, tokens):
    path.write_text("".join(f"{b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)))
    return path


@pytest.mark.parametrize("split", SPLITS)
def test_a_tiktoken_file_holds_the_tokenizer(tmp_path, split):
    tokenizer = train_bpe([TEXT], 290, SPECIAL, split=split)
    tokenizer.save(tmp_path / "a.tiktoken")
    loaded = Tokenizer.load(tmp_path / "a.tiktoken", split=split, special_tokens=SPECIAL)
    assert loaded.vocabulary == tokenizer.vocabulary


def test_the_lines_of_a_tiktoken_file(tmp_path):
    train_bpe(["abab"], 258).save(tmp_path / "a.tiktoken")
    lines = (tmp_path / "a.tiktoken").read_text().splitlines()
    assert (lines[0], lines[64], lines[256:]) == ("IQ== 0", "YQ== 64", ["YWI= 256"])  # "!", "a", and the merge "ab"


def test_merges_are_recovered_from_ranks(tmp_path):
    """Not every two tokens that make a token are its merge: "abc" is ab + c."""
    path = tiktoken_file(tmp_path / "a.tiktoken", [*BYTES, b"ab", b"bc", b"abc", b"abcbc"])
    tokens = Tokenizer.load(path, split="gpt2").vocabulary
    named = [(tokens.tokens[left], tokens.tokens[right]) for left, right in tokens.merges]
    assert named == [(b"a", b"b"), (b"b", b"c"), (b"ab", b"c"), (b"abc", b"bc")]


def test_a_token_that_merging_its_bytes_does_not_make(tmp_path):
    """As in Llama 3: "xyz" has a lower rank than its parts. The whole piece is found,
    and any two tokens that make it merge."""
    path = tiktoken_file(tmp_path / "a.tiktoken", [*BYTES, b"xyz", b"xy", b"yz"])
    tokenizer = Tokenizer.load(path, split="llama3")
    assert tokenizer.encode("xyz") == [256]
    assert tokenizer.encode("axyz") == [ID_TO_BYTE.index(ord("a")), 256]


def test_special_tokens_take_the_free_ids_of_a_tiktoken_file(tmp_path):
    path = tmp_path / "gap.tiktoken"
    content = "".join(f"{b64encode(token).decode()} {i}\n" for i, token in enumerate(BYTES)) + "YWI= 257\n"
    path.write_text(content)
    assert Tokenizer.load(path, split="gpt2", special_tokens=SPECIAL).special_tokens == {
        SPECIAL[0]: 256,
        SPECIAL[1]: 258,
    }
    with pytest.raises(DataError, match="no token with id 256"):
        Tokenizer.load(path, split="gpt2", special_tokens=())


@pytest.mark.parametrize(
    "line", ["YWI=", "YWI= x", "YWI= -1", "Y!I= 256", "YWI= 256 1", "IQ== 256", "YWI= 99999999999"]
)
def test_a_damaged_tiktoken_file_is_refused_with_its_line(tmp_path, line):
    path = tiktoken_file(tmp_path / "a.tiktoken", BYTES)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=r"a\.tiktoken line 257 is"):
        Tokenizer.load(path, split="gpt2")


def test_a_tiktoken_file_with_endless_tokens_is_refused(tmp_path):
    path = tiktoken_file(tmp_path / "a.tiktoken", [*BYTES, b"a" * 20_000])
    with pytest.raises(DataError, match="too long"):
        Tokenizer.load(path, split="gpt2")


def test_a_tiktoken_file_needs_a_split(tmp_path):
    path = tiktoken_file(tmp_path / "a.tiktoken", BYTES)
    with pytest.raises(ConfigError, match="one of gpt2, cl100k, llama3"):
        Tokenizer.load(path)
    with pytest.raises(ConfigError, match="split is 'GPT2'; choose one of gpt2"):
        Tokenizer.load(path, split="GPT2")


def first_merge(tokenizer):
    return [tokenizer.vocabulary.tokens[i] for i in tokenizer.vocabulary.merges[0]]


def test_gpt2s_files_hold_the_tokenizer(tmp_path):
    tokenizer = train_bpe([TEXT], 290, SPECIAL)
    tokenizer.save(tmp_path / "vocab.json")
    first_lines = (tmp_path / "merges.txt").read_text(encoding="utf-8").splitlines()[:2]
    assert first_lines == ["#version: 0.2", " ".join(map(bytes_to_text, first_merge(tokenizer)))]
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.vocabulary.tokens, loaded.special_tokens) == (tokenizer.vocabulary.tokens, tokenizer.special_tokens)
    assert loaded.vocabulary.merges == tokenizer.vocabulary.merges
    assert loaded.encode(TEXT) == tokenizer.encode(TEXT)


@pytest.mark.parametrize(
    ("tokenizer", "name"),
    [
        (train_bpe([TEXT], 290, split="cl100k"), "vocab.json"),
        (train_bpe([TEXT], 290, ("[end]",)), "vocab.json"),
        (train_char([TEXT]), "vocab.json"),
        (train_char([TEXT]), "a.tiktoken"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_and_nothing_is_written(tmp_path, tokenizer, name):
    with pytest.raises(DataError, match=f"{name}.* cannot hold this tokenizer.*; save a tokenizer.json"):
        tokenizer.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_merges_out_of_order_do_not_fit_a_tiktoken_file(tmp_path, reordered):
    with pytest.raises(DataError, match="not in the order of its ids"):
        reordered.save(tmp_path / "a.tiktoken")


@pytest.fixture
def reordered(tmp_path):
    """A tokenizer whose tokens have other ids than their merges' ranks."""
    path = tmp_path / "tokenizer.json"
    train_bpe(["abab cdcdcd"], 259).save(path)
    document = json.loads(path.read_text())
    document["model"]["merges"].reverse()
    path.write_text(json.dumps(document))
    return Tokenizer.load(path)


@pytest.mark.parametrize("split", SPLITS)
def test_tokenizer_json_keeps_the_split(tmp_path, split):
    tokenizer = train_bpe([TEXT], 290, split=split)
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).vocabulary == tokenizer.vocabulary
    written = json.loads((tmp_path / "tokenizer.json").read_text())["pre_tokenizer"]
    if split == "gpt2":
        assert written["type"] == "ByteLevel"
    else:
        assert written["pretokenizers"][0]["pattern"] == {"Regex": CL100K_SPLIT}


def test_an_unknown_split_is_refused():
    with pytest.raises(ConfigError, match="split is 'o200k'; choose one of gpt2, cl100k, llama3"):
        train_bpe(["ab"], 257, split="o200k")


def test_bytes_need_no_merges(tmp_path):
    byte_tokenizer().save(tmp_path / "a.tiktoken")
    assert Tokenizer.load(tmp_path / "a.tiktoken", split="gpt2").encode("a é") == byte_tokenizer().encode("a é")
