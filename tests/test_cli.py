"""The command line: help, exit codes, one sentence per error, verbs on runs."""

import errno
import io
import os
import subprocess
import sys

import pytest
from small_runs import ENVIRONMENT, NPLLM, PATIENCE, pretrain_arguments, refused, run, write_text

from npllm import cli
from npllm.cli import VERBS
from npllm.errors import DataError, Interrupted, ResourceError, TrainingError
from npllm.files import standard_input
from npllm.runs.arguments import given_values
from npllm.tokenizer import Tokenizer, byte_tokenizer
from npllm.training.config import load_recipe


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run with a byte vocabulary; no test may change it."""
    folder = tmp_path_factory.mktemp("trained")
    arguments = pretrain_arguments(write_text(folder), folder / "run", data__tokenizer="byte", train__steps=2)
    assert run(*arguments) == 0
    return folder / "run"


def output(capsys, *arguments) -> str:
    capsys.readouterr()
    assert run(*arguments) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_of_every_verb(capsys, verb, flag):
    shown = output(capsys, *verb.split(), flag)
    assert f"usage: npllm {verb}" in shown
    assert " ".join(VERBS[verb].__doc__.splitlines()[0].split()) in " ".join(shown.split())
    if verb not in ("resume", "verify", "import", "warmup", "tokenizer encode", "tokenizer decode", "completion"):
        assert "(default: " in shown  # the others have no options


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [([], 2), (["--help"], 0), (["-h"], 0), (["tokenizer"], 2), (["tokenizer", "--help"], 0), (["demo"], 2)],
    ids=str,
)
def test_the_overview_lists_every_verb(capsys, arguments, exit_code):
    assert run(*arguments) == exit_code
    shown = capsys.readouterr().out
    for verb in VERBS:
        assert f"\n  {verb} " in shown


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["pretrian"], "'pretrian' is not a verb of npllm; did you mean 'pretrain'; npllm --help lists them."),
        (["tokenizer", "encod"], "did you mean 'tokenizer encode'"),
        (["xyzzy"], "'xyzzy' is not a verb of npllm; npllm --help lists them."),
        (["--recipe", "default"], "'--recipe' is not a verb"),
        (["generate"], "run"),
        (["generate", "runs/x", "--temprature", "1"], "did you mean '--temperature'"),
        (["generate", "runs/x", "--max-token", "1"], "did you mean '--max_tokens'"),
        (["generate", "runs/x", "runs/y"], "runs/y"),
        (["generate", "runs/x", "--top_k", "few"], "--top_k"),
        (["evaluate", "runs/x", "--data"], "--data"),
        (["tokenizer", "train", "text.txt"], "--out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_usage_is_one_sentence(capsys, arguments, complaint):
    assert complaint in refused(capsys, *arguments, exit_code=2)


@pytest.mark.parametrize(
    ("error", "exit_code", "message"),
    [
        (DataError("a bad file."), 3, "a bad file."),
        (TrainingError("it diverged."), 4, "it diverged."),
        (ResourceError("the disk is full."), 5, "the disk is full."),
        (Interrupted("saved."), 130, "saved."),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 5, "out of memory; lower batch.micro_size, model.block_size or model.n_embd."),
        (
            OSError(errno.ENOSPC, "No space left on device", "x.json"),
            5,
            "x.json cannot be written (No space left on device); free disk space there or choose another folder.",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "x.json"),
            5,
            "x.json cannot be written (Read-only file system); copy the folder to a disk that can be written.",
        ),
        (OSError(errno.EACCES, "Permission denied", "x.json"), 3, "x.json: Permission denied; check the path."),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_exit_codes(capsys, monkeypatch, error, exit_code, message):
    def fail():
        raise error

    monkeypatch.setitem(VERBS, "resume", fail)
    assert refused(capsys, "resume", exit_code=exit_code) == f"npllm: {message}"
    with pytest.raises(type(error)):
        run("resume", "--debug")


def test_an_error_that_is_a_bug_is_not_hidden(monkeypatch):
    def fail():
        raise ZeroDivisionError

    monkeypatch.setitem(VERBS, "resume", fail)
    with pytest.raises(ZeroDivisionError):
        run("resume")


def test_the_process_ends_with_the_exit_code():
    process = subprocess.run([*NPLLM, "frobnicate"], env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE)
    assert process.returncode == 2
    assert process.stdout == ""
    assert process.stderr.startswith("npllm: 'frobnicate' is not a verb")


def test_a_reader_that_leaves_is_no_error(tmp_path):
    byte_tokenizer().save(tmp_path)
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [*NPLLM, "tokenizer", "encode", str(tmp_path), "text"]
    buffered = ENVIRONMENT | {"PYTHONUNBUFFERED": ""}  # then the output meets the closed pipe only at the end
    pipes = {"stdout": write_end, "stderr": subprocess.PIPE}
    process = subprocess.run(command, env=buffered, **pipes, text=True, timeout=PATIENCE)
    os.close(write_end)
    assert (process.returncode, process.stderr) == (141, "")


def test_generate_prints_the_prompt_and_goes_on(capsys, trained):
    def text(*options):
        return output(capsys, "generate", trained, "--prompt", "the ", "--max-tokens", "20", *options)

    first = text("--seed", "1")
    assert first.startswith("the ")
    assert first.endswith("\n")
    assert len(first) > len("the \n")
    assert text("--seed", "1") == first
    assert text("--seed", "2") != first
    assert text("--temperature", "0") == text("--temperature", "0", "--seed", "9") == text("--top_k", "1")
    assert text("--top_p", "1e-9") == text("--temperature", "0")
    checkpoint = trained / "checkpoints" / "step-00000002.h5"
    assert output(capsys, "generate", checkpoint, "--prompt=the ", "--max_tokens=20", "--seed=1") == first


def test_generate_from_nothing(capsys, trained):
    assert len(output(capsys, "generate", trained, "--max_tokens", "9")) > 1
    assert output(capsys, "generate", trained, "--max_tokens", "0", "--prompt=--x") == "--x\n"


@pytest.mark.parametrize(
    "option", [["--temperature", "-1"], ["--top_k", "0"], ["--top_p", "0"], ["--seed", "-1"], ["--max_tokens", "-1"]]
)
def test_generate_refuses_before_it_prints(capsys, trained, option):
    assert run("generate", trained, "--prompt", "the", *option) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert option[0].lstrip("-") in captured.err


def test_a_prompt_that_is_no_text(capsys, trained):
    assert "surrogate" in refused(capsys, "generate", trained, "--prompt", "caf\udce9", exit_code=3)


def test_tokenizer_verbs(capsys, tmp_path, monkeypatch):
    text, out = write_text(tmp_path), tmp_path / "tokenizer.json"
    assert f"{out}: 280 tokens" in output(capsys, "tokenizer", "train", text, "--out", out, "--vocab_size", "280")
    tokenizer = Tokenizer.load(out)
    assert tokenizer.vocab_size == 280

    sentence = "the cat purred 🦜"
    ids = output(capsys, "tokenizer", "encode", out, sentence)
    assert ids.split() == [str(i) for i in tokenizer.encode(sentence)]
    assert output(capsys, "tokenizer", "decode", out, *ids.split()) == sentence + "\n"
    assert output(capsys, "tokenizer", "encode", tmp_path, sentence) == ids  # a folder with one

    monkeypatch.setattr(sys, "stdin", io.StringIO(sentence))
    assert output(capsys, "tokenizer", "encode", out) == ids
    monkeypatch.setattr(sys, "stdin", io.StringIO(ids))
    assert output(capsys, "tokenizer", "decode", out) == sentence + "\n"


def test_tokenizer_verbs_refuse(capsys, tmp_path, monkeypatch):
    text, out = write_text(tmp_path), tmp_path / "tokenizer.json"
    byte_tokenizer().save(out)
    before = out.read_bytes()
    train = ["tokenizer", "train", text, "--out", out]
    assert "vocab_size is 99999" in refused(capsys, *train, "--vocab_size", "99999", exit_code=2)
    assert out.read_bytes() == before
    absent = tmp_path / "absent" / "tokenizer.json"
    message = refused(capsys, "tokenizer", "train", text, "--out", absent, "--vocab_size", "260", exit_code=5)
    assert str(absent) in message
    assert "no token with id 257" in refused(capsys, "tokenizer", "decode", out, "257", exit_code=3)
    monkeypatch.setattr(sys, "stdin", io.StringIO("12 cat"))
    assert "whole numbers between spaces" in refused(capsys, "tokenizer", "decode", out, exit_code=3)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), encoding="utf-8"))
    assert "Standard input is not UTF-8" in refused(capsys, "tokenizer", "encode", out, exit_code=3)


def test_standard_input_without_an_end(tmp_path, capsys, monkeypatch):
    byte_tokenizer().save(tmp_path / "tokenizer.json")
    monkeypatch.setattr(standard_input, "LARGEST_INPUT", 1000)
    for text, exit_code in (("a" * 1000, 0), ("a" * 1001, 3)):
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        assert run("tokenizer", "encode", tmp_path / "tokenizer.json") == exit_code
    assert "Standard input has more than 1,000 characters; split it." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["--recipe", "x"], "x"),
        (["--recipe=x=y"], "x=y"),
        (["--recipe", "x", "--recipe=z"], "z"),
        (["--recipe=z", "--recipe", "x"], "x"),
        (["--other", "x"], None),
        (["--recipe"], None),
    ],
    ids=str,
)
def test_which_recipe_is_meant(arguments, value):
    assert given_values(arguments).get("recipe") == value


def test_pretrain_without_arguments_is_the_default_recipe(monkeypatch):
    jobs = []
    monkeypatch.setattr("npllm.training.stage.train_run", lambda run, console, stage, *_: None)
    monkeypatch.setattr(
        "npllm.training.stage.create_run", lambda stage, inputs, path, console: jobs.append((inputs, path))
    )
    assert cli.main(["pretrain"]) == 0
    inputs, path = jobs[0]
    assert inputs.config == load_recipe("default")
    assert path.parts[-2] == "runs"
