"""The help of every verb: it fits the terminal, shows first what is used most, and
writes what the parser takes. Values may begin with dashes."""

import inspect
import re
import shlex
import subprocess

import pytest
from small_runs import refused, run

import npllm
from npllm.cli import VERBS, _function_of
from npllm.runs.arguments import deferred, options_of, parse_arguments
from npllm.tokenizer import byte_tokenizer
from npllm.training.stages import STAGES

EVERY_VERB = [*STAGES, *VERBS]
MOST_OPTIONS = 13  # that --help shows; about ten


def help_of(capsys, *words) -> str:
    capsys.readouterr()
    assert run(*words) == 0
    return capsys.readouterr().out


@pytest.fixture(params=[40, 80, 200])
def columns(request, monkeypatch):
    """The width of the terminal, and what the help may take of it."""
    monkeypatch.setenv("COLUMNS", str(request.param))
    return min(request.param, 80)


@pytest.mark.parametrize("verb", ["", *EVERY_VERB])
@pytest.mark.parametrize("flag", ["--help", "--help-all"])
def test_the_help_fits(capsys, columns, verb, flag):
    """But for names that are longer than a line."""
    for line in help_of(capsys, *verb.split(), flag).splitlines():
        assert len(line) <= columns or re.fullmatch(r"  --[\w.]+ [\w|]+", line), line


@pytest.mark.parametrize("verb", EVERY_VERB)
def test_ten_options_first_and_all_of_them_on_request(capsys, verb):
    shown, everything = (help_of(capsys, *verb.split(), flag) for flag in ("--help", "--help-all"))
    names = [option.name for option in options_of(_function_of(verb, [])) if not option.positional]
    assert sorted(re.findall(r"^  --([\w.]+) ", everything, re.MULTILINE)) == sorted(names)
    first = re.findall(r"^  --([\w.]+) ", shown, re.MULTILINE)
    assert len(first) <= MOST_OPTIONS
    assert set(first) <= set(names)
    assert ("--help-all" in shown) == (len(first) < len(names))
    assert len(first) == len(set(first)) >= min(len(names), 6)


@pytest.mark.parametrize("verb", EVERY_VERB)
def test_the_parser_takes_what_the_help_writes(capsys, monkeypatch, verb):
    """Every option with the default that is shown and every choice that is listed."""
    monkeypatch.setenv("COLUMNS", "80")
    everything = " ".join(help_of(capsys, *verb.split(), "--help-all").split())
    assert "None" not in everything
    assert "True" not in everything
    function = deferred(_function_of(verb, []))
    required, with_default = [], 0
    for option in options_of(function):
        if option.default is not inspect.Parameter.empty:
            with_default += not option.positional
        elif option.positional:
            required.append("bash" if verb == "completion" else "x")
        else:
            required.append(f"--{option.name}=x")
    description = r"[^()]*(?:\((?!default:)[^()]*\)[^()]*)*"  # it may have brackets of its own
    shown = re.findall(rf"--([\w.]+) (\S+)(?: \.\.\.)? {description}\(default: ([^)]*)\)", everything)
    assert len(shown) == with_default
    for name, values, default in shown:
        for value in [*shlex.split(default), *(values.split("|") if "|" in values else [])]:
            parse_arguments(function, [f"--{name}={value}", *required], prog="test")


def test_the_narrowest_terminal_gets_help(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1")
    assert help_of(capsys, "generate", "--help")


def test_help_is_a_verb_too(capsys):
    assert help_of(capsys, "help", "tokenizer", "train") == help_of(capsys, "tokenizer", "train", "-h")
    assert help_of(capsys, "help") == help_of(capsys, "--help")
    assert help_of(capsys, "help", "ppo", "--help-all") == help_of(capsys, "ppo", "--help-all")
    assert "did you mean 'pretrain'" in refused(capsys, "help", "pretrian", exit_code=2)


def test_version(capsys):
    assert help_of(capsys, "--version") == f"npllm {npllm.__version__}\n"
    assert help_of(capsys, "pretrain", "--version") == f"npllm {npllm.__version__}\n"


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("--lr", "--optim.lr"),
        ("--n-layer", "--model.n_layer"),
        ("--batch_size", "--batch.size"),
        ("--sed", "--train.seed"),
    ],
)
def test_a_field_without_its_section_is_found(capsys, option, meant):
    message = refused(capsys, "pretrain", option, "1", exit_code=2)
    assert message.endswith(f"{option} is not an option of npllm pretrain; did you mean '{meant}'.")


@pytest.mark.parametrize("text", ["-- SELECT", "-5", "-x", "--text", "--help", "-h", "--debug", "a=b", "none", ""])
def test_a_value_may_begin_with_dashes(capsys, tmp_path, text):
    """After its option with =, after -- as an argument, and bare where it cannot be an
    option."""
    byte_tokenizer().save(tmp_path)
    ids = " ".join(map(str, byte_tokenizer().encode(text))) + "\n"
    assert help_of(capsys, "tokenizer", "encode", tmp_path, "--", text) == ids
    written = []

    def encode(*, text: str = "", number: int = 0) -> None:
        written.append(text)

    assert parse_arguments(encode, [f"--text={text}", "--number", "-5"], prog="test") is None
    assert written == [text]
    if not re.fullmatch(r"--(\w.*)?", text):
        parse_arguments(encode, ["--text", text], prog="test")
        assert written == [text, text]
    if text in ("-- SELECT", "-5", "-x"):
        assert help_of(capsys, "tokenizer", "encode", tmp_path, text) == ids


def test_an_option_is_not_taken_for_a_value(capsys):
    message = refused(capsys, "generate", "run", "--prompt", "--seed", "3", exit_code=2)
    assert message == "npllm: --prompt has no value; write --prompt=--seed if this is its value."


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("npllm pre", {"pretrain", "predict"}),
        ("npllm tokenizer e", {"encode"}),
        ("npllm tokenizer train --v", {"--vocab_size"}),
        ("npllm pretrain --minutes 3 --optim.l", {"--optim.lr"}),
        ("npllm generate --t", {"--temperature", "--top_k", "--top_p"}),
        ("npllm generate runs/", set()),  # a file: bash completes it
    ],
)
def test_completion_in_bash(capsys, typed, expected):
    script = help_of(capsys, "completion", "bash")
    words = shlex.join(typed.split())
    state = f"COMP_WORDS=({words}); COMP_CWORD={len(typed.split()) - 1}"
    test = f'{script}\n{state}; _npllm; printf "%s\\n" "${{COMPREPLY[@]}}"'
    shown = subprocess.run(["bash", "-c", test], capture_output=True, text=True, check=True)
    assert shown.stderr == ""
    assert set(shown.stdout.split()) == expected
