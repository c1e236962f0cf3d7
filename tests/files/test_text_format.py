"""A byte order mark, compressed files and other encodings, in every kind of file."""

import bz2
import gzip
import io
import json
import lzma
import zipfile

import pytest

from npllm.data.records import Demonstration, Labelled, read_demonstrations, read_labelled
from npllm.data.text_files import read_text
from npllm.errors import DataError
from npllm.runs.config_file import load_config
from npllm.tokenizer import Tokenizer, byte_tokenizer
from npllm.tokenizer.tokenizer_json import to_json
from npllm.training.config import RunConfig


def zipped(data):
    image = io.BytesIO()
    with zipfile.ZipFile(image, "w") as archive:
        archive.writestr("text.txt", data)
    return image.getvalue()


LINE = json.dumps({"prompt": "p", "response": "r"}).encode()
TABLE = "text{0}label\nfirst{0}a\nsecond{0}b\n"
ROWS = [Labelled("first", "a"), Labelled("second", "b")]
# name of the file: (its content, its reader, what the reader returns)
FILES = {
    "a.txt": (b"text\n", read_text, "text\n"),
    "a.jsonl": (LINE, read_demonstrations, [Demonstration("p", "r")]),
    "a.json": (b"[" + LINE + b"]", read_demonstrations, [Demonstration("p", "r")]),
    "a.csv": (TABLE.format(",").encode(), read_labelled, ROWS),
    "a.tsv": (TABLE.format("\t").encode(), read_labelled, ROWS),
    "labels.txt": (b"a first\nb second\n", read_labelled, ROWS),
    "a.toml": (b"[train]\nsteps = 7\n", lambda path: load_config(path, RunConfig).train.steps, 7),
    "tokenizer.json": (None, lambda path: Tokenizer.load(path).vocab_size, 257),
}
OTHERWISE = {
    "gzip": (gzip.compress, "is compressed by gzip; unpack it with gunzip."),
    "bzip2": (bz2.compress, "is compressed by bzip2; unpack it with bunzip2."),
    "xz": (lzma.compress, "is compressed by xz; unpack it with unxz."),
    "zstd": (lambda data: b"\x28\xb5\x2f\xfd" + data, "is compressed by zstd; unpack it with zstd -d."),
    "zip": (zipped, "is a zip archive; unpack it with unzip"),
    "PDF": (lambda data: b"%PDF-1.7" + data, "is a PDF file; convert it to text"),
    "UTF-16": (lambda data: data.decode().encode("utf-16"), "is UTF-16 text; convert it with iconv -f UTF-16 -t UTF-8"),
}


def content_of(name):
    """The file in UTF-8 without a mark."""
    return FILES[name][0] or to_json(byte_tokenizer().vocabulary)


@pytest.mark.parametrize("name", FILES)
def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path, name):
    _, read, expected = FILES[name]
    for mark in (b"", b"\xef\xbb\xbf"):
        (tmp_path / name).write_bytes(mark + content_of(name))
        assert read(tmp_path / name) == expected


@pytest.mark.parametrize(("change", "complaint"), OTHERWISE.values(), ids=OTHERWISE)
@pytest.mark.parametrize("name", sorted(FILES.keys() - {"a.txt"}))  # a text is unpacked
def test_a_file_in_another_format_is_named_with_what_unpacks_it(tmp_path, name, change, complaint):
    """The advice was iconv, or to correct each line."""
    (tmp_path / name).write_bytes(change(content_of(name)))
    with pytest.raises(DataError) as caught:
        FILES[name][1](tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name} {complaint}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_byte_that_is_not_utf8_is_named_with_its_line(tmp_path, name):
    (tmp_path / name).write_bytes(content_of(name) + b"\n\n# caf\xe9")
    line = content_of(name).count(b"\n") + 3
    with pytest.raises(DataError, match=rf"{name} .*(line {line}.* UTF-8|UTF-8 .* line {line}).*iconv"):
        FILES[name][1](tmp_path / name)
