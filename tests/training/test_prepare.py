"""From text to shards: separators of documents, and the memory that it takes."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from npllm.data import documents, text_files
from npllm.data.corpora import load_corpus
from npllm.data.documents import Document, stored
from npllm.errors import ConfigError, DataError
from npllm.files import spool
from npllm.runs.run_folder import RunFolder
from npllm.tokenizer import Tokenizer, train_bpe, train_char
from npllm.tokenizer.pretokenize import SPLITS
from npllm.training import prepare
from npllm.training.config import DataConfig
from npllm.training.prepare import encode_document, encode_documents, prepare_data, tokenizer_text


@pytest.fixture
def run_folder(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.train_shard.parent.mkdir(parents=True)
    return run


def test_marks_between_documents_are_their_ends_and_no_letters(tmp_path, run_folder):
    """This needs the option data.separator. Without it, the run prints that the text
    has such characters."""
    texts = [f"document {i}" for i in range(40)]
    path = tmp_path / "text.txt"
    path.write_text("<|endoftext|>".join(texts))
    config = DataConfig(source=(str(path),), tokenizer="byte", separator="<|endoftext|>")
    assert prepare_data(config, run_folder, lambda line: None).remarks == []
    tokenizer, shards = run_folder.load_tokenizer(), run_folder.load_shards()
    decoded = "".join(tokenizer.decode(shard.tokens) for shard in shards)
    assert sorted(decoded.split("<|endoftext|>")) == sorted([*texts, ""])
    assert sum(int((shard.tokens == shard.eot_id).sum()) for shard in shards) == 40
    (remark,) = prepare_data(replace(config, separator=None), run_folder, lambda line: None).remarks
    assert remark == (
        "<|endoftext|> is plain text in 1 of the documents, such as text.txt; if it separates documents, give "
        "--data.separator '<|endoftext|>'"
    )


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_a_text_is_prepared_in_ten_times_its_size(tmp_path, run_folder, monkeypatch, kind):
    """Memory holds the text, its two parts, and tokens of four and of two bytes. It
    does not hold arrays of eight bytes."""
    n_bytes = 4 << 20
    path = tmp_path / "text.txt"
    path.write_bytes(b"sixteen letters\n" * (n_bytes // 16))
    monkeypatch.setattr(prepare, "usable_cores", lambda: 2)  # more take more memory
    tracemalloc.start()
    prepare_data(DataConfig(source=(str(path),), tokenizer=kind), run_folder, lambda line: None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * n_bytes


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_a_large_text_is_never_in_memory_as_a_whole(tmp_path, run_folder, monkeypatch, kind):
    """Neither are its tokens, nor the file that is made of them. All the while one sees
    how much of it is done."""
    n_bytes = 16 << 20
    path = tmp_path / "text.txt"
    path.write_bytes(b"letters and letters\r\nand letters\n" * (n_bytes // 33))
    monkeypatch.setattr(spool, "IN_MEMORY", 1 << 16)
    for module in (documents, prepare):
        monkeypatch.setattr(module, "PIECE", 1 << 16)
    monkeypatch.setattr(prepare, "usable_cores", lambda: 2)  # more take more memory
    monkeypatch.setattr(text_files, "CHUNK", 1 << 16)
    tracemalloc.start()
    config = DataConfig(source=(str(path),), tokenizer=kind)
    reported = []
    corpus = prepare_data(config, run_folder, reported.append)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < n_bytes // 4
    done = [line for line in dict.fromkeys(reported) if line.startswith("encoding text.txt")]
    assert done[:16] == [f"encoding text.txt ({megabytes} of 16 MB)" for megabytes in range(16)]
    assert [shard.n_bytes for shard in run_folder.load_shards()] == [corpus.train_bytes, corpus.val_bytes]


def test_a_tokenizer_learns_from_an_even_part_of_a_long_text(tmp_path, run_folder, monkeypatch):
    """The run says so. A shorter text is learnt as a whole."""
    monkeypatch.setattr(documents, "PIECE", 100)
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {i:05}\n" for i in range(1000)))
    config = DataConfig(source=(str(path),), vocab_size=260)
    whole = load_corpus(config.source)
    assert "".join(tokenizer_text(whole.train)) == whole.train[0].text
    assert prepare_data(config, run_folder, lambda line: None).remarks == []
    monkeypatch.setattr(prepare, "TOKENIZER_TEXT", 2000)
    (remark,) = prepare_data(config, run_folder, lambda line: None).remarks
    assert remark.startswith("the tokenizer is trained on 0 of 0 MB")
    lines = [int(line[-5:]) for line in "".join(tokenizer_text(whole.train)).splitlines() if len(line) == 10]
    assert 150 <= len(lines) <= 185
    for part in range(4):
        assert 30 <= sum(part * 240 <= line < (part + 1) * 240 for line in lines) <= 60


def test_the_split_of_the_config_is_that_of_the_tokenizer(tmp_path, run_folder):
    path = tmp_path / "text.txt"
    path.write_text("it's 12345\n\n" * 50)
    prepare_data(DataConfig(source=(str(path),), vocab_size=262, split="llama3"), run_folder, lambda line: None)
    tokenizer = Tokenizer.load(run_folder.tokenizer)
    assert tokenizer.vocabulary.split_pattern == SPLITS["llama3"]
    tokenizer.save(tmp_path / "a.tiktoken")
    loaded = DataConfig(source=(str(path),), tokenizer=str(tmp_path / "a.tiktoken"), split="cl100k")
    prepare_data(loaded, run_folder, lambda line: None)
    assert Tokenizer.load(run_folder.tokenizer).vocabulary == tokenizer.vocabulary


def test_a_split_that_would_have_no_effect_is_refused(tmp_path, run_folder):
    with pytest.raises(ConfigError, match="a byte tokenizer has no split; remove it"):
        DataConfig(tokenizer="byte", split="cl100k")
    train_bpe(["ab ab"], 258).save(tmp_path / "tokenizer.json")
    (tmp_path / "text.txt").write_text("ab " * 100)
    config = DataConfig(
        source=(str(tmp_path / "text.txt"),), tokenizer=str(tmp_path / "tokenizer.json"), split="cl100k"
    )
    with pytest.raises(ConfigError, match=r"tokenizer\.json has another; remove data.split"):
        prepare_data(config, run_folder, lambda line: None)


@pytest.mark.parametrize("cores", [1, 3])
def test_documents_that_are_encoded_at_once_have_the_same_ids(monkeypatch, cores):
    """Batches end inside of documents and span several of them; some are empty."""
    for module in (documents, prepare):
        monkeypatch.setattr(module, "PIECE", 50)
    monkeypatch.setattr(prepare, "usable_cores", lambda: cores)
    monkeypatch.setattr("npllm.tokenizer.tokenizer.WORTH_THREADS", 0)
    texts = ["", "a b " * 200, "", "it's né\n", "x", "a longer text of words and\nlines " * 30, "x", "x", ""]
    tokenizer = train_bpe(texts, 280)
    given = [Document(f"{number}.txt", stored(text)) for number, text in enumerate(texts)]
    reported = []
    found = [
        np.concatenate(list(parts)) for parts in encode_documents(tokenizer, given, lambda *at: reported.append(at))
    ]
    assert [ids.tolist() for ids in found] == [tokenizer.encode(text) for text in texts]
    assert [encode_document(tokenizer, document).tolist() for document in given] == [ids.tolist() for ids in found]
    assert reported[0] == ("0.txt", 0)
    assert len(reported) == {1: 15, 3: 6}[cores]


def test_pieces_are_not_kept_while_a_text_is_encoded():
    """A list of all pieces would take over four times the memory of their tokens."""
    tokenizer = train_bpe(["a b " * 10], 258)
    text = "a b " * 150_000
    tokenizer.encode_documents([text[:100]])
    tracemalloc.start()
    (ids,) = tokenizer.encode_documents([text])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * ids.nbytes


@pytest.mark.parametrize(("line", "side"), [(3, "train"), (97, "val")])
def test_a_character_that_the_tokenizer_lacks_is_named_with_file_and_line(tmp_path, run_folder, line, side):
    """Also in the end of a file that was cut, whose lines do not count from 1."""
    train_char(["the cat\n"]).save(tmp_path / "tokenizer.json")
    lines = ["the cat\n"] * 100
    lines[line - 1] = "the Ω\n"
    (tmp_path / "text.txt").write_text("".join(lines))
    config = DataConfig(source=(str(tmp_path / "text.txt"),), tokenizer=str(tmp_path / "tokenizer.json"))
    assert load_corpus(config.source).held_out == "the end of text.txt"
    with pytest.raises(DataError, match=rf"^text\.txt, line {line}: the character 'Ω'"):
        prepare_data(config, run_folder, lambda line: None)
    assert run_folder.train_shard.exists() == (side == "val")
