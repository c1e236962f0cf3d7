"""Hostile files point to other files, fill the memory, never end, or are ambiguous.

Each file differs from a good one in one respect, and its hash, if it has one, is right.
So only the rule under test can refuse it. One process with little memory reads all of
them and reports what happened. A reference to another file leads to a named pipe:
whoever opens it waits for ever.
"""

import json
import os
import resource
import subprocess
import sys
import zlib
from pathlib import Path

import h5py
import numpy as np
import proofs
import pytest
from checkpoint_files import edit, reseal, write_checkpoint
from fuzzing import ENVIRONMENT, checkpoint_file, processor_time, sealed, tiny_state
from small_runs import PATIENCE

from npllm.data.plain_hdf5 import open_file
from npllm.data.shards import read_shard, write_shard
from npllm.errors import DataError, NpllmError
from npllm.runs.checkpoint import USER_BLOCK, model_from_checkpoint, restore_checkpoint
from npllm.runs.checkpoint_store import read_manifest
from npllm.runs.config_file import config_text, load_config
from npllm.runs.ledger import Ledger
from npllm.runs.metrics import read_metrics
from npllm.tokenizer import Tokenizer, pretokenize, train_bpe
from npllm.tokenizer.tokenizer_json import to_json
from npllm.training.loop import RunConfig, build_state

MEMORY = 500 << 20  # bytes beyond those of the process after all imports
LONGEST_READING = 20  # seconds of processor time
NAMES = {
    "checkpoint": "step-00000000.h5",
    "shard": "train.h5",
    "tokenizer": "tokenizer.json",
    "manifest": "manifest.json",
    "config": "config.toml",
    "ledger": "ledger.jsonl",
    "metrics": "metrics.jsonl",
}

