"""Raw text: what is read, what is refused, and on which side of the split it is."""

import json
import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

from npllm.data import text_files
from npllm.data.corpora import load_corpus
from npllm.data.documents import Document, stored
from npllm.data.sources import ReadingOptions
from npllm.errors import ConfigError, DataError

SHAKESPEARE = Path(__file__).resolve().parents[2] / "../shared/data/tinyshakespeare.txt"


def write_files(folder: Path, names, text="some text about {}\n") -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.format(name))


def names(documents: list[Document]) -> list[str]:
    return [document.name for document in documents]


def test_split_is_fixed_by_the_path_alone(tmp_path):
    write_files(tmp_path / "a", [f"part/{i}.txt" for i in range(0, 200, 2)])
    before = load_corpus(str(tmp_path / "a"), 0.1)
    write_files(tmp_path / "a", [f"part/{i}.txt" for i in range(200)] + ["early.txt", "zz/late.txt"])
    after = load_corpus(str(tmp_path / "a"), 0.1)
    assert set(names(before.val)) <= set(names(after.val))
    assert set(names(before.train)) <= set(names(after.train))
    shutil.copytree(tmp_path / "a", tmp_path / "elsewhere")
    assert load_corpus(str(tmp_path / "elsewhere"), 0.1) == after


def test_frozen_split(tmp_path):
    """If the rule changed, validation files of old runs would become training files."""
    write_files(tmp_path, [f"{i}.txt" for i in range(40)])
    held_out = ["1.txt", "18.txt", "20.txt", "27.txt", "39.txt"]
    assert names(load_corpus(str(tmp_path), 0.1).val) == held_out


def test_every_file_is_on_one_side_in_the_order_of_names(tmp_path):
    files = sorted(["b/x.txt", "b.txt", "C.txt", "ä.txt", *(f"{i}.md" for i in range(50))])
    write_files(tmp_path, files)
    corpus = load_corpus(str(tmp_path), 0.2)
    assert sorted(names(corpus.train) + names(corpus.val)) == files
    assert names(corpus.train) == sorted(names(corpus.train))
    assert names(corpus.val) == sorted(names(corpus.val))
    assert corpus.train_bytes == sum((tmp_path / name).stat().st_size for name in names(corpus.train))
    assert corpus.val_bytes == sum((tmp_path / name).stat().st_size for name in names(corpus.val))


@pytest.mark.parametrize("val_fraction", [1e-9, 0.5, 1 - 1e-9])
def test_two_files_give_one_a_side(tmp_path, val_fraction):
    write_files(tmp_path, ["one.txt", "two.txt"])
    corpus = load_corpus([str(tmp_path / "one.txt"), str(tmp_path / "two.txt")], val_fraction)
    assert {*names(corpus.train), *names(corpus.val)} == {"one.txt", "two.txt"}
    assert len(corpus.train) == len(corpus.val) == 1


def test_a_single_file_is_cut_by_characters(tmp_path):
    path = tmp_path / "one.txt"
    path.write_bytes(("é" * 90 + "\r\n" * 5).encode())
    corpus = load_corpus(str(path), 0.1)
    assert corpus.train == [Document("one.txt", stored("é" * 90))]
    assert corpus.val == [Document("one.txt", stored("\r\n" * 5))]  # line ends as in the file
    assert (corpus.train_bytes, corpus.val_bytes) == (180, 10)


@pytest.mark.parametrize(("val_fraction", "train", "val"), [(1e-17, "ab", "c"), (0.05, "ab", "c"), (0.9, "a", "bc")])
def test_both_parts_of_a_tiny_file_hold_text(tmp_path, val_fraction, train, val):
    path = tmp_path / "tiny.txt"
    path.write_text("abc")
    corpus = load_corpus(str(path), val_fraction)
    assert (corpus.train[0].text, corpus.val[0].text) == (train, val)


def test_a_single_character_cannot_be_split(tmp_path):
    (tmp_path / "one.txt").write_text("a")
    with pytest.raises(DataError, match="one.txt has a single character"):
        load_corpus(str(tmp_path / "one.txt"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"abc\x00def", "binary .*offset 3"),
        (b"two\ncaf\xe9 au lait", "not UTF-8 .*0xe9 in line 2, at offset 7.*iconv"),
        (b"cut \xf0\x9f\x98", "not UTF-8 .*offset 4"),
        ("wide".encode("utf-16"), "is UTF-16 text; convert it with iconv -f UTF-16"),
    ],
)
def test_a_named_file_that_is_not_text_is_refused(tmp_path, data, message):
    path = tmp_path / "bad.txt"
    path.write_bytes(data)
    with pytest.raises(DataError, match=f"bad.txt.*{message}"):
        load_corpus(str(path))


