"""Hostile files that claim to be token shards.

Each differs from a good shard in one respect only, so the rule that the message names
is the one that refuses it.
"""

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import proofs
import pytest
from small_runs import ENVIRONMENT, PATIENCE

from npllm.data.shards import read_shard, write_shard
from npllm.errors import DataError

TOKENS = np.arange(200, dtype=np.uint16)


@pytest.fixture
def shard(tmp_path) -> Path:
    path = tmp_path / "train.h5"
    hashes = {"tokenizer_sha256": "a" * 64, "source_sha256": "b" * 64}
    write_shard(path, [TOKENS[:150], TOKENS[150:]], vocab_size=256, eot_id=None, n_bytes=200, **hashes)
    return path


def assert_refused(path, message):
    with pytest.raises(DataError, match=message):
        read_shard(path)
    proofs.count(proofs.FILES)


def external_link(file):
    with h5py.File(Path(file.filename).with_name("other.h5"), "w") as other:
        other["tokens"] = TOKENS
    file["tokens"] = h5py.ExternalLink("other.h5", "/tokens")


def soft_link(file):
    file["tokens"] = h5py.SoftLink("/document_starts")


def dangling_link(file):
    file["tokens"] = h5py.SoftLink("/nowhere")


def virtual(file):
    with h5py.File(Path(file.filename).with_name("other.h5"), "w") as other:
        other["tokens"] = TOKENS
    layout = h5py.VirtualLayout(shape=TOKENS.shape, dtype=TOKENS.dtype)
    layout[:] = h5py.VirtualSource("other.h5", "tokens", shape=TOKENS.shape)
    file.create_virtual_dataset("tokens", layout)


def external_storage(file):
    raw = Path(file.filename).with_name("raw.bin")
    raw.write_bytes(TOKENS.tobytes())
    file.create_dataset("tokens", TOKENS.shape, TOKENS.dtype, external=[(str(raw), 0, TOKENS.nbytes)])


def variable_length(file):
    file.create_dataset("tokens", (200,), h5py.vlen_dtype(np.uint16))


def enumerated(file):
    file.create_dataset("tokens", data=TOKENS, dtype=h5py.enum_dtype({"A": 1}, np.uint16))


def stored(**options):
    """Make a dataset with these options; the values are right unless the options change
    them."""
    return lambda file: file.create_dataset("tokens", **({"data": TOKENS} | options))


def unallocated(file):
    file.create_dataset("tokens", (2**45,), "<u2")  # 64 TiB of zeros in a file of 3 kB


def extra_dataset(file):
    file["tokens"], file["more"] = TOKENS, TOKENS


def other_name(file):
    file["token"] = TOKENS


def committed_type(file):
    file["tokens"] = np.dtype("<u2")


PLAINLY, UINT16, EXACTLY = "not stored plainly", "tokens is not uint16", "exactly tokens and document_starts"


@pytest.mark.parametrize(
    ("put", "message"),
    [
        (external_link, "tokens is a link to elsewhere"),
        (soft_link, "tokens is a link to elsewhere"),
        (dangling_link, "tokens is a link to elsewhere"),
        (virtual, PLAINLY),
        (external_storage, PLAINLY),
        (stored(compression="gzip"), PLAINLY),
        (stored(chunks=(50,)), PLAINLY),
        (stored(chunks=(50,), fletcher32=True), PLAINLY),
        (stored(maxshape=(None,)), PLAINLY),
        (stored(data=TOKENS.astype("<u4")), UINT16),
        (stored(data=TOKENS.astype("<i2")), UINT16),
        (stored(data=TOKENS.astype(">u2")), UINT16),
        (stored(data=TOKENS.astype("<f4")), UINT16),
        (stored(data=np.zeros(200, [("a", "<u2")])), UINT16),
        (stored(data=b"text"), UINT16),
        (stored(data=None, shape=(200,), dtype=h5py.ref_dtype), UINT16),
        (variable_length, UINT16),
        (enumerated, UINT16),
        (stored(data=TOKENS.reshape(2, 100)), "one-dimensional"),
        (stored(data=TOKENS[0]), "one-dimensional"),
        (stored(data=h5py.Empty("<u2")), "."),
        (unallocated, "claims more bytes"),
        (extra_dataset, EXACTLY),
        (other_name, EXACTLY),
        (lambda file: None, EXACTLY),
        (lambda file: file.create_group("tokens"), "HDF5 reports"),
        (committed_type, "HDF5 reports"),
        (stored(data=TOKENS[:150]), "SHA-256"),
        (stored(data=TOKENS[::-1]), "SHA-256"),
        (stored(data=TOKENS + np.uint16(100)), "a token is not in the vocabulary"),
        (stored(data=TOKENS[:100]), "not ascending inside the tokens"),
    ],
)
def test_a_replaced_dataset_is_refused(shard, put, message):
    with h5py.File(shard, "r+") as file:
        del file["tokens"]
        put(file)
    assert_refused(shard, f"train.h5 .*{message}")


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        ([1, 150], "does not start at 0"),
        ([0, -1], "not ascending"),
        ([0, 201], "not ascending"),
        ([0], "n_documents differs"),
        ([0, 151], "SHA-256"),
    ],
)
def test_document_starts_that_cannot_be(shard, starts, message):
    with h5py.File(shard, "r+") as file:
        del file["document_starts"]
        file["document_starts"] = np.array(starts, "<i8")
    assert_refused(shard, message)