LARGE_JSON = "[" + "[]," * (10 * 2**20 // 3) + "[]]"  # 10 MB of text, 30 times as much as Python objects
DEEP_JSON = '{"a":[' * 50_000 + "]}" * 50_000
TWICE_JSON = '{"version": 1, "version": 1, "model": {}, "checkpoints": {}}'
PATTERNS = [r"(?R)a", r"(?r)a", r"\s\Ka", r"(?:(?:a{1000}){1000}){1000}", r"(?x)a{1 0 0 0}", r"(*SKIP)a", "a" * 30_000]


def good_files(folder: Path) -> None:
    """Write a good file of each kind; each hostile file changes one thing in it."""
    write_checkpoint(folder, tiny_state(0), 2.5)
    hashes = {"tokenizer_sha256": "a" * 64, "source_sha256": "b" * 64}
    write_shard(folder / NAMES["shard"], [np.arange(99)], vocab_size=300, eot_id=None, n_bytes=99, **hashes)
    (folder / NAMES["tokenizer"]).write_bytes(to_json(train_bpe(["abab"], 258).vocabulary))
    (folder / NAMES["manifest"]).write_text('{"version": 1, "checkpoints": {}}')
    (folder / NAMES["config"]).write_text(config_text(RunConfig(), {}))
    for name in ("ledger", "metrics"):
        (folder / NAMES[name]).write_text("")
    os.mkfifo(folder / "other.h5")


# Each of these functions puts a hostile dataset in place of a good one.


def external_link(file, name, like):
    file[name] = h5py.ExternalLink("other.h5", f"/{name}")


def soft_link(file, name, like):
    file[name] = h5py.SoftLink("/adam_v")


def virtual(file, name, like):
    layout = h5py.VirtualLayout(shape=like.shape, dtype=like.dtype)
    layout[:] = h5py.VirtualSource("other.h5", name, shape=like.shape)
    file.create_virtual_dataset(name, layout)


def external_storage(file, name, like):
    pipe = str(Path(file.filename).with_name("other.h5"))
    file.create_dataset(name, like.shape, like.dtype, external=[(pipe, 0, like.nbytes)])


def shape_bomb(file, name, like):
    file.create_dataset(name, (2**45,), like.dtype)  # 128 TiB of float32 that are never allocated


def gzip_bomb(file, name, like):
    chunk, n_chunks = 2**26, 64  # 64 MiB of zeros take 64 kB in the file; all chunks are 4 GiB
    shape = chunk // like.itemsize
    data = file.create_dataset(name, (shape * n_chunks,), like.dtype, chunks=(shape,), compression="gzip")
    compressed = zlib.compress(bytes(chunk), 1)
    for start in range(0, shape * n_chunks, shape):
        data.id.write_direct_chunk((start,), compressed)


def unknown_filter(file, name, like):
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_chunk(like.shape)
    creation.set_filter(40_000, h5py.h5z.FLAG_OPTIONAL)
    kind, space = h5py.h5t.py_create(like.dtype), h5py.h5s.create_simple(like.shape)
    data = h5py.h5d.create(file.id, name.encode(), kind, space, creation)
    data.write_direct_chunk((0,), like.tobytes())


def stored(**options):
    return lambda file, name, like: file.create_dataset(name, **({"data": like} | options))


DATASETS = {
    "external link": (external_link, "link to elsewhere"),
    "soft link": (soft_link, "link to elsewhere"),
    "virtual dataset": (virtual, "not stored plainly"),
    "external storage": (external_storage, "not stored plainly"),
    "shape bomb": (shape_bomb, "claims more bytes"),
    "gzip bomb": (gzip_bomb, "not stored plainly"),
    "unknown filter": (unknown_filter, "not stored plainly"),
    "chunked": (stored(chunks=(8,)), "not stored plainly"),
    "object": (stored(data=None, shape=(9,), dtype=h5py.ref_dtype), "is not"),
    "variable length": (stored(data=None, shape=(9,), dtype=h5py.vlen_dtype(np.float32)), "is not"),
    "text": (stored(data=["a", "b"], dtype=h5py.string_dtype()), "is not"),
    "root again": (lambda file, name, like: file.__setitem__(name, file["/"]), "not a dataset"),
}


def with_dataset(path: Path, name: str, put) -> None:
    """Replace a dataset by what `put` makes; a checkpoint's SHA-256 is made right."""
    with h5py.File(path, "r") as file:
        like = file[name][()]

    def replace(file):
        del file[name]
        put(file, name, like)

    if name == "params":
        edit(path, replace)
    else:
        with h5py.File(path, "r+") as file:
            replace(file)


def with_state(value, **options):
    """A function that replaces a checkpoint's attribute `state`."""
    return lambda path: edit(path, lambda file: file.attrs.create("state", value, **options))


def state_twice(path):
    reseal(path, lambda description, _: description.update(val_loss=1.0))
    with h5py.File(path, "r") as file:
        text = file.attrs["state"].decode()
    with_state(np.bytes_(text.replace("{", '{"val_loss": 2.0, ', 1)))(path)


def huge_header(path):
    """HDF5's first format: the root group's header claims two gigabytes elsewhere."""
    image = bytearray(checkpoint_file({}, tiny_state(0).arrays(), libver="earliest"))
    header = USER_BLOCK + int.from_bytes(image[USER_BLOCK + 64 : USER_BLOCK + 72], "little")
    assert image[header + 16 : header + 18] == b"\x10\0"  # the message "continuation"; its offset and length follow
    image[header + 32 : header + 40] = (2**31).to_bytes(8, "little")
    path.write_bytes(sealed(bytes(image)))


def cut(path):
    path.write_bytes(sealed(path.read_bytes()[:-99]))


def deep_model(path):
    """Very many very narrow layers, which the file has room for and does not list."""

    def change(description, file):
        description["model"] |= {"n_layer": 1000, "n_embd": 1, "n_head": 1}
        for name in description["arrays"]:
            del file[name]
            file[name] = np.zeros(2**20, np.float32)

    reseal(path, change)


def written(text: str):
    return lambda path: path.write_text(text)


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def sparse(megabytes: int):
    return lambda path: os.truncate(path, megabytes << 20)


def special_tokens(path):
    document = json.loads(path.read_text())
    added = [{"id": 257 + i, "content": f"<|{i:0>200}|>", "special": True} for i in range(700)]
    path.write_text(json.dumps(document | {"added_tokens": added}))


def split_by(pattern: str):
    """A function that gives a tokenizer this regular expression as split pattern."""

    def change(path):
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
        pre_tokenizer = {"type": "Sequence", "pretokenizers": [split, byte_level]}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"pre_tokenizer": pre_tokenizer}))

    return change