def test_a_folder_passes_over_what_is_no_text_and_says_so(tmp_path):
    write_files(tmp_path, ["good.txt", "deep/er/good.rst", ".hidden.txt", ".git/config", ".git/HEAD"])
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\x00")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "empty.txt").touch()
    write_files(tmp_path, ["records.jsonl"])
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    corpus = load_corpus(str(tmp_path))
    assert {*names(corpus.train), *names(corpus.val)} == {"good.txt", "deep/er/good.rst"}
    left_out = ", ".join(
        [
            f"2 hidden (the first {tmp_path / '.git'})",
            f"1 broken links ({tmp_path / 'broken'})",
            f"1 no ordinary files ({tmp_path / 'pipe'})",
            f"1 empty ({tmp_path / 'empty.txt'})",
            f"1 not UTF-8 ({tmp_path / 'latin.txt'})",
            f"1 binary ({tmp_path / 'photo.jpg'})",
            f"1 jsonl without --data.field ({tmp_path / 'records.jsonl'})",
        ]
    )
    assert corpus.remarks == [f"read 2 files (1 .rst, 1 .txt); left out: {left_out}"]


def test_linked_folders_are_read_and_every_file_once(tmp_path):
    """This holds for a link that leads back too. A folder below the source is read with
    its own name, not with that of a link."""
    write_files(tmp_path / "data", ["own/1.txt", "own/2.txt"])
    write_files(tmp_path / "elsewhere", ["3.txt", "deep/4.txt"])
    (tmp_path / "data" / "a link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "b link").symlink_to(tmp_path / "data" / "own")
    (tmp_path / "data" / "own" / "back").symlink_to(tmp_path / "data")
    (tmp_path / "elsewhere" / "deep" / "self").symlink_to(tmp_path / "elsewhere")
    expected = ["a link/3.txt", "a link/deep/4.txt", "own/1.txt", "own/2.txt"]
    corpus = load_corpus(str(tmp_path / "data"))
    assert sorted(names(corpus.train) + names(corpus.val)) == expected
    assert corpus.remarks == ["read 4 files (4 .txt)"]
    (tmp_path / "link").symlink_to(tmp_path / "data")
    linked = load_corpus(str(tmp_path / "link"))
    assert sorted(names(linked.train) + names(linked.val)) == expected


def test_equal_texts_are_on_one_side(tmp_path):
    for i in range(60):
        write_files(tmp_path, [f"{i}.txt"], text=f"text number {i % 20}")
    corpus = load_corpus(str(tmp_path), 0.2)
    assert not {document.text for document in corpus.train} & {document.text for document in corpus.val}
    assert len(corpus.train + corpus.val) == 60


@pytest.mark.parametrize("sizes", [(6000, 4000), (4000, 6000), (9000, 500, 500), (1000,) * 8])
def test_of_few_files_the_ends_are_held_out(tmp_path, sizes):
    """A whole file would be more than a tenth, but the share is a twentieth."""
    letters = "abcdefghij"
    for letter, size in zip(letters, sizes, strict=False):
        (tmp_path / f"{letter}.txt").write_text(letter * size)
    corpus = load_corpus(str(tmp_path), 0.05)
    assert corpus.val_bytes == sum(sizes) / 20
    assert names(corpus.val) == names(corpus.train) == [f"{letter}.txt" for letter in letters[: len(sizes)]]
    assert [len(document.text) for document in corpus.val] == [size // 20 for size in sizes]
    assert corpus.held_out == f"the end of a.txt and of {len(sizes) - 1} more"


def test_what_is_held_out_is_said(tmp_path):
    write_files(tmp_path, [f"{i}.txt" for i in range(40)])
    assert load_corpus(str(tmp_path), 0.1).held_out == "5 of 40 documents, the first of them 1.txt"
    (tmp_path / "one.txt").write_text("text " * 100)
    assert load_corpus(str(tmp_path / "one.txt"), 0.1).held_out == "the end of one.txt"


def test_a_separator_parts_documents_and_is_no_text(tmp_path):
    """The text of a document decides its side. So inserting a document does not move
    others, and equal documents are on the same side."""
    texts = [f"document {i}\n" for i in range(200)]
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(texts))
    corpus = load_corpus(str(tmp_path / "a.txt"), 0.1, ReadingOptions(separator="<|endoftext|>"))
    assert sorted(document.text for document in corpus.train + corpus.val) == sorted(texts)
    assert 10 <= len(corpus.val) <= 30
    assert corpus.remarks == []
    more = ["the first\n", *texts, texts[3], " \n"]
    (tmp_path / "b.txt").write_text("<|endoftext|>".join(more))
    again = load_corpus(str(tmp_path / "b.txt"), 0.1, ReadingOptions(separator="<|endoftext|>"))
    assert {document.text for document in corpus.val} <= {document.text for document in again.val}
    assert not {document.text for document in again.train} & {document.text for document in again.val}
    assert again.remarks == ["read 1 file (1 .txt); left out: 1 empty documents (b.txt part 203)"]


def test_a_line_of_jsonl_is_a_document(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"id": i, "body": f"text {i} is \n here"}) + "\n" for i in range(50)))
    corpus = load_corpus(str(path), 0.1, ReadingOptions(field="body"))
    assert {document.text for document in corpus.train + corpus.val} == {f"text {i} is \n here" for i in range(50)}
    assert 1 < len(corpus.val) < 10
    with pytest.raises(DataError, match=r"a.jsonl holds records; name the field with the text, as in --data.field"):
        load_corpus(str(path))
    with pytest.raises(
        DataError, match=r"a.jsonl line 1: the field 'text' is missing.* The same holds for all 50 records"
    ):
        load_corpus(str(path), options=ReadingOptions(field="text"))
    path.write_text('{"text": "a"}\n{"text": 1}\n{"text"\n')
    with pytest.raises(DataError, match=r"a.jsonl has 2 bad records of 3.\n  line 2: the field .*\n  line 3: it"):
        load_corpus(str(tmp_path), options=ReadingOptions(field="text"))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"separator": "%%"}, "data.separator is '%%', but no text file has it; correct it, or leave it out."),
        ({"field": "text"}, "data.field is 'text', but no file is .jsonl or .csv; correct it, or leave it out."),
    ],
)
def test_an_option_that_nothing_answers_to(tmp_path, options, complaint):
    write_files(tmp_path, ["a.txt", "b.txt"])
    with pytest.raises(DataError, match=re.escape(complaint)):
        load_corpus(str(tmp_path), options=ReadingOptions(**options))


