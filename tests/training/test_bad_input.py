"""What `npllm pretrain` cannot use: one sentence, its exit code, and no files left."""

import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from small_runs import TINY, content, pretrain_arguments, refused, run, write_text

from npllm.runs.checkpoint import checkpoint_path, load_checkpoint
from npllm.training import pretrain

TEXT = "the cat sat on the mat.\n" * 20


def corrupt_tokenizer(folder: Path) -> Path:
    path = folder / "tokenizer.json"
    path.write_text('{"model": {"vocab": ')
    return path


# name: (text, settings, exit code, what the message says)
BAD = {
    "empty": (b"", {}, 3, "text.txt is empty"),
    "binary": (b"\x89PNG\x00\x00", {}, 3, "text.txt is binary"),
    "Latin-1": ("Müller ".encode("latin-1") * 99, {}, 3, "text.txt is not UTF-8 (invalid byte 0xfc in line 1, at"),
    "absent": (None, {}, 3, "check the path"),
    "shorter than a window": (TEXT.encode(), {"model__block_size": 5000}, 3, "smaller --model.block_size or more text"),
    "nothing to validate on": (TEXT.encode(), {"data__val_fraction": 1e-9}, 3, "leaves fewer than 2 tokens for val.h5"),
    "one character": (b"x", {}, 3, "single character"),
    "no such tokenizer": (TEXT.encode(), {"data__tokenizer": "gpt9.json"}, 3, "data.tokenizer gpt9.json is none of"),
    "vocabulary too large": (
        TEXT.encode(),
        {"data__tokenizer": "bpe", "data__vocab_size": 5000},
        2,
        "vocab_size is 5000, but the training text fills only",
    ),
    "vocabulary too small": (TEXT.encode(), {"data__tokenizer": "bpe", "data__vocab_size": 9}, 2, "vocab_size is 9"),
    "odd heads": (TEXT.encode(), {"model__n_head": 3}, 2, "model.n_head = 3"),
    "odd rotary": (
        TEXT.encode(),
        {"model__position": "rotary", "model__n_embd": 6, "model__n_head": 2},
        2,
        "the head width model.n_embd / model.n_head is 3, which is odd; set model.n_embd to",
    ),
    "ramp down": (TEXT.encode(), {"batch__ramp_start": 9}, 2, "batch.ramp_start = 9 is not between 1 and batch.size"),
}


@pytest.mark.parametrize(("data", "settings", "exit_code", "complaint"), BAD.values(), ids=BAD)
@pytest.mark.usefixtures("quick")
def test_bad_input(tmp_path, capsys, data, settings, exit_code, complaint):
    text, out = tmp_path / "text.txt", tmp_path / "out" / "run"
    if data is not None:
        text.write_bytes(data)
    message = refused(capsys, *pretrain_arguments(text, out, **settings), exit_code=exit_code)
    assert complaint in message
    assert not list(tmp_path.glob("out/*")), "a failed run left something behind"


@pytest.mark.usefixtures("quick")
def test_a_corrupt_tokenizer(tmp_path, capsys):
    path = corrupt_tokenizer(tmp_path)
    arguments = pretrain_arguments(write_text(tmp_path), tmp_path / "out" / "run", data__tokenizer=path)
    assert f"{path} is not valid JSON" in refused(capsys, *arguments, exit_code=3)
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.usefixtures("quick")
def test_not_enough_disk(tmp_path, capsys, monkeypatch):
    usage = namedtuple("usage", "free")
    text, out = write_text(tmp_path), tmp_path / "out" / "run"
    arguments = pretrain_arguments(text, out, train__keep=3)
    assert run(*arguments) == 0
    arrays = load_checkpoint(checkpoint_path(out / "checkpoints", TINY["train.steps"])).arrays
    one_state = sum(array.nbytes for array in arrays.values())
    shutil.rmtree(out)

    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(8 * one_state - 1))
    message = refused(capsys, *arguments, exit_code=5)
    assert "8 checkpoints need" in message
    assert "lower train.keep" in message
    assert not list(tmp_path.glob("out/*"))

    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(8 * one_state))
    assert run(*arguments) == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"model__n_embd": 1_000_000},  # 12 million million parameters
        {"model__block_size": 100_000, "batch__size": 1_000_000, "batch__micro_size": 1_000_000},
    ],
)
def test_a_model_or_a_batch_that_no_memory_holds(tmp_path, capsys, settings):
    """It is refused. Otherwise the system would end the process later."""
    message = refused(
        capsys, *pretrain_arguments(write_text(tmp_path, 9000), tmp_path / "run", **settings), exit_code=5
    )
    assert "Training needs" in message
    assert "lower batch.micro_size" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("quick")