def setting(name: str, value: object):
    """A function that writes a config.toml with this one value."""
    section, field = name.split(".")
    return written(f"[{section}]\n{field} = {value}\n")


TEXTS = {"large": (LARGE_JSON, ""), "deep": (DEEP_JSON, "nested too deeply"), "twice": (TWICE_JSON, "object twice")}
CASES = {
    **{
        f"{kind}: {what}": (kind, lambda path, name=name, put=put: with_dataset(path, name, put), message)
        for kind, name in (("checkpoint", "params"), ("shard", "tokens"))
        for what, (put, message) in DATASETS.items()
        if kind == "checkpoint" or what in ("gzip bomb", "unknown filter", "root again", "text")
    },
    "checkpoint: state of 10 MB": ("checkpoint", with_state(np.bytes_(LARGE_JSON)), "longer than 1048576 bytes"),
    "checkpoint: deep state": ("checkpoint", with_state(np.bytes_(DEEP_JSON)), "nested too deeply"),
    "checkpoint: key twice": ("checkpoint", state_twice, "object twice"),
    "checkpoint: variable state": ("checkpoint", with_state("{}"), "not text of a fixed length"),
    "checkpoint: states": ("checkpoint", with_state([b"{}", b"{}"]), "another type or shape"),
    "checkpoint: object state": ("checkpoint", with_state(None, shape=(), dtype=h5py.ref_dtype), "not text"),
    "checkpoint: huge header": ("checkpoint", huge_header, "allocation failed"),
    "checkpoint: deep model": ("checkpoint", deep_model, "its table lists other parameters|another model"),
    "checkpoint: truncated": (
        "checkpoint",
        lambda path: path.write_bytes(sealed(path.read_bytes()[:-99])),
        "truncated",
    ),
    **{f"{kind}: pipe": (kind, pipe, "ordinary file") for kind in ("checkpoint", "tokenizer", "config")},
    **{
        f"{kind}: {what}": (kind, written(text), message)
        for kind in ("tokenizer", "manifest")
        for what, (text, message) in TEXTS.items()
    },
    **{
        f"{kind}: {what}": (kind, written(TEXTS[what][0] + "\n"), "line 1, is not")
        for kind in ("ledger", "metrics")
        for what in ("deep", "twice")
    },
    "tokenizer: 70 MB": ("tokenizer", sparse(70), "larger than 64 MB"),
    "tokenizer: long special tokens": ("tokenizer", special_tokens, "special tokens of more than"),
    **{f"tokenizer: {pattern[:30]}": ("tokenizer", split_by(pattern), "split pattern") for pattern in PATTERNS},
    "ledger: 70 MB": ("ledger", sparse(70), "larger than 64 MB"),
    "config: 10 MB": ("config", sparse(10), "larger than 1 MB"),
    "config: deep": ("config", written("a = " + "[" * 100_000), "not valid TOML"),
    "config: long key": ("config", written("a." * 50_000 + "a = 1"), "key with too many parts"),
    "config: long key in a table": (
        "config",
        written('a = ["""x"""", {' + "a." * 50_000 + "a = 1}]"),
        "too many parts",
    ),
    "config: twice": ("config", written("[model]\nn_layer = 1\nn_layer = 1"), "not valid TOML"),
    "config: digits": ("config", setting("train.seed", "0x" + "f" * 9999), "too many digits"),
    "config: option": ("config", setting("data.source", '["a", "--help"]'), "looks like an option"),
    **{
        f"config: {name} = {value}": ("config", setting(name, value), name.split(".")[1])
        for name, value in (
            *(
                ("model.n_layer", 10**9),
                ("model.n_layer", 10**12),
                ("model.n_embd", 10**12),
                ("model.block_size", 10**12),
            ),
            *(("batch.size", 10**12), ("train.steps", 10**15), ("spikes.window", 2**63), ("optim.warmup_steps", 2**64)),
        )
    },
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, dict]:
    """case -> `errors`, one a reader, and the names of the files that were `opened`."""
    folder = tmp_path_factory.mktemp("hostile")
    for place, (kind, change, _) in enumerate(CASES.values()):
        case = folder / str(place)
        case.mkdir()
        good_files(case)
        change(case / NAMES[kind])
    command = [sys.executable, "-X", "faulthandler", __file__, str(folder)]
    environment = ENVIRONMENT | {"PYTHONPATH": f"{ENVIRONMENT['PYTHONPATH']}{os.pathsep}{Path(__file__).parent.parent}"}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_a_hostile_file_is_refused_by_name(outcomes, case):
    kind, _, message = CASES[case]
    assert outcomes[case]["errors"]
    for error in outcomes[case]["errors"]:
        assert error["type"] in ("DataError", "RefusedFile", "ConfigError", "ResourceError"), error
        assert NAMES[kind] in error["message"] or error["type"] == "ResourceError"
        assert any(part in error["message"] for part in message.split("|")), error
        assert len(error["message"]) < 1000
    proofs.count(proofs.FILES)


