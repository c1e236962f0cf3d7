"""~ and links in every place where the command line takes a path."""

import shutil
from pathlib import Path

import pytest
from small_runs import pretrain_arguments, refused, run, write_text

import npllm
from npllm.errors import ConfigError
from npllm.files.user_path import user_path
from npllm.tokenizer import Tokenizer

NEWEST = "run/checkpoints/step-00000006.h5"
READING = {
    "a run": ["generate", "HOME/run", "--max-tokens", 1],
    "a checkpoint": ["generate", f"HOME/{NEWEST}", "--max-tokens", 1],
    "a text": ["evaluate", "run", "--data", "HOME/text.txt"],
    "a tokenizer": ["tokenizer", "encode", "HOME/run/tokenizer.json", "the"],
    "the source of a tokenizer": ["tokenizer", "train", "HOME/text.txt", "--vocab-size", 258, "--out", "HOME/t.json"],
    "verify": ["verify", "HOME/run"],
    "resume": ["resume", "HOME/run"],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    (folder / "small.toml").write_text("[train]\nsteps = 6\n")
    assert run(*pretrain_arguments(write_text(folder), folder / "run")) == 0
    return folder


@pytest.fixture
def home(trained, tmp_path, monkeypatch):
    folder = shutil.copytree(trained, tmp_path / "home")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(folder)
    return folder


def in_place_of_home(arguments, name):
    return [str(word).replace("HOME", name) for word in arguments]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("arguments", READING.values(), ids=READING)
def test_home_and_links(home, capsys, arguments):
    (home / "link").symlink_to(home)
    for name in ("~", "link"):
        assert run(*in_place_of_home(arguments, name)) == 0, capsys.readouterr().err
    message = refused(capsys, *in_place_of_home(arguments, "~nosuchuser"), exit_code=2)
    assert "is in ~nosuchuser, but no such home folder is known; write the whole path." in message
    assert not (home / "~").exists()


@pytest.mark.usefixtures("quick")
def test_every_path_of_a_new_run(home, capsys):
    """None of them makes a folder that is called ~."""
    paths = {"--data.source": "~/text.txt", "--data.tokenizer": "~/run", "--recipe": "~/small.toml", "--out": "~/new"}
    arguments = pretrain_arguments("text.txt", "new", data__tokenizer="char")
    words = [*arguments, *(word for option in paths.items() for word in option)]
    assert run(*words) == 0, capsys.readouterr().err
    assert (home / "new" / "config.toml").exists()
    for option, path in paths.items():
        changed = [*words, "--out", "other", option, path.replace("~", "~nosuchuser")]
        assert "is in ~nosuchuser, but" in refused(capsys, *changed, exit_code=2)
    assert not list(home.glob("~*"))


def test_a_link_to_a_checkpoint_and_a_link_in_the_run(home, tmp_path):
    """The one leads into the run from outside, the other out of it to another disk."""
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "newest.h5").symlink_to(home / NEWEST)
    npllm.load(tmp_path / "links" / "newest.h5")
    (home / "run" / "checkpoints").rename(tmp_path / "disk")
    (home / "run" / "checkpoints").symlink_to(tmp_path / "disk")
    for path in (home / "run", home / NEWEST):
        npllm.load(path)


def test_a_checkpoint_outside_of_a_run_is_named(home, tmp_path, capsys):
    (tmp_path / "elsewhere").mkdir()
    copy = shutil.copy(home / NEWEST, tmp_path / "elsewhere" / "copy.h5")
    assert f"{copy} is not in the folder of a run" in refused(capsys, "generate", copy, exit_code=3)


def test_the_same_in_python(home):
    assert user_path("~/run") == home / "run"
    assert user_path(Path("a/~b")) == Path("a/~b")
    npllm.load("~/run")
    Tokenizer.load("~/run").save("~/copy.json")
    assert (home / "copy.json").exists()
    with pytest.raises(ConfigError, match=r"is in ~nosuchuser, but"):
        npllm.load("~nosuchuser/run")