def test_after_a_failure_the_same_command_works(tmp_path, capsys):
    text, out = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("")
    refused(capsys, *pretrain_arguments(text, out), exit_code=3)
    assert "is not a folder" in refused(capsys, "resume", out, exit_code=3)
    write_text(tmp_path)
    assert run(*pretrain_arguments(text, out)) == 0


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError(28, "No space left on device", "x")])
def test_a_preparation_that_breaks_off_leaves_nothing(tmp_path, capsys, monkeypatch, error):
    def break_off(*_):
        raise error

    arguments = pretrain_arguments(write_text(tmp_path), tmp_path / "out" / "run")
    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "held_out_line", break_off)  # by then tokenizer and data exist
        refused(capsys, *arguments, exit_code=130 if error is KeyboardInterrupt else 5)
    assert not list(tmp_path.glob("out/*"))
    assert run(*arguments) == 0


@pytest.mark.parametrize("broken", [False, True])
def test_an_existing_run_is_left_as_it_is(tmp_path, capsys, finished_run, broken):
    before = content(finished_run)
    text = tmp_path / "text.txt"
    text.write_text("" if broken else TEXT)
    message = refused(capsys, *pretrain_arguments(text, finished_run), exit_code=2)
    assert "holds a run already" in message
    assert f"npllm resume {finished_run}" in message
    assert content(finished_run) == before


def test_a_folder_with_other_things_is_left_as_it_is(tmp_path, capsys):
    """Otherwise its own tokenizer.json or data/train.h5 would be lost."""
    folder, file = tmp_path / "project", tmp_path / "file"
    (folder / "data").mkdir(parents=True)
    (folder / "tokenizer.json").write_text("mine")
    (folder / "data" / "train.h5").write_text("mine")
    file.write_text("mine")
    text = write_text(tmp_path)
    before = content(tmp_path)
    for out in (folder, file):
        assert f"{out} exists and is not an empty" in refused(capsys, *pretrain_arguments(text, out), exit_code=2)
    assert "cannot be made" in refused(capsys, *pretrain_arguments(text, file / "run"), exit_code=2)
    assert content(tmp_path) == before


@pytest.mark.usefixtures("quick")
def test_an_empty_folder_can_become_a_run(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    assert run(*pretrain_arguments(write_text(tmp_path), out)) == 0
    assert sorted(os.listdir(tmp_path)) == ["run", "text.txt"]


@pytest.mark.parametrize("verb", ["resume", "generate", "evaluate"])
def test_what_is_no_run(tmp_path, capsys, verb):
    assert "is not a folder" in refused(capsys, verb, tmp_path / "absent", exit_code=3)
    assert "is not a run (config.toml is missing)" in refused(capsys, verb, tmp_path, exit_code=3)
    text = write_text(tmp_path)
    assert str(text) in refused(capsys, verb, text, exit_code=3)


def damage_config(run_folder):
    (run_folder / "config.toml").write_text("[model]\nn_layr = 1\n")
    return 2, "config.toml, line 2: model.n_layr is not a field"


def damage_toml(run_folder):
    (run_folder / "config.toml").write_bytes(b"\x00")
    return 3, "config.toml is not valid TOML"


def other_model(run_folder):
    path = run_folder / "config.toml"
    path.write_text(path.read_text().replace("n_embd = 8", "n_embd = 16"))
    return 2, "step-00000012.h5 holds another model than config.toml describes"


def damage_shard(run_folder):
    (run_folder / "data" / "val.h5").write_bytes(b"no HDF5")
    return 3, "val.h5 is damaged"


def other_tokenizer(run_folder):
    path = run_folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"a"', '"A"'))
    return 3, "train.h5 was not made with"


def no_tokenizer(run_folder):
    (run_folder / "tokenizer.json").unlink()
    return 3, "tokenizer.json cannot be read"


def damage_metrics(run_folder):
    (run_folder / "metrics.jsonl").write_bytes(b"\x00\n")
    return 3, "metrics.jsonl, line 1"


@pytest.mark.parametrize(
    "damage",
    [damage_config, damage_toml, other_model, damage_shard, other_tokenizer, no_tokenizer, damage_metrics],
    ids=lambda damage: damage.__name__,
)
@pytest.mark.usefixtures("quick")
def test_a_damaged_run_is_not_resumed_and_not_changed(tmp_path, capsys, finished_run, damage):
    out = tmp_path / "run"
    shutil.copytree(finished_run, out)
    exit_code, complaint = damage(out)
    before = content(out)
    assert complaint in refused(capsys, "resume", out, exit_code=exit_code)
    assert content(out) == before


@pytest.mark.usefixtures("quick")
def test_files_that_were_skipped_are_told(tmp_path, capsys):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in "abcd":
        (folder / name).write_text(TEXT)
    (folder / "picture.png").write_bytes(b"\x89PNG\x00")
    assert run(*pretrain_arguments(folder, tmp_path / "run")) == 0
    assert f"left out: 1 binary ({folder / 'picture.png'})\n" in capsys.readouterr().out
