import copy
import errno
import hashlib
import json
import os
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npllm.errors import DataError, ResourceError
from npllm.tokenizer import Tokenizer, byte_tokenizer, files, train_bpe, train_char
from npllm.tokenizer.tokenizer_json import from_json, to_json

TEXT = "the cat's hat, the other cat's mat; été, 👋👋 世界 12345\r\n\n" * 3

TOKENIZERS = {
    "bpe": train_bpe([TEXT], 290, special_tokens=("<|endoftext|>", "<|fim▁end|>")),
    "byte": byte_tokenizer(),
    "char": train_char([TEXT]),
}


@pytest.fixture
def document():
    """The parsed tokenizer.json of the bpe tokenizer, for tests to damage."""
    return json.loads(to_json(TOKENIZERS["bpe"].vocabulary))


def saved(folder, document):
    path = folder / "tokenizer.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_saved_tokenizer_gives_the_same_ids(tmp_path, kind):
    tokenizer = TOKENIZERS[kind]
    tokenizer.save(tmp_path / "other name.json")
    loaded = Tokenizer.load(tmp_path / "other name.json")
    assert loaded.kind == kind
    assert loaded.special_tokens == tokenizer.special_tokens
    assert loaded.eot_id == tokenizer.eot_id
    assert loaded.vocab_size == tokenizer.vocab_size
    assert loaded.encode(TEXT) == tokenizer.encode(TEXT)
    assert loaded.decode(range(loaded.vocab_size)) == tokenizer.decode(range(tokenizer.vocab_size))
    assert loaded.sha256() == tokenizer.sha256()


def test_saving_into_a_folder_and_loading_from_it(tmp_path):
    TOKENIZERS["bpe"].save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
    assert Tokenizer.load(str(tmp_path)).sha256() == TOKENIZERS["bpe"].sha256()


def test_a_file_that_cannot_be_written_is_named_and_the_old_one_stays(tmp_path, monkeypatch):
    with pytest.raises(ResourceError, match="no folder/tokenizer.json cannot be written"):
        TOKENIZERS["bpe"].save(tmp_path / "no folder" / "tokenizer.json")
    TOKENIZERS["byte"].save(tmp_path)

    def full_disk(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(ResourceError, match="No space left on device"):
        TOKENIZERS["bpe"].save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
    assert Tokenizer.load(tmp_path).sha256() == TOKENIZERS["byte"].sha256()


def test_sha256_is_that_of_the_file_and_differs_between_tokenizers(tmp_path):
    TOKENIZERS["bpe"].save(tmp_path)
    assert hashlib.sha256((tmp_path / "tokenizer.json").read_bytes()).hexdigest() == TOKENIZERS["bpe"].sha256()
    assert len({tokenizer.sha256() for tokenizer in TOKENIZERS.values()}) == 3


def test_the_file_has_the_parts_that_hugging_face_reads(document):
    assert document["pre_tokenizer"] == {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True
    }  # fmt: skip
    assert document["decoder"]["type"] == "ByteLevel"
    assert [(token["id"], token["content"]) for token in document["added_tokens"]] == [
        (288, "<|endoftext|>"), (289, "<|fim▁end|>")
    ]  # fmt: skip
    assert document["model"]["type"] == "BPE"
    assert document["model"]["vocab"]["Ġ"] == 220
    assert document["model"]["vocab"]["<|fim▁end|>"] == 289
    assert document["model"]["ignore_merges"] is True
    assert len(document["model"]["merges"]) == 32
    for merge in document["model"]["merges"]:
        assert merge.replace(" ", "") in document["model"]["vocab"]


def test_the_file_of_characters_has_no_pre_tokenizer():
    document = json.loads(to_json(TOKENIZERS["char"].vocabulary))
    assert document["pre_tokenizer"] is None
    assert document["decoder"] == {"type": "Fuse"}
    assert document["model"]["vocab"]["\n"] == 0
    assert document["model"]["merges"] == []


def test_merges_may_be_pairs(tmp_path, document):
    document["model"]["merges"] = [merge.split(" ") for merge in document["model"]["merges"]]
    assert Tokenizer.load(saved(tmp_path, document)).sha256() == TOKENIZERS["bpe"].sha256()


def test_what_does_not_change_ids_may_differ(tmp_path, document):
    del document["model"]["type"], document["model"]["byte_fallback"], document["pre_tokenizer"]["use_regex"]
    for token in document["added_tokens"]:
        del document["model"]["vocab"][token["content"]]
    document["truncation"] = {"max_length": 8}
    document["post_processor"] = {"type": "ByteLevel"}
    assert Tokenizer.load(saved(tmp_path, document)).sha256() == TOKENIZERS["bpe"].sha256()


def test_a_split_pattern_is_used_as_given(tmp_path, document):
    document["pre_tokenizer"] = split_and_byte_level(pattern={"Regex": r"\p{N}{1,3}|\p{L}+"})
    tokenizer = Tokenizer.load(saved(tmp_path, document))
    pieces = tokenizer._encoder._splitter.pieces("the 12345, x")
    assert list(pieces) == ["the", " ", "123", "45", ", ", "x"]
    tokenizer.save(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))["pre_tokenizer"] == document["pre_tokenizer"]


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_gpt2_files(tmp_path, document, names, line_end):
    vocabulary_name, merges_name = names
    vocab, merges = document["model"]["vocab"], document["model"]["merges"]
    (tmp_path / vocabulary_name).write_text(json.dumps(vocab), encoding="utf-8")
    content = line_end.join(["#version: 0.2", *merges, ""])
    (tmp_path / merges_name).write_bytes(content.encode("utf-8"))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.special_tokens == TOKENIZERS["bpe"].special_tokens
    assert tokenizer.encode(TEXT) == TOKENIZERS["bpe"].encode(TEXT)


