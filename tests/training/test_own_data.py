"""Own data as it lies around, through the command line: what is read, converted, left
out and refused."""

import gzip
import json
import lzma
from contextlib import nullcontext

import pytest
from small_runs import pretrain_arguments, refused, run

from npllm.files import unpacking
from npllm.runs.config_file import load_config
from npllm.runs.run_folder import RunFolder
from npllm.tokenizer import Tokenizer
from npllm.training import pretrain
from npllm.training.config import RunConfig

SENTENCES = [f"the cat number {i} sat on the mat and purred.\n" for i in range(40)]
TEXT = "".join(SENTENCES)


@pytest.fixture(autouse=True)
def _no_kernels(monkeypatch):
    """What is tested here does not compute."""
    monkeypatch.setattr(pretrain, "compiling_ahead", lambda kinds, console: nullcontext())


@pytest.fixture
def prepared(tmp_path, monkeypatch, capsys):
    """A function that prepares a run and returns its text and what was printed.

    The run is not trained: what is learnt is in its shards.
    """
    monkeypatch.setattr("npllm.training.stage.train_run", lambda run, console, stage, *_: None)

    def prepare(source, **settings) -> tuple[str, str]:
        out = tmp_path / "out" / "run"
        capsys.readouterr()
        assert run(*pretrain_arguments(source, out, data__tokenizer="byte", **settings)) == 0
        folder = RunFolder(out)
        tokenizer = Tokenizer.load(folder.tokenizer)
        text = "".join(tokenizer.decode(shard.tokens[shard.tokens != shard.eot_id]) for shard in folder.load_shards())
        return text, " ".join(capsys.readouterr().out.split("\n"))

    return prepare


def html(text: str) -> bytes:
    lines = "".join(f"<p>{line.replace('cat', '<b>c&#97;t</b>')}</p>" for line in text.splitlines())
    head = "<head><style>p {}</style><script>if (a < b) x()</script></head>"
    return f"<html>{head}<body>{lines}</body></html>".encode()


def zstd(data: bytes) -> bytes:
    return pytest.importorskip("zstandard").compress(data)


def table(texts, columns=("id", "body")) -> bytes:
    rows = [columns, *([str(i), text] for i, text in enumerate(texts))]
    return "".join(",".join('"' + field.replace('"', '""') + '"' for field in row) + "\n" for row in rows).encode()


