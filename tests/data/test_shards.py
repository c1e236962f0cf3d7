"""Token shards: what is written is what is read."""

import hashlib

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npllm.data.shards import read_shard, write_shard
from npllm.errors import DataError, ResourceError

HASHES = {"tokenizer_sha256": "0123456789abcdef" * 4, "source_sha256": hashlib.sha256(b"text").hexdigest()}


@st.composite
def shards(draw):
    vocab_size = draw(st.sampled_from([1, 256, 65536, 65537, 2**32]))
    eot_id = draw(st.none() | st.integers(0, vocab_size - 1))
    ids = st.integers(0, vocab_size - 1) | st.just(vocab_size - 1)
    return vocab_size, eot_id, draw(st.lists(st.lists(ids, max_size=20), max_size=8))


@settings(deadline=None, max_examples=60)
@given(shard=shards(), n_bytes=st.integers(0, 2**62), dtype=st.sampled_from([np.int64, np.uint64]))
def test_round_trip(tmp_path_factory, shard, n_bytes, dtype):
    vocab_size, eot_id, documents = shard
    path = tmp_path_factory.mktemp("shard") / "train.h5"
    arrays = (np.array(ids, dtype) for ids in documents)
    write_shard(path, arrays, vocab_size=vocab_size, eot_id=eot_id, n_bytes=n_bytes, **HASHES)
    read = read_shard(path)
    end = [] if eot_id is None else [eot_id]
    expected = [token for ids in documents for token in ids + end]
    lengths = [len(ids) + len(end) for ids in documents]
    np.testing.assert_array_equal(read.tokens, np.array(expected, np.int64))
    np.testing.assert_array_equal(read.document_starts, [sum(lengths[:i]) for i in range(len(lengths))])
    assert read.tokens.dtype == (np.uint16 if vocab_size <= 65536 else np.uint32)
    assert read.document_starts.dtype == np.int64
    assert (read.vocab_size, read.eot_id, read.n_bytes) == (vocab_size, eot_id, n_bytes)
    assert (read.tokenizer_sha256, read.source_sha256) == tuple(HASHES.values())


@pytest.mark.parametrize(("vocab_size", "bytes_per_token"), [(65536, 2), (65537, 4)])
def test_tokens_take_two_bytes_up_to_65536(tmp_path, vocab_size, bytes_per_token):
    path = tmp_path / "train.h5"
    write_shard(path, [[vocab_size - 1, 0]], vocab_size=vocab_size, eot_id=None, n_bytes=2, **HASHES)
    assert read_shard(path).tokens.tolist() == [vocab_size - 1, 0]
    assert read_shard(path).tokens.itemsize == bytes_per_token


def test_equal_content_gives_an_equal_file_and_sha256_tells_contents_apart(tmp_path):
    arguments = {"vocab_size": 300, "eot_id": 299, "n_bytes": 5, **HASHES}
    for name in ("a", "b"):
        write_shard(tmp_path / name, [[1, 2], [3]], **arguments)
    write_shard(tmp_path / "c", [[1, 2], [4]], **arguments)
    write_shard(tmp_path / "d", [[1, 2], [3]], **{**arguments, "n_bytes": 6})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    digests = [read_shard(tmp_path / name).sha256 for name in "abcd"]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"documents": [[1], [256]]}, "document 1 .*from 256 to 256 .*256 entries"),
        ({"documents": [[65536]]}, "document 0 "),  # 0 as uint16
        ({"documents": [[1, -1]]}, "from -1 to 1"),
        ({"eot_id": 256}, "256 entries"),
        ({"eot_id": -1}, "from -1"),
        ({"eot_id": 256, "documents": []}, "eot_id is not in the vocabulary"),
        ({"n_bytes": -1}, "n_bytes"),
        ({"tokenizer_sha256": "abc"}, "64 hexadecimal digits"),
        ({"source_sha256": "A" * 64}, "64 hexadecimal digits"),
        ({"vocab_size": 2**32 + 1}, "vocab_size"),
    ],
)
def test_arguments_that_contradict_each_other(tmp_path, change, message):
    arguments = {"documents": [[1, 2]], "vocab_size": 256, "eot_id": None, "n_bytes": 2, **HASHES, **change}
    with pytest.raises(DataError, match=message):
        write_shard(tmp_path / "train.h5", arguments.pop("documents"), **arguments)
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_plain_hdf5_for_others(tmp_path):
    write_shard(tmp_path / "train.h5", [[1, 2], [3]], vocab_size=256, eot_id=9, n_bytes=5, **HASHES)
    with h5py.File(tmp_path / "train.h5", "r") as file:
        assert file["tokens"][:].tolist() == [1, 2, 9, 3, 9]
        assert file["document_starts"][:].tolist() == [0, 3]
        attributes = {name: int(file.attrs[name]) for name in ("version", "vocab_size", "eot_id", "n_bytes")}
        assert attributes == {"version": 1, "vocab_size": 256, "eot_id": 9, "n_bytes": 5}


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ResourceError, match="missing"):
        write_shard(tmp_path / "missing" / "a.h5", [[1]], vocab_size=2, eot_id=None, n_bytes=1, **HASHES)