def test_a_binary_file_is_read_no_further_than_its_first_zero_byte(tmp_path, monkeypatch):
    """So a large binary file takes no more time and memory than a small one."""
    path = tmp_path / "model.bin"
    with path.open("wb") as file:
        file.write(b"letters")
        file.truncate(1 << 29)
    asked = []
    real = text_files.open_bounded

    @contextmanager
    def watched(path, largest):
        with real(path, largest) as (file, n_bytes):
            yield Watched(file, asked), n_bytes

    monkeypatch.setattr(text_files, "open_bounded", watched)
    write_files(tmp_path, ["a.txt", "b.txt"])
    assert load_corpus(str(tmp_path)).remarks == [f"read 2 files (2 .txt); left out: 1 binary ({path})"]
    assert 0 <= min(asked) <= max(asked) <= 1 << 20  # never -1, which reads all of it
    assert sum(asked) < 8 << 20
    monkeypatch.setattr(text_files, "LARGEST_TEXT", 1 << 20)
    assert load_corpus(str(tmp_path)).remarks == [f"read 2 files (2 .txt); left out: 1 too large ({path})"]


class Watched:
    """A file that records the size of each read."""

    def __init__(self, file, asked):
        self.file, self.asked = file, asked

    def read(self, size=-1):
        self.asked.append(size)
        return self.file.read(size)


def test_a_pipe_and_a_device_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for source in (str(tmp_path / "pipe"), "/dev/zero"):
        with pytest.raises(DataError, match="is no ordinary file; check the path"):
            load_corpus(source)