def test_a_merge_of_number_signs_is_not_a_header(tmp_path):
    tokenizer = train_bpe(["####"], 258)
    vocab = json.loads(to_json(tokenizer.vocabulary))["model"]["vocab"]
    (tmp_path / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("# #\n", encoding="utf-8")
    assert Tokenizer.load(tmp_path).encode("##") == [256]


def set_field(path, value):
    """A function that sets document[path[0]][path[1]]... to the value."""

    def spoil(document):
        *parents, last = path
        for key in parents:
            document = document[key]
        document[last] = value

    return spoil


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
SPLIT = {"type": "Split", "pattern": {"Regex": "a+"}, "behavior": "Isolated", "invert": False}


def split_and_byte_level(**changes):
    return {"type": "Sequence", "pretokenizers": [{**SPLIT, **changes}, BYTE_LEVEL]}


BAD_DOCUMENTS = [
    (set_field(["model"], None), "no field 'model' that is an object"),
    (set_field(["model", "vocab"], ["a"]), "no field 'model.vocab' that is an object"),
    (set_field(["model", "merges"], None), "no field 'model.merges' that is a list"),
    (set_field(["model", "vocab"], {}), "two ids|no token"),
    (set_field(["model", "merges", 0], ["the", "zzz"]), "merges 'the' and 'zzz', but 'zzz' is not in the vocabulary"),
    (set_field(["model", "merges", 0], "z z"), "merges 'z' and 'z', but 'zz' is not in the vocabulary"),
    (set_field(["model", "merges", 0], "<|endoftext|> a"), "but '<|endoftext|>' is not in the vocabulary"),
    (set_field(["model", "merges", 0], "a b c"), "has the merge 'a b c'; write it as two tokens"),
    (set_field(["model", "merges", 0], ["a", 5]), r"has the merge \['a', 5\]"),
    (lambda document: document["model"]["merges"].append(document["model"]["merges"][0]), "twice"),
    (set_field(["model", "vocab", "a"], 5), "gives .* the same id 5"),
    (set_field(["model", "vocab", "a"], 4000), "no token with id 64; number the tokens without gaps"),
    (set_field(["model", "vocab", "a"], -1), "gives the token 'a' the id -1"),
    (set_field(["model", "vocab", "a"], True), "gives the token 'a' the id True"),
    (set_field(["model", "vocab", "a"], 64.0), "gives the token 'a' the id 64.0"),
    (set_field(["model", "vocab", "漢"], 290), "character '漢' stands for no byte"),
    (set_field(["model", "vocab", ""], 290), "has an empty token"),
    (lambda document: document["model"]["vocab"].update(aa=document["model"]["vocab"].pop("a")), "for the byte 0x61"),
    (set_field(["model", "vocab", "<|endoftext|>"], 5), "'<|endoftext|>' two ids, 5 and 288"),
    (set_field(["model", "type"], "WordPiece"), "a model of type 'WordPiece'; only 'BPE'"),
    (set_field(["model", "dropout"], 0.1), "has dropout = 0.1"),
    (set_field(["model", "end_of_word_suffix"], "</w>"), "has end_of_word_suffix = '</w>'"),
    (set_field(["model", "byte_fallback"], True), "has byte_fallback = True"),
    (set_field(["normalizer"], {"type": "NFC"}), "the normalizer 'NFC'; only null"),
    (set_field(["pre_tokenizer"], {"type": "Whitespace"}), "Whitespace.*; supported is ByteLevel with"),
    (set_field(["pre_tokenizer"], split_and_byte_level(type="Digits")), "Digits.*; supported is ByteLevel with"),
    (set_field(["pre_tokenizer"], split_and_byte_level(behavior="Removed")), "Removed.*; supported is ByteLevel with"),
    (set_field(["pre_tokenizer"], split_and_byte_level(invert=True)), "invert.*; supported is ByteLevel with"),
    (set_field(["pre_tokenizer", "add_prefix_space"], True), "supported is ByteLevel with add_prefix_space=false"),
    (set_field(["pre_tokenizer", "use_regex"], False), "supported is ByteLevel with"),
    (set_field(["pre_tokenizer"], None), "no pre_tokenizer and the decoder 'ByteLevel'; supported are"),
    (set_field(["added_tokens"], 5), "no field 'added_tokens' that is a list"),
    (set_field(["added_tokens", 0, "id"], "288"), "give it an integer id and a content"),
    (set_field(["added_tokens", 0, "special"], False), "with special = false"),
    (set_field(["added_tokens", 0, "lstrip"], True), "with lstrip"),
    (set_field(["added_tokens", 1, "content"], "<|endoftext|>"), "added token '<|endoftext|>' twice"),
    (set_field(["added_tokens", 0], {"id": 290, "content": "\ud800", "special": True}), "with a lone surrogate"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD_DOCUMENTS, ids=[message for _, message in BAD_DOCUMENTS])
def test_a_bad_tokenizer_json_is_refused(tmp_path, document, spoil, message):
    spoil(document)
    path = saved(tmp_path, document)
    with pytest.raises(DataError, match=message.replace("|>", r"\|>").replace("<|", r"<\|")) as error:
        Tokenizer.load(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "pattern", ["(", "(a)|b", "\\p{Foo}", "(?:" * 20_000 + ")" * 20_000], ids=["open", "group", "property", "nested"]
)
def test_a_bad_split_pattern_is_refused(tmp_path, document, pattern):
    document["pre_tokenizer"] = split_and_byte_level(pattern={"Regex": pattern})
    with pytest.raises(DataError, match="split pattern that cannot be used"):
        Tokenizer.load(saved(tmp_path, document))


def test_a_bad_file_of_characters_is_refused(tmp_path):
    document = json.loads(to_json(TOKENIZERS["char"].vocabulary))
    document["model"]["vocab"]["ab"] = len(document["model"]["vocab"])
    with pytest.raises(DataError, match="'ab', which is not one character; add the merges"):
        Tokenizer.load(saved(tmp_path, document))
    document["model"]["unk_token"] = "ab"
    with pytest.raises(DataError, match="unk_token = 'ab'"):
        Tokenizer.load(saved(tmp_path, document))


@pytest.mark.parametrize("content", ["", "{", '{"model": {"vocab"', "[" * 100_000, '{"a": ' + "9" * 5000 + "}"])
def test_a_file_that_is_not_json_is_refused(tmp_path, content):
    with pytest.raises(DataError, match="is not valid JSON"):
        Tokenizer.load(saved(tmp_path, content))


@pytest.mark.parametrize("content", ["[]", "5", "null", '"text"', "{}"])
def test_json_that_is_no_tokenizer_is_refused(tmp_path, content):
    with pytest.raises(DataError, match="no field 'model'"):
        Tokenizer.load(saved(tmp_path, content))


def test_a_binary_file_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(b"\x89HDF\r\n\xff")
    with pytest.raises(DataError, match=r"is not UTF-8 \(invalid byte 0x89 in line 1, at offset 0\)"):
        Tokenizer.load(tmp_path)


def test_a_file_that_is_too_large_is_refused_unread(tmp_path, monkeypatch):
    assert files.MAX_FILE_BYTES == 64 * 2**20
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 2**20)
    path = saved(tmp_path, "[" + " " * 2**23)
    tracemalloc.start()
    with pytest.raises(DataError, match="is larger than 1 MB"):
        Tokenizer.load(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**22


def test_a_missing_file_and_an_empty_folder_are_named(tmp_path):
    with pytest.raises(DataError, match="nothing.json cannot be read"):
        Tokenizer.load(tmp_path / "nothing.json")
    with pytest.raises(DataError, match=r"neither tokenizer.json nor vocab.json \+ merges.txt nor encoder.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("vocab", "merges", "message"),
    [
        ("[]", "", "vocab.json is not a JSON object"),
        (None, "a b\na b c\n", r"merges.txt line 2 is 'a b c'"),
        (None, "", "vocab.json has the token '.*', which no merge in .*merges.txt makes"),
        ('{"a": 0, "<s>": true}', "", "gives the token '<s>' the id True"),
        ('{"a": 0}', "q q\n", "vocab.json with .*merges.txt has no token for the byte 0x21"),
    ],
)
def test_bad_gpt2_files_are_refused(tmp_path, document, vocab, merges, message):
    (tmp_path / "vocab.json").write_text(vocab or json.dumps(document["model"]["vocab"]), encoding="utf-8")
    (tmp_path / "merges.txt").write_text(merges, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        Tokenizer.load(tmp_path)


def paths_into(node, path=()):
    yield path
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in items:
        yield from paths_into(child, (*path, key))


GOOD = json.loads(to_json(train_bpe(["abab"], 258).vocabulary))
PATHS = [path for path in paths_into(GOOD) if path and not (path[:2] == ("model", "vocab") and len(path) == 3)]
PATHS += [("model", "vocab", text) for text in ("!", "a", "ab", "<|endoftext|>")]
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=200)
@given(st.sampled_from(PATHS), ANY_JSON)
def test_whatever_one_field_holds_loading_works_or_raises_a_data_error(path, value):
    document = copy.deepcopy(GOOD)
    set_field(path, value)(document)
    try:
        tokenizer = Tokenizer(from_json(document, "tokenizer.json"))
    except DataError:
        return
    assert tokenizer.decode(tokenizer.encode("abab é")) == "abab é"
