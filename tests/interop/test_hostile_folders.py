"""Folders of Hugging Face that were made to do damage: one sentence, exit code 3."""

import json
import os
import struct

import pytest
from interop.small_models import FAMILIES, small_model
from small_runs import refused, run

from npllm.interop import huggingface
from npllm.tokenizer import byte_tokenizer

pytest.importorskip("safetensors")
pytest.importorskip("ml_dtypes")

NORM = "model.norm.weight"


@pytest.fixture
def folder(tmp_path):
    huggingface.save(small_model(**FAMILIES["llama tied"]), byte_tokenizer(), tmp_path / "llama")
    return tmp_path / "llama"


def header(change):
    """Damage to the header of the weights: `change` gets its table of tensors."""

    def damage(folder):
        path = folder / "model.safetensors"
        content = path.read_bytes()
        (n,) = struct.unpack("<Q", content[:8])
        table = json.loads(content[8 : 8 + n])
        changed = json.dumps(change(table) or table).encode()
        path.write_bytes(struct.pack("<Q", len(changed)) + changed + content[8 + n :])

    return damage


def written(name, content):
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def linked(name, target):
    def damage(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return damage


def pipe(name):
    def damage(folder):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return damage


def config(**fields):
    def damage(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return damage


def index_to(name):
    return written("model.safetensors.index.json", json.dumps({"weight_map": {NORM: name}}))


DEEP = "[" * 100_000 + "]" * 100_000
DAMAGES = {
    "outside": (index_to("../other.safetensors"), "outside of its folder"),
    "absolute": (index_to("/etc/passwd"), "outside of its folder"),
    "parent": (index_to(".."), "no ordinary file"),
    "a file that is a number": (index_to(1), "outside of its folder"),
    "nothing": (index_to("missing.safetensors"), "missing.safetensors cannot be read"),
    "overlapping": (header(lambda table: table[NORM].update(data_offsets=[0, 64])), "cannot be read"),
    "behind the end": (header(lambda table: table[NORM].update(data_offsets=[2**40, 2**40 + 64])), "cannot be read"),
    "backwards": (header(lambda table: table[NORM].update(data_offsets=[64, 0])), "cannot be read"),
    "2^63": (header(lambda table: table[NORM].update(shape=[2**63])), "cannot be read"),
    "a product of 2^64": (header(lambda table: table[NORM].update(shape=[2**32, 2**32])), "cannot be read"),
    "negative": (header(lambda table: table[NORM].update(shape=[-16])), "cannot be read"),
    "no numbers": (header(lambda table: table[NORM].update(dtype="PICKLE")), "cannot be read"),
    "long header": (written("model.safetensors", struct.pack("<Q", 2**63) + b"{}"), "cannot be read"),
    "empty": (written("model.safetensors", b""), "cannot be read"),
    "pickles": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        "has pickled weights, which may run any code",
    ),
    "tensor twice": (
        lambda folder: (
            (folder / "again.safetensors").write_bytes((folder / "model.safetensors").read_bytes()),
            written(
                "model.safetensors.index.json",
                json.dumps({"weight_map": {NORM: "model.safetensors", "x": "again.safetensors"}}),
            )(folder),
        ),
        "has the tensor",
    ),
    "deep config": (written("config.json", '{"a": ' + DEEP + "}"), "nested too deeply"),
    "deep index": (written("model.safetensors.index.json", '{"weight_map": ' + DEEP + "}"), "nested too deeply"),
    "deep tokenizer": (written("tokenizer.json", '{"a": ' + DEEP + "}"), "nested too deeply"),
    "large config": (written("config.json", '{"a": "' + "b" * (5 << 20) + '"}'), "is larger than 4 MB"),
    "long number": (written("config.json", '{"vocab_size": ' + "9" * 5000 + "}"), "too large for a number"),
    "key twice": (written("config.json", '{"n": 1, "n": 2}'), "in one object twice"),
    "loop of links": (linked("model.safetensors", "model.safetensors"), "cannot be read"),
    "device": (linked("config.json", "/dev/zero"), "no ordinary file"),
    "device of weights": (linked("model.safetensors", "/dev/zero"), "no ordinary file"),
    "another file": (linked("model.safetensors", "/etc/passwd"), "cannot be read"),
    "pipe": (pipe("model.safetensors"), "no ordinary file"),
    "pipe of a tokenizer": (pipe("tokenizer.json"), "no ordinary file"),
    "wide": (config(hidden_size=2**40), "but (257, 1099511627776)"),
    "wide heads": (config(head_dim=2**40), "model.head_dim is 1099511627776; set it from 1 to"),
    "wide everywhere": (
        config(hidden_size=2**62, head_dim=2**20, intermediate_size=2**20),
        "describes a network that no memory holds",
    ),
    "deep network": (config(num_hidden_layers=1024), "are missing"),
    "negative heads": (config(num_attention_heads=-4), "describes no network"),
    "no heads": (config(num_key_value_heads=0), "describes no network"),
    "a boolean for a number": (config(num_hidden_layers=True), "no whole number"),
    "a list for a family": (config(model_type=["llama"]), "model_type"),
    "lists for fields": (config(attention_bias=[], tie_word_embeddings={}), "has neither true nor false for"),
    "a number for layers": (config(layer_types=5), "layer_types"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_one_sentence_and_exit_code_3(folder, tmp_path, capsys, damage, message):
    damage(folder)
    assert message in refused(capsys, "import", folder, "--out", tmp_path / "run", exit_code=3)
    assert not (tmp_path / "run").exists()


def test_links_of_a_download_cache_are_followed(folder, tmp_path, capsys):
    """The folders that `huggingface_hub` makes are links to files elsewhere."""
    (tmp_path / "snapshot").mkdir()
    for path in folder.iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    assert run("import", tmp_path / "snapshot", "--out", tmp_path / "run") == 0


def test_a_strangers_template_is_not_executed(folder, tmp_path, monkeypatch, capsys):
    jinja2 = pytest.importorskip("jinja2")
    monkeypatch.setattr(jinja2.Environment, "from_string", lambda *_: pytest.fail("a template was read"))
    monkeypatch.setattr(jinja2.Environment, "compile", lambda *_: pytest.fail("a template was compiled"))
    evil = "{{ ''.__class__.__mro__[1].__subclasses__() }}{% for i in range(10**12) %}x{% endfor %}"
    (folder / "chat_template.jinja").write_text(evil)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": evil}))
    assert run("import", folder, "--out", tmp_path / "run") == 0
    assert run("generate", folder, "--max_tokens", 1) == 0
    assert run("export", tmp_path / "run", "--out", tmp_path / "again") == 0
    assert not (tmp_path / "again" / "chat_template.jinja").exists()
