"""The folder of a new run after two starts at once, a kill, and a stop signal."""

import errno
import os
import signal
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from small_runs import content, pretrain_arguments, refused, write_text

from npllm.errors import ConfigError
from npllm.files.locks import LOCK
from npllm.runs.new_run import claim_run, discard_untrained, draft_run
from npllm.training import pretrain


def make(path, text="mine"):
    """Make a run folder, without training it."""
    with draft_run(path) as draft:
        draft.config.write_text(text)


def test_the_second_that_prepares_the_same_run_is_refused(tmp_path):
    path = tmp_path / "run"
    with draft_run(path) as draft:
        draft.config.write_text("first")
        with pytest.raises(ConfigError, match="run is being prepared by another process"), draft_run(path):
            pass
    assert content(tmp_path) == {"run/config.toml": b"first"}
    with pytest.raises(ConfigError, match="holds a run already"), draft_run(path):
        pass


def test_what_comes_to_lie_there_meanwhile_is_not_overwritten(tmp_path):
    path = tmp_path / "run"
    late = draft_run(path)
    late.__enter__().config.write_text("late")
    path.mkdir()
    (path / "notes.txt").write_text("early")
    with pytest.raises(ConfigError, match="cannot be made"):
        late.__exit__(None, None, None)
    assert content(tmp_path) == {"run/notes.txt": b"early"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


def test_the_draft_of_a_killed_process_is_thrown_away(tmp_path):
    """Its claim is deleted too. A killed process holds no lock, so its files look like
    those of a process that ended."""
    draft = tmp_path / ".run.draft"
    (draft / "data").mkdir(parents=True)
    for file in (draft / LOCK, draft / "data" / "train.h5", draft / "config.toml", tmp_path / ".run.claim"):
        file.write_text("of a dead process")
    with claim_run(tmp_path / "run", "run") as path:
        make(path)
    assert content(tmp_path) == {"run/config.toml": b"mine"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


def test_a_folder_that_only_has_the_name_of_a_draft_stays(tmp_path):
    draft = tmp_path / ".run.draft"
    draft.mkdir()
    (draft / "letter.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"\.run\.draft exists and is not the draft"), draft_run(tmp_path / "run"):
        pass
    assert content(tmp_path) == {".run.draft/letter.txt": b"mine"}


def test_starts_without_a_name_get_names_of_their_own(tmp_path, monkeypatch):
    """They get the names before they prepare the run. A name that is not used in the
    end becomes free again."""
    monkeypatch.chdir(tmp_path)
    with ExitStack() as starts:
        first, second = (starts.enter_context(claim_run(None, "default")) for _ in range(2))
        assert (first, second) == (Path("runs/default"), Path("runs/default-2"))
        make(second)
        with claim_run(None, "default") as third:
            assert third == Path("runs/default-3")
    with claim_run(None, "default") as path:
        assert path == Path("runs/default")
        make(path)
    with claim_run(None, "default") as path:
        assert path == Path("runs/default-3")
    assert set(content(tmp_path)) == {"runs/default/config.toml", "runs/default-2/config.toml"}


def test_any_folder_with_something_in_it_takes_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    with claim_run(None, "mine") as path:
        assert path == Path("runs/mine")
    (tmp_path / "runs" / "mine" / "notes.txt").touch()
    with claim_run(None, "mine") as path:
        assert path == Path("runs/mine-2")


def test_a_second_start_is_refused_before_it_prepares_anything(tmp_path, capsys):
    """Preparing would have failed with another error: there is no text."""
    out = tmp_path / "run"
    with claim_run(out, "run"):
        arguments = pretrain_arguments(tmp_path / "absent.txt", out)
        assert f"{out} is being prepared by another process" in refused(capsys, *arguments, exit_code=2)
        arguments = ("sft", tmp_path / "absent", "--out", out)
        assert f"{out} is being prepared by another process" in refused(capsys, *arguments, exit_code=2)
    assert "check the path" in refused(capsys, *pretrain_arguments(tmp_path / "absent.txt", out), exit_code=3)
    assert "check the path" in refused(
        capsys, *pretrain_arguments(tmp_path / "absent.txt", tmp_path / "new" / "folder" / "run"), exit_code=3
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_preparation_and_nothing_is_left(tmp_path, capsys, monkeypatch, number):
    def die(*_):
        raise AssertionError("The signal did what it does outside.")

    # By then the data has been written.
    monkeypatch.setattr(pretrain, "held_out_line", lambda *_: signal.raise_signal(number))
    outside = signal.signal(number, die)
    try:
        arguments = pretrain_arguments(write_text(tmp_path), tmp_path / "out" / "run")
        expected = die if number != signal.SIGINT else signal.default_int_handler
        signal.signal(number, expected)
        assert refused(capsys, *arguments, exit_code=130) == "npllm: interrupted"
        assert signal.getsignal(number) is expected
    finally:
        signal.signal(number, outside)
    assert not (tmp_path / "out").exists()


def test_a_signal_that_is_ignored_stays_ignored(tmp_path, monkeypatch, capsys):
    """For example, `nohup` lets a process ignore SIGHUP."""
    outside = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    monkeypatch.setattr(pretrain, "held_out_line", lambda *_: signal.raise_signal(signal.SIGHUP))
    monkeypatch.setattr(pretrain, "build_state", lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        refused(capsys, *pretrain_arguments(write_text(tmp_path), tmp_path / "run"), exit_code=130)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, outside)


def test_only_a_run_that_this_process_made_is_discarded(tmp_path):
    """A run that another process made in its place is kept, and so is a trained one."""
    foreign, own, trained = (tmp_path / name for name in ("foreign", "own", "trained"))
    for path in (foreign, own, trained):
        make(path)
    (trained / "checkpoints" / "step-00000000.h5").write_text("")
    foreign.rename(tmp_path / "elsewhere")
    (foreign / "checkpoints").mkdir(parents=True)
    (foreign / "config.toml").write_text("theirs")
    before = content(foreign) | content(trained)
    for path in (foreign, own, trained, tmp_path / "absent"):
        discard_untrained(path)
    assert not own.exists()
    assert content(foreign) | content(trained) == before
    assert not (foreign / LOCK).exists()
    with draft_run(own) as draft:
        draft.config.write_text("again")


def the_current_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return Path()


def a_link(folder, _):
    (folder.parent / "link").symlink_to(folder)
    return folder.parent / "link"


def the_root_of_a_disk(folder, monkeypatch):
    """It cannot be replaced, nor may a name be made beside it."""
    real_open = os.open

    def open_(path, *rest, **more):
        if Path(path).parent == folder.parent and Path(path).name.startswith("."):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return real_open(path, *rest, **more)

    monkeypatch.setattr(os, "open", open_)
    (folder / "lost+found").mkdir()
    return folder


def left_by_a_killed_process(folder, _):
    (folder / "data").mkdir()
    for name in (".claim", LOCK, "tokenizer.json", "data/train.h5", "data/.val.h5.7.tmp", ".config.toml.7.tmp"):
        (folder / name).write_text("of a dead process")
    return folder


EXISTING = [the_current_folder, a_link, the_root_of_a_disk, left_by_a_killed_process]


@pytest.mark.parametrize("kind", EXISTING)
def test_an_existing_folder_is_filled_where_it_is(tmp_path, monkeypatch, kind):
    """A rename onto it would fail, and only after the whole preparation."""
    folder = tmp_path / "folder"
    folder.mkdir()
    before = folder.stat().st_ino
    out = kind(folder, monkeypatch)
    with claim_run(out, "run") as path:
        with pytest.raises(ConfigError, match="is being prepared by another process"), claim_run(out, "run"):
            pass
        make(path)
    assert content(folder) == {"config.toml": b"mine"}
    assert folder.stat().st_ino == before
    with pytest.raises(ConfigError, match="holds a run already"), claim_run(out, "run"):
        pass


@pytest.mark.parametrize("kind", EXISTING)
@pytest.mark.parametrize("trained", [False, True])
def test_a_start_that_fails_leaves_an_existing_folder_as_it_was(tmp_path, monkeypatch, kind, trained):
    """A file that the user has put there meanwhile is kept."""
    folder = tmp_path / "folder"
    folder.mkdir()
    out = kind(folder, monkeypatch)
    with claim_run(out, "run") as path, suppress(ZeroDivisionError):
        with draft_run(path) as draft:
            draft.config.write_text("mine")
            (folder / "notes.txt").write_text("the user's")
            assert trained or 1 / 0
        (folder / "metrics.jsonl").touch()
        discard_untrained(path)
    assert content(folder) == {"notes.txt": b"the user's"}
    assert not (folder / LOCK).exists()


def test_a_folder_with_a_file_of_the_users_is_not_what_a_killed_process_left(tmp_path):
    left_by_a_killed_process(tmp_path, None)
    (tmp_path / "notes.txt").write_text("the user's")
    before = content(tmp_path)
    with pytest.raises(ConfigError, match="is not an empty folder"), claim_run(tmp_path, "run"):
        pass
    assert content(tmp_path) == before


def test_a_link_to_a_folder_that_is_not_there_yet(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "run")
    with claim_run(tmp_path / "link", "run") as path:
        make(path)
    assert content(tmp_path / "disk") == {"run/config.toml": b"mine"}


@pytest.mark.parametrize("target", ["link", "text.txt"])
def test_a_link_that_leads_to_no_folder_is_refused_before_the_preparation(tmp_path, capsys, target):
    (tmp_path / "link").symlink_to(tmp_path / target)
    (tmp_path / "text.txt").touch()
    message = refused(capsys, *pretrain_arguments(tmp_path / "absent.txt", tmp_path / "link"), exit_code=2)
    assert message.endswith("link exists and is not an empty folder; choose another --out.")