@pytest.mark.parametrize(
    ("name", "content", "settings"),
    [
        ("a.txt", TEXT.encode(), {}),
        ("a.md", TEXT.encode(), {}),
        ("a.txt.gz", gzip.compress(TEXT.encode()), {}),
        ("a.xz", lzma.compress(TEXT[:500].encode()) + lzma.compress(TEXT[500:].encode()), {}),
        ("a.jsonl", "".join(json.dumps({"body": text}) + "\n" for text in SENTENCES).encode(), {"data__field": "body"}),
        ("a.csv", table(SENTENCES), {"data__field": "body"}),
        ("a.csv.gz", gzip.compress(table(SENTENCES)), {"data__field": "body"}),
        ("latin.txt", TEXT.replace("cat", "Käfer").encode("latin-1"), {"data__encoding": "latin-1"}),
        ("wide.txt", TEXT.replace("cat", "Käfer €").encode("utf-16"), {"data__encoding": "utf-16"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_of_each_kind(tmp_path, prepared, name, content, settings):
    """The texts of records may come in another order: whole ones are held out."""
    (tmp_path / name).write_bytes(content)
    text, _ = prepared(tmp_path / name, **settings)
    expected = TEXT.replace("cat", {"latin.txt": "Käfer", "wide.txt": "Käfer €"}.get(name, "cat"))
    assert sorted(text.splitlines()) == sorted(expected.splitlines())
    assert text == expected or "data__field" in settings


def test_zstd(tmp_path, prepared):
    (tmp_path / "a.txt.zst").write_bytes(zstd(TEXT.encode()))
    assert prepared(tmp_path / "a.txt.zst")[0] == TEXT


def test_a_page_gives_its_text(tmp_path, prepared):
    (tmp_path / "a.html").write_bytes(html(TEXT))
    assert prepared(tmp_path / "a.html")[0] == TEXT.replace("\n", "\n\n").removesuffix("\n")


def test_a_folder_in_one_line(tmp_path, prepared):
    """Each kind of file is taken, and the reasons for leaving files out are counted."""
    folder = tmp_path / "notes"
    for name, content in {
        "a.txt": TEXT,
        "b.txt": TEXT + "b",
        "deep/c.md": TEXT + "c",
        "latin.txt": (TEXT + "é").encode("latin-1"),
        "photo.png": b"\x89PNG\0",
        "old.zip": b"PK\x03\x04....",
        "damaged.gz": gzip.compress(TEXT.encode())[:-9],
        "records.jsonl": "{}\n",
        ".git/config": "[core]",
        "node_modules/x/y.js": "var a",
        "__pycache__/m.py": "pass",
        "drafts/d.txt": "draft",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    text, printed = prepared(folder, data__encoding="latin-1", data__ignore="drafts")
    assert "draft" not in text
    assert "é" in text
    assert "pass" in text  # the given patterns replace the usual ones
    taken, left_out = printed.split("; left out: ")
    assert taken.endswith(
        f"read 6 files (3 .txt, 1 .py, 1 .md, 1 .js); 1 converted from latin-1 ({folder / 'latin.txt'})"
    )
    for part in (
        f"1 hidden ({folder / '.git'})",
        f"1 ignored ({folder / 'drafts'})",
        f"1 binary ({folder / 'photo.png'})",
        f"1 compressed ({folder / 'old.zip'})",
        f"1 damaged ({folder / 'damaged.gz'})",
        f"1 jsonl without --data.field ({folder / 'records.jsonl'})",
    ):
        assert part in left_out
    config = load_config(tmp_path / "out" / "run" / "config.toml", RunConfig)
    assert (config.data.encoding, config.data.ignore) == ("latin-1", ("drafts",))


BAD = {
    "latin-1": ("a.txt", "Käfer".encode("latin-1"), {}, 3, "or give --data.encoding latin-1."),
    "Windows": ("a.txt", "„Käfer“".encode("cp1252"), {}, 3, "or give --data.encoding cp1252."),
    "UTF-16": ("a.txt", TEXT.encode("utf-16"), {}, 3, "is UTF-16 text; convert it with iconv -f UTF-16 -t UTF-8, or"),
    "not the encoding": ("a.txt", b"\xff\x00", {"data__encoding": "ascii"}, 3, "a.txt is"),
    "unknown encoding": ("a.txt", b"a", {"data__encoding": "klingon"}, 2, "data.encoding is 'klingon', which Python"),
    "no text encoding": ("a.txt", b"a", {"data__encoding": "base64"}, 2, "data.encoding is 'base64', which Python"),
    "cut gzip": ("a.gz", gzip.compress(TEXT.encode())[:-9], {}, 3, "a.gz is compressed by gzip, but damaged"),
    "wrong gzip": ("a.gz", gzip.compress(TEXT.encode())[:-8] + b"12345678", {}, 3, "a.gz is compressed by gzip, but"),
    "cut xz": ("a.xz", lzma.compress(TEXT.encode())[:-9], {}, 3, "a.xz is compressed by xz, but damaged"),
    "xz for giants": ("a.xz", b'\xfd7zXZ\0\0\1i\xde"6', {}, 3, "a.xz is compressed by xz, but damaged"),
    "binary in gzip": ("a.gz", gzip.compress(b"abc\0"), {}, 3, "a.gz is binary (a zero byte at offset 3)"),
    "csv without field": ("a.csv", table(SENTENCES), {}, 3, "name the field with the text, as in --data.field text"),
    "csv without column": ("a.csv", table(SENTENCES), {"data__field": "text"}, 3, "the header is 'id, body'; name"),
    "open quote": ("a.csv", b'text\n"abc\n', {"data__field": "text"}, 3, "a.csv line 2 cannot be read (unexpected end"),
}


@pytest.mark.parametrize(("name", "content", "settings", "exit_code", "complaint"), BAD.values(), ids=BAD)
def test_bad_data(tmp_path, capsys, name, content, settings, exit_code, complaint):
    (tmp_path / name).write_bytes(content)
    arguments = pretrain_arguments(tmp_path / name, tmp_path / "out" / "run", **settings)
    assert complaint in refused(capsys, *arguments, exit_code=exit_code)
    assert not list(tmp_path.glob("out/*")), "a failed run left something behind"


def test_a_bomb_is_unpacked_no_further_than_text_would_be(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(unpacking, "ALWAYS_UNPACKED", 1 << 16)
    (tmp_path / "a.gz").write_bytes(gzip.compress(b" " * (8 << 20)))
    message = refused(capsys, *pretrain_arguments(tmp_path / "a.gz", tmp_path / "run"), exit_code=3)
    assert "a.gz unpacks to more than 200 times its size, which text does not" in message


def test_zstd_without_its_package(tmp_path, capsys, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(unpacking, "import_module", missing)
    (tmp_path / "a.zst").write_bytes(b"\x28\xb5\x2f\xfd....")
    message = refused(capsys, *pretrain_arguments(tmp_path / "a.zst", tmp_path / "run"), exit_code=3)
    assert "needs the package zstandard; install it (pip install 'npllm[zst]'), or unpack the file" in message