@pytest.mark.parametrize(
    ("name", "value", "dtype", "message"),
    [
        ("version", 2, "<i8", "version 2 and this npllm reads version 1"),
        ("vocab_size", 199, "<i8", "a token is not in the vocabulary"),
        ("vocab_size", 0, "<i8", "vocab_size is out of range"),
        ("vocab_size", 65537, "<i8", "tokens is not uint32"),
        ("vocab_size", 257, "<i8", "SHA-256"),
        ("vocab_size", 256, "<i4", "vocab_size has another type or shape"),
        ("vocab_size", [256, 256], "<i8", "vocab_size has another type or shape"),
        ("eot_id", 256, "<i8", "eot_id is not in the vocabulary"),
        ("eot_id", -2, "<i8", "eot_id is not in the vocabulary"),
        ("n_bytes", -1, "<i8", "n_bytes is negative"),
        ("n_bytes", 199, "<i8", "SHA-256"),
        ("n_documents", 3, "<i8", "n_documents differs"),
        ("source_sha256", "b" * 64, h5py.string_dtype(), "source_sha256 has another type or shape"),
        ("source_sha256", b"\xff" * 64, "S64", "HDF5 reports|hexadecimal"),
        ("source_sha256", b"g" * 64, "S64", "hexadecimal"),
        ("more", 1, "<i8", "unknown attributes"),
    ],
)
def test_attributes_that_cannot_be(shard, name, value, dtype, message):
    with h5py.File(shard, "r+") as file:
        file.attrs.create(name, value, dtype=dtype)
    assert_refused(shard, message)


@pytest.mark.parametrize("name", ["version", "sha256"])
def test_a_missing_attribute(shard, name):
    with h5py.File(shard, "r+") as file:
        del file.attrs[name]
        file.attrs.create("other", 1, dtype="<i8")
    assert_refused(shard, f"the attribute {name} is missing")


@pytest.mark.parametrize("data", [b"", b"plain text", b"\x89HDF\r\n\x1a\n", bytes(4096)])
def test_a_file_that_is_no_hdf5(tmp_path, data):
    path = tmp_path / "notes.h5"
    path.write_bytes(data)
    assert_refused(path, "notes.h5 is damaged or no token shard")


def test_storage_that_reaches_behind_the_end_of_the_file(shard):
    """The file is a sparse gigabyte, cut after 4 kB. The end of file in its superblock
    is set to match."""
    with h5py.File(shard, "r+") as file:
        del file["tokens"]
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple((2**29,))
        h5py.h5d.create(file.id, b"tokens", h5py.h5t.STD_U16LE, space, creation)
    os.truncate(shard, 4096)
    with open(shard, "r+b") as file:
        file.seek(40)
        file.write((4096).to_bytes(8, "little"))
    assert_refused(shard, "claims more bytes|invalid dataset size")  # newer HDF5 sees it first


def test_a_path_without_a_file(tmp_path):
    for path in (tmp_path / "missing.h5", tmp_path):
        assert_refused(path, "does not exist")


FUZZ = """
import random, sys
import numpy as np
from npllm.data.shards import read_shard
from npllm.errors import DataError

path, good = sys.argv[1], open(sys.argv[1], "rb").read()
original, rng, refused = read_shard(path), random.Random(0), 0

def mutate(data):
    kind, at = rng.randrange(3), rng.randrange(len(data) - 8)
    if kind == 0:
        return data[:at]
    if kind == 1:
        data[at] ^= 1 << rng.randrange(8)
    else:
        data[at : at + 8] = rng.choice([b"\\xff" * 8, bytes(8), at.to_bytes(8, "little"), rng.randbytes(8)])
    return data

for trial in range(1000):
    with open(path, "wb") as file:
        file.write(mutate(bytearray(good)))
    try:
        shard = read_shard(path)
    except DataError as error:
        refused += 1
        assert path in str(error), error
        continue
    # What is accepted is the original: the change fell on a byte without meaning.
    assert shard[2:] == original[2:], trial
    assert all(np.array_equal(a, b) for a, b in zip(shard[:2], original[:2])), trial
print(refused)
"""


def test_mutated_files_are_refused_or_mean_the_same(shard):
    """The files are read in another process, so that a crash of the HDF5 library fails
    this test and does not end the others."""
    command = [sys.executable, "-c", FUZZ, str(shard)]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 500
    proofs.count(proofs.FILES, int(result.stdout))
