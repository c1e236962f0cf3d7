"""A run that can be read and not written, and checkpoints that cannot be read.

Tests may run as root, whom permissions do not stop. So the system calls fail here as
they do on such a disk.
"""

import errno
import os
import shutil

import pytest
from small_runs import pretrain_arguments, refused, run, write_text

READING = [
    ["generate", "RUN", "--max-tokens", "2"],
    ["evaluate", "RUN"],
    ["evaluate", "RUN", "--data", "TEXT"],
    ["verify", "RUN"],
    ["tokenizer", "encode", "RUN", "the cat"],
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("read-only")
    assert run(*pretrain_arguments(write_text(folder), folder / "run")) == 0
    return folder


@pytest.fixture
def copy(trained, tmp_path):
    return shutil.copytree(trained / "run", tmp_path / "run")


def forbid_writing(monkeypatch, folder, number, *, besides=()):
    """Let every system call that changes something below `folder` fail.

    besides: names of files that can be opened for writing nevertheless.
    """
    real_open = os.open

    def fail(path, *_, **__):
        if str(path).startswith(str(folder)):
            raise OSError(number, os.strerror(number), str(path))
        raise AssertionError(f"{path} is changed.")

    def open_(path, flags, *rest, **more):
        if flags & (os.O_WRONLY | os.O_RDWR) and os.path.basename(path) not in besides and path != os.devnull:
            fail(path)
        return real_open(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", open_)
    for name in ("replace", "rename", "unlink", "rmdir", "mkdir", "truncate"):
        monkeypatch.setattr(os, name, fail)


@pytest.mark.parametrize("arguments", READING, ids=" ".join)
def test_a_run_that_cannot_be_written_can_be_used(copy, trained, capsys, monkeypatch, arguments):
    forbid_writing(monkeypatch, copy, errno.EROFS)
    places = {"RUN": copy, "TEXT": trained / "text.txt"}
    assert run(*(places.get(word, word) for word in arguments)) == 0, capsys.readouterr().err


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("besides", [(), (".lock",)])
@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_run_that_cannot_be_written_is_not_resumed(copy, capsys, monkeypatch, number, besides):
    """Where the lock can be opened, the first file that is written names the reason."""
    (copy / "checkpoints" / ".step-00000006.h5.1.tmp").touch()  # a process was killed here
    forbid_writing(monkeypatch, copy, number, besides=besides)
    message = refused(capsys, "resume", copy, exit_code=5)
    assert message.startswith(f"npllm: {copy}")
    assert os.strerror(number) in message
    assert ".tmp" not in message


def is_missing(folder):
    shutil.rmtree(folder)
    return errno.ENOENT


def is_a_file(folder):
    shutil.rmtree(folder)
    folder.touch()
    return errno.ENOTDIR


def is_forbidden(folder):
    return errno.EACCES


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("verb", ["generate", "evaluate", "verify", "resume", "sft"])
@pytest.mark.parametrize("state", [is_missing, is_a_file, is_forbidden])
def test_checkpoints_that_cannot_be_listed_are_not_called_absent(copy, capsys, monkeypatch, state, verb):
    """The words "no checkpoint" would let the user train the run again."""
    folder, real = copy / "checkpoints", os.listdir
    number = state(folder)

    def listdir(path="."):
        if number == errno.EACCES and str(path) == str(folder):
            raise PermissionError(number, os.strerror(number), str(path))
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)
    message = refused(capsys, verb, copy, exit_code=3)
    assert f"{folder} cannot be read ({os.strerror(number)}); " in message