def test_a_pattern_names_files_from_its_fixed_part(tmp_path):
    write_files(tmp_path, ["books/a.txt", "books/old/b.txt", "books/c.md", "d.txt"])
    corpus = load_corpus(str(tmp_path / "books" / "**" / "*.txt"))
    assert {*names(corpus.train), *names(corpus.val)} == {"a.txt", "old/b.txt"}


def test_a_file_whose_name_looks_like_a_pattern(tmp_path):
    write_files(tmp_path, ["data[1].txt", "data1.txt"])
    assert names(load_corpus(str(tmp_path / "data[1].txt")).train) == ["data[1].txt"]


def test_a_file_reached_twice_counts_once(tmp_path):
    write_files(tmp_path, [f"sub/{i}.txt" for i in range(30)])
    (tmp_path / "link.txt").symlink_to(tmp_path / "sub" / "3.txt")
    corpus = load_corpus([str(tmp_path / "sub"), str(tmp_path), str(tmp_path / "sub" / "*.txt")], 0.3)
    texts = [document.text for document in corpus.train + corpus.val]
    assert len(texts) == len(set(texts)) == 30


@pytest.mark.parametrize("source", ["missing.txt", "missing/*.txt", "", "x" * 5000])
def test_a_source_that_is_not_there(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path, ["present.txt"])  # an empty source must not mean the current folder
    with pytest.raises(DataError, match="check the path"):
        load_corpus(source)


def test_nothing_to_read(tmp_path):
    (tmp_path / "empty.txt").touch()
    for source in (str(tmp_path), []):
        with pytest.raises(DataError, match="holds no UTF-8 text"):
            load_corpus(source)


@pytest.mark.parametrize("val_fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_a_fraction_outside_0_1(val_fraction):
    with pytest.raises(ConfigError, match="data.val_fraction"):
        load_corpus("pydoc", val_fraction)


def test_sha256_covers_names_text_and_sides(tmp_path):
    def sha256(files: dict[str, str], val_fraction: float = 0.5) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for name, text in files.items():
            write_files(folder, [name], text)
        return load_corpus(str(folder), val_fraction).sha256

    original = {"a": "text a", "b": "text b", "c": "text c"}
    digests = [
        sha256(original),
        sha256({**original, "a": "text A"}),
        sha256({"aa": "text a", "b": "text b", "c": "text c"}),
        sha256(original, val_fraction=1e-9),
        sha256({"1.txt": "text", "a": "b text"}),
        sha256({"1.txt": "text", "ab": " text"}),  # the same characters, cut elsewhere
    ]
    assert len(set(digests)) == len(digests)
    assert sha256(original) == digests[0]


def test_stdlib_is_real_code_without_tests():
    corpus = load_corpus("stdlib")
    everything = corpus.train + corpus.val
    assert corpus.train_bytes + corpus.val_bytes > 5_000_000
    assert 0.03 < len(corpus.val) / len(everything) < 0.08
    assert 0.02 < corpus.val_bytes / corpus.train_bytes < 0.10
    assert {"argparse.py", "json/decoder.py"} <= set(names(everything))
    folders = {part for name in names(everything) for part in name.split("/")[:-1]}
    assert not folders & {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings"}
    assert not [name for name in names(everything) if name.split("/")[-1].startswith(("test_", "_sysconfigdata"))]


def test_pydoc_is_prose_by_topic():
    corpus = load_corpus("pydoc")
    texts = {document.name: document.text for document in corpus.train + corpus.val}
    assert sum(map(len, texts.values())) > 300_000
    assert "while" in texts["while"]
    assert corpus.val


def test_sources_can_be_combined(tmp_path):
    write_files(tmp_path, ["own.txt"])
    corpus = load_corpus(("pydoc", str(tmp_path / "own.txt")))
    assert "own.txt" in names(corpus.train + corpus.val)
    assert len(corpus.train + corpus.val) == len(load_corpus("pydoc").train + load_corpus("pydoc").val) + 1


@pytest.mark.skipif(not SHAKESPEARE.exists(), reason="the folder of shared test data is absent")
def test_tiny_shakespeare_is_cut_as_usual():
    corpus = load_corpus(str(SHAKESPEARE), 0.1)
    assert (len(corpus.train[0].text), len(corpus.val[0].text)) == (1_003_854, 111_540)
