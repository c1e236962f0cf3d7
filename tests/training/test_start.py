"""`npllm pretrain --from`: a run that starts from the weights of another one."""

import shutil

import numpy as np
import pytest
from small_runs import checkpoints, pretrain_arguments, refused, run, state_digests, stop_after, write_text

from npllm.runs.checkpoint import load_checkpoint
from npllm.runs.run_folder import load

pytestmark = pytest.mark.usefixtures("quick")
OPTIONS = ["--train.steps", "4", "--optim.lr", "0.003", "--data.val_fraction", "0.1"]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A trained run. Do not change it."""
    folder = tmp_path_factory.mktemp("first")
    assert run(*pretrain_arguments(write_text(folder), folder / "run", data__tokenizer="byte")) == 0
    return folder / "run"


def going_on(first, text, out, *options):
    return ["pretrain", "--recipe", "classic", "--from", first, "--data.source", text, "--out", out, *OPTIONS, *options]


def test_the_run_starts_with_the_weights_and_the_tokenizer_of_the_other(tmp_path, first, capsys):
    text = tmp_path / "notes.txt"
    text.write_text("Other words, which the first run has not read. " * 40)
    assert run(*going_on(first, text, tmp_path / "second", "--train.keep", "9", "--model.dropout", "0.1")) == 0
    printed = capsys.readouterr().out
    assert "from trained weights" in printed
    start = load_checkpoint(checkpoints(tmp_path / "second")[0])
    end = load_checkpoint(checkpoints(first)[-1])
    assert start.description["counters"]["updates"] == 0
    assert np.array_equal(start.arrays["params"], end.arrays["params"])
    assert not start.arrays["adam_v"].any(), "the optimiser starts anew"
    (model, tokenizer), (of_first, tokenizer_of_first) = load(tmp_path / "second"), load(first)
    assert tokenizer.sha256() == tokenizer_of_first.sha256()
    assert (model.config.dropout, of_first.config.dropout) == (0.1, 0.0)
    assert run("verify", tmp_path / "second") == 0


def test_the_run_is_independent_of_the_other_and_of_when_it_stops(tmp_path, first, monkeypatch):
    text, copy = write_text(tmp_path, seed=1), shutil.copytree(first, tmp_path / "copy")
    assert run(*going_on(copy, text, tmp_path / "whole")) == 0
    stop_after(monkeypatch, 2)
    assert run(*going_on(copy, text, tmp_path / "parts")) == 130
    shutil.rmtree(copy)
    assert run("resume", tmp_path / "parts") == 0
    assert state_digests(tmp_path / "parts") == state_digests(tmp_path / "whole")


def test_a_copy_of_the_weights_that_is_damaged_or_gone_is_found(tmp_path, first, capsys):
    out = tmp_path / "second"
    assert run(*going_on(first, write_text(tmp_path), out)) == 0
    start = out / "models" / "start.h5"
    start.write_bytes(start.read_bytes()[:-1])
    assert "start.h5" in refused_listing(capsys, "verify", out)
    start.unlink()
    for path in checkpoints(out):
        path.unlink()
    (out / "checkpoints" / "manifest.json").unlink()
    assert "start.h5" in refused(capsys, "resume", out, exit_code=3), "and not started from random weights"


def refused_listing(capsys, *arguments) -> str:
    """What a verb prints that ends with 3."""
    capsys.readouterr()
    assert run(*arguments) == 3
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    {
        "another shape": (["--model.n_embd", "16"], "n_embd is 16, but {first} was trained with 8; leave it out."),
        "another tokenizer": (["--data.tokenizer", "char"], "must have its tokenizer; leave it out."),
        "no run": (["--from", "{first}/nothing"], "{first}/nothing is not a folder"),
    }.values(),
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_is_made(tmp_path, first, capsys, options, message):
    options = [option.replace("{first}", str(first)) for option in options]
    code = 3 if "--from" in options else 2
    said = refused(capsys, *going_on(first, write_text(tmp_path), tmp_path / "out", *options), exit_code=code)
    assert message.replace("{first}", str(first)) in said
    assert not (tmp_path / "out").exists()


def test_characters_that_the_vocabulary_lacks_are_named(tmp_path, capsys):
    assert run(*pretrain_arguments(write_text(tmp_path), tmp_path / "first")) == 0  # a char tokenizer
    other = tmp_path / "other.txt"
    other.write_text("the cat\n" * 40 + "ça\n")
    said = refused(capsys, *going_on(tmp_path / "first", other, tmp_path / "out"), exit_code=3)
    assert "other.txt" in said
    assert "line 41" in said
    assert "ç" in said
    assert not (tmp_path / "out").exists()
