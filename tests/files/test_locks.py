"""One process per run, whatever an editor, `mv` and `rm` do to its files."""

import errno
import fcntl
import os
import shutil
import warnings

import pytest
from reliability.small_training import CONFIG, TOKENS, assert_same_bits, clean_state, make_run, train_on
from small_runs import content

from npllm.errors import ConfigError, NpllmWarning, ResourceError
from npllm.files import locks
from npllm.files.atomic import append, sync, write_atomically
from npllm.files.locks import LOCK, lock_file
from npllm.runs.checkpoint_store import CheckpointStore
from npllm.runs.run_folder import RunFolder
from npllm.training.loop import NextTokenGradients, build_state

TAKEN_AWAY = "was renamed, deleted or replaced while this process worked in it"


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


def assert_refused(run):
    with pytest.raises(ConfigError, match="is being trained by another process"), RunFolder(run.path).lock():
        pass


def test_12_an_edited_config_does_not_let_a_second_process_in(run):
    """Editors and `sed -i` write a new file and give it the name of the old one."""
    with run.lock():
        assert_refused(run)
        (run.path / "config.toml~").write_text("edited")
        os.replace(run.path / "config.toml~", run.config)
        assert_refused(run)
    with run.lock():
        pass


def test_12_a_lock_that_ends_in_a_moment_is_taken(run, monkeypatch):
    """mpiexec ends, the run is resumed at once, and the last rank is still ending."""
    held, naps = lock_file(run.path / LOCK), []
    monkeypatch.setattr(locks.time, "sleep", lambda seconds: (naps.append(seconds), os.close(held)))
    with run.lock():
        assert len(naps) == 1


def nothing(path):
    """Leave the name free. Returns what is at the path: nothing."""
    return content(path)


def another_run(path):
    """Give the name to a run of another process. Returns what is in it."""
    make_run(path)
    (path / LOCK).touch()
    (path / "metrics.jsonl").write_text("theirs\n")
    return content(path)


@pytest.mark.parametrize("step", [7, 8])  # 8: a checkpoint is written after it, by the thread beside the training
@pytest.mark.parametrize("follows", [nothing, another_run])
def test_12_a_run_that_is_renamed_stops_and_goes_on_under_its_new_name(run, tmp_path, follows, step):
    moved, real = tmp_path / "moved", NextTokenGradients(CONFIG, TOKENS)

    def gradients(model, ids, at):
        if at == step:
            run.path.rename(moved)
            follows(run.path)
        return real(model, ids, at)

    with pytest.raises(ResourceError, match=f"{run.path} {TAKEN_AWAY}"):
        train_on(run, CONFIG, gradients)
    assert content(run.path) == follows(tmp_path / "untouched")
    assert_same_bits(train_on(RunFolder(moved), CONFIG), clean_state(CONFIG))


def test_12_everything_that_writes_notices(run, tmp_path):
    with run.lock(), CheckpointStore(run.checkpoints, keep=2, every=4) as store:
        run.path.rename(tmp_path / "moved")
        before = another_run(run.path)
        store.save(build_state(CONFIG, 13), None)
        for write in (
            store.wait,
            lambda: append(run.metrics, b"ours"),
            lambda: append(run.ledger, b"ours", durably=True),
            lambda: write_atomically(run.summary, b"ours"),
        ):
            with pytest.raises(ResourceError, match=TAKEN_AWAY):
                write()
        assert content(run.path) == before
        shutil.rmtree(run.path)
        with pytest.raises(ResourceError, match=TAKEN_AWAY):  # and does not mention the disk
            sync(run.metrics)
    append(tmp_path / "moved" / "metrics.jsonl", b"ours")  # allowed: this process holds no lock


def test_12_a_deleted_lock_does_not_let_two_processes_write(run):
    """The second process makes a new lock, and the first one stops."""
    with run.lock():
        (run.path / LOCK).unlink()
        os.close(lock_file(run.path / LOCK))
        with pytest.raises(ResourceError, match=TAKEN_AWAY):
            append(run.metrics, b"")


def test_a_lock_on_a_file_that_was_deleted_before_it_was_locked_is_none(tmp_path, monkeypatch):
    """Another process releases its claim between the opening and the locking."""
    file, real, n_calls = tmp_path / "claim", fcntl.flock, 0

    def flock(descriptor, operation):
        nonlocal n_calls
        n_calls += 1
        if n_calls == 1:
            file.unlink()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    descriptor = lock_file(file)
    assert n_calls == 2
    assert os.path.samestat(os.fstat(descriptor), file.stat())
    with pytest.raises(BlockingIOError):
        lock_file(file)
    os.close(descriptor)


@pytest.mark.parametrize(
    ("number", "kind", "complaint"),
    [
        (errno.EWOULDBLOCK, ConfigError, "is being trained by another process"),
        (errno.EBADF, ResourceError, r"\.lock cannot be locked \(Bad file descriptor\)"),
        (errno.EIO, ResourceError, r"\.lock cannot be locked \(Input/output error\)"),
    ],
)
def test_an_error_of_the_disk_is_no_other_process(run, monkeypatch, number, kind, complaint):
    monkeypatch.setattr(fcntl, "flock", failing(number))
    with pytest.raises(kind, match=complaint), run.lock():
        pass


def failing(number):
    """A system call that fails with this error."""

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", locks.WITHOUT_LOCKS)
def test_on_a_disk_without_locks_the_work_goes_on_with_one_warning(run, monkeypatch, number):
    monkeypatch.setattr(fcntl, "flock", failing(number))
    monkeypatch.setattr(locks, "_warned", set())
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(2):
            with run.lock():
                write_atomically(run.summary, b"ours")
    assert [warning.category for warning in warned] == [NpllmWarning]
    assert os.strerror(number) in str(warned[0].message)


@pytest.mark.parametrize(("number", "mend"), [(errno.EROFS, "a disk that can be written"), (errno.EACCES, "writable")])
def test_a_folder_that_cannot_be_written_is_no_other_process(run, monkeypatch, number, mend):
    monkeypatch.setattr(os, "open", failing(number))
    with (
        pytest.raises(ResourceError, match=rf"\.lock cannot be locked \({os.strerror(number)}\); .*{mend}"),
        run.lock(),
    ):
        pass


def test_a_run_without_a_lock_gets_one(run):
    """An older version made such a run, or it was copied without hidden files."""
    assert not (run.path / LOCK).exists()
    with run.lock():
        assert_refused(run)