@pytest.mark.parametrize("case", CASES)
def test_no_other_file_is_opened(outcomes, case):
    assert set(outcomes[case]["opened"]) <= {NAMES[CASES[case][0]], "statm"}


def test_the_good_files_are_read(tmp_path):
    """Good files are accepted, so a hostile one is refused only for its change."""
    good_files(tmp_path)
    assert readers().keys() == NAMES.keys()
    for kind, read in readers().items():
        for step in read:
            step(tmp_path / NAMES[kind])


def test_memory_is_limited_while_an_hdf5_file_is_open(tmp_path):
    good_files(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open_file(tmp_path / NAMES["shard"]), pytest.raises(MemoryError):
        np.empty(2**31, np.uint8)
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    np.empty(2**31, np.uint8)


def test_a_split_pattern_that_takes_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(pretokenize, "LEAST_TIME", 0.1)
    good_files(tmp_path)
    split_by(r"(?:a|a)+$|\s+")(tmp_path / NAMES["tokenizer"])
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.decode(tokenizer.encode("a few words")) == "a few words"
    with pytest.raises(DataError, match="split pattern takes too long on a text of 201 characters"):
        tokenizer.encode("a" * 200 + "b")


def readers() -> dict[str, list]:
    """kind -> the functions that read a file of this kind."""
    state = tiny_state(0)

    def manifest(path):
        if why := read_manifest(path.parent)[1]:
            raise DataError(why)

    return {
        "checkpoint": [model_from_checkpoint, lambda path: restore_checkpoint(path, state)],
        "shard": [read_shard],
        "tokenizer": [Tokenizer.load],
        "manifest": [manifest],
        "config": [lambda path: build_state(load_config(path, RunConfig), vocab_size=99)],
        "ledger": [Ledger],
        "metrics": [read_metrics],
    }


def outcome(read, path: Path) -> dict[str, str]:
    try:
        with processor_time(LONGEST_READING):
            read(path)
    except NpllmError as error:
        return {"type": type(error).__name__, "message": str(error)}
    except BaseException as error:  # also SystemExit, which would end the process silently
        return {"type": f"not typed: {type(error).__name__}", "message": str(error)[:1000]}
    else:
        return {"type": "none", "message": "it was read"}


def read_all(folder: Path) -> None:
    """The process that reads all files; it prints the outcomes as JSON."""
    good = folder / "good"
    good.mkdir()
    good_files(good)
    by_kind = readers()
    for kind, read in by_kind.items():  # reads good files first, so that all imports are done before the limit
        for step in read:
            step(good / NAMES[kind])
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    opened: list[str] = []
    sys.addaudithook(lambda event, args: opened.append(Path(str(args[0])).name) if event == "open" else None)
    outcomes = {}
    for place, (case, (kind, _, _)) in enumerate(CASES.items()):
        opened.clear()
        errors = [outcome(read, folder / str(place) / NAMES[kind]) for read in by_kind[kind]]
        outcomes[case] = {"errors": errors, "opened": list(opened)}
    print(json.dumps(outcomes))


if __name__ == "__main__":
    read_all(Path(sys.argv[1]))
