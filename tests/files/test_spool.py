"""Spools: the same bytes in memory and on the disk, and a disk that is full."""

import errno
from tempfile import SpooledTemporaryFile

import h5py
import numpy as np
import pytest

from npllm.data.shards import read_shard, write_shard
from npllm.errors import ResourceError
from npllm.files import spool
from npllm.files.spool import Spool

OF_SHARD = {
    "vocab_size": 300,
    "eot_id": 299,
    "n_bytes": 9,
    "tokenizer_sha256": "0" * 64,
    "source_sha256": "1" * 64,
}


@pytest.mark.parametrize("in_memory", [4, 1 << 20])
def test_the_chunks_are_all_bytes(tmp_path, monkeypatch, in_memory):
    monkeypatch.setattr(spool, "IN_MEMORY", in_memory)
    file = Spool(tmp_path)
    assert file.write(np.arange(3, dtype="<u2")) == 6
    file.write(b"end")
    assert b"".join(file.chunks()) == b"\0\0\1\0\2\0end"
    assert not list(tmp_path.iterdir())  # the file has no name
    assert b"".join(Spool().chunks()) == b""


def test_a_shard_on_the_disk_is_the_same_file(tmp_path, monkeypatch):
    documents = [np.arange(100), np.arange(7)]
    write_shard(tmp_path / "memory.h5", documents, **OF_SHARD)
    monkeypatch.setattr(spool, "IN_MEMORY", 16)
    write_shard(tmp_path / "disk.h5", (iter([part[:3], part[3:]]) for part in documents), **OF_SHARD)
    assert (tmp_path / "disk.h5").read_bytes() == (tmp_path / "memory.h5").read_bytes()
    assert read_shard(tmp_path / "disk.h5").document_starts.tolist() == [0, 101]


@pytest.mark.parametrize("n_writes", range(3))
def test_a_full_disk_is_one_error_at_the_end(tmp_path, monkeypatch, n_writes):
    """HDF5 would crash the process when it cannot write."""
    real, writes = SpooledTemporaryFile.write, []

    def write(self, data):
        writes.append(len(data))
        if len(writes) > n_writes:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, data)

    monkeypatch.setattr(SpooledTemporaryFile, "write", write)
    image = Spool(tmp_path)
    with h5py.File(image, "w") as file:
        file.create_dataset("tokens", data=np.arange(1000))
    with pytest.raises(ResourceError, match=r"cannot be written \(No space left on device\); free disk space there"):
        list(image.chunks())
