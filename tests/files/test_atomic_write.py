"""A file is written whole or not at all."""

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import npllm
from npllm.errors import ResourceError
from npllm.files.atomic import write_atomically

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(npllm.__path__[0]).parent)}

FILE_SIZE_LIMIT = """
import resource, signal, sys
from npllm.files.atomic import write_atomically
from npllm.errors import ResourceError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then the write that passes the limit fails, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_atomically(sys.argv[1], bytes(5000))
except ResourceError as error:
    print(error)
"""

KILLED_BEFORE_RENAME = """
import os, signal, sys
from npllm.files.atomic import write_atomically
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
write_atomically(sys.argv[1], b"new")
"""


def test_replaces_the_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    write_atomically(str(path), memoryview(b"new"))
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


def test_the_bytes_are_on_the_disk_before_the_name(tmp_path, monkeypatch):
    events = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor):
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        real_fsync(descriptor)

    def replace(source, target):
        assert Path(source).parent == Path(target).parent  # a rename is atomic within one file system only
        assert Path(source).read_bytes() == b"data"
        events.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_atomically(tmp_path / "file", b"data")
    assert events == ["file", "rename", "folder"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(ResourceError) as caught:
        write_atomically(path, b"new")
    assert str(tmp_path) in str(caught.value)
    assert "No space left" in str(caught.value)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("call", ["open", "replace"])
@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOTDIR])
def test_why_a_write_failed_is_not_hidden_by_the_clean_up(tmp_path, monkeypatch, call, number):
    """A folder in which no file can be made lets none be deleted either. The user must
    read about the file, and not about the temporary one beside it."""

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    def fail_otherwise(path, **_):
        raise PermissionError(errno.EPERM, "Operation not permitted", path)

    monkeypatch.setattr(os, call, fail)
    monkeypatch.setattr(os, "unlink", fail_otherwise)
    with pytest.raises(ResourceError) as caught:
        write_atomically(tmp_path / "file", b"new")
    assert str(caught.value).startswith(f"{tmp_path / 'file'} cannot be written ({os.strerror(number)}); ")


def test_a_write_that_stops_half_way_leaves_no_file(tmp_path):
    command = [sys.executable, "-c", FILE_SIZE_LIMIT, str(tmp_path / "file")]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert "cannot be written" in result.stdout
    assert os.listdir(tmp_path) == []


def test_a_kill_before_the_rename_keeps_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    result = subprocess.run([sys.executable, "-c", KILLED_BEFORE_RENAME, str(path)], env=ENVIRONMENT)
    assert result.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"


def test_a_missing_folder_is_a_plain_error(tmp_path):
    with pytest.raises(ResourceError, match="No such file or directory"):
        write_atomically(tmp_path / "missing" / "file", b"data")
