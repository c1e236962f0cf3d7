"""Every verb with every kind of standard output: other encodings, closed, full, and a
reader that leaves. Output never ends a training, and nothing in a text is
interpreted."""

import io
import os
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from rich.table import Table
from small_runs import ENVIRONMENT, NPLLM, PATIENCE, TINY, pretrain_arguments, run, summary
from stage_runs import DEMONSTRATIONS, conversations, write_jsonl

from npllm.cli import VERBS
from npllm.errors import DataError, NpllmWarning
from npllm.output import TextConsole, guarded_streams, printable, shell_word, show
from npllm.rlhf.report_card import console_table

pytestmark = pytest.mark.usefixtures("quick")

TEXT = "the cat: le café coûte 3 € ≤ 4, dit-il 🦜.\n" * 40  # neither ASCII nor Latin-1
NOT_UTF_8 = os.fsdecode(b"caf\xe9")
HOSTILE = "[bold]x[/] [/] [link=http://x]y \x1b[31m \x1b]0;title\x07 \r \x9b1m \u202eabc :smile:"
HARMLESS = r"[bold]x[/] [/] [link=http://x]y \x1b[31m \x1b]0;title\x07 \r \x9b1m \u202eabc :smile:"

SMALL = " ".join(f"--{name} {value}" for name, value in TINY.items() if name != "train.steps")
ARGUMENTS = {
    "overview": "--help",
    "help": "help ppo",
    "version": "--version",
    "completion": "completion bash",
    "generate": "generate RUN --prompt 'café ≤' --max_tokens 30",
    "chat": "chat CHAT",
    "evaluate": "evaluate RUN",
    "verify": "verify RUN",
    "encode": "tokenizer encode RUN café",
    "decode": "tokenizer decode RUN 1 2 3",
    "tokenizer": "tokenizer train TEXT --out NEW.json --vocab_size 260",
    "resume": "resume RUN",
    "pretrain": f"pretrain --data.source TEXT --out NEW --train.steps 12 {SMALL}",
    "sft": "sft RUN --data DATA --out NEW --train.steps 2 --train.eval_every 2",
}
LEAVE_A_RESULT = {"tokenizer", "resume", "pretrain", "sft"}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A text, demonstrations, a pretrained run and one that chats. Do not change. The
    name of their folder is not UTF-8."""
    folder = tmp_path_factory.mktemp("places") / NOT_UTF_8
    folder.mkdir()
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    data = write_jsonl(folder / "data.jsonl", conversations(DEMONSTRATIONS))
    found = {"TEXT": text, "DATA": data, "RUN": folder / "run", "CHAT": folder / "chat"}
    shape = {"data__tokenizer": "byte", "model__block_size": 64, "train__steps": 3}
    assert run(*pretrain_arguments(text, found["RUN"], **shape)) == 0
    assert run(*arguments_of("sft", found | {"NEW": found["CHAT"]})) == 0
    return found


def arguments_of(verb, places) -> list[str]:
    return [str(places.get(word, word)) for word in shlex.split(ARGUMENTS[verb])]


def stream_of(kind: str):
    """A standard output as Python makes it."""
    if kind == "closed":
        return None
    if kind == "full":
        return open("/dev/full", "w", encoding="utf-8")
    if kind == "no reader":
        read_end, write_end = os.pipe()
        os.close(read_end)
        return open(write_end, "w", encoding="utf-8")
    return io.TextIOWrapper(io.BytesIO(), encoding=kind)


@pytest.mark.parametrize("kind", ["ascii", "latin-1", "utf-16", "closed", "full", "no reader"])
@pytest.mark.parametrize("verb", ARGUMENTS)
def test_every_verb_with_every_output(places, tmp_path, monkeypatch, verb, kind):
    """A verb that leaves a result does so, and ends well. Of the others, a reader that
    leaves ends them as SIGPIPE would, and a full disk is an error of one sentence."""
    errors, stream = io.StringIO(), stream_of(kind)
    monkeypatch.setattr(sys, "stdin", io.StringIO("café?\n\n"))
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", errors)
    new = {"NEW": tmp_path / "new", "NEW.json": tmp_path / "new.json"}
    exit_code = run(*arguments_of(verb, places | new))
    message = errors.getvalue()
    if verb in LEAVE_A_RESULT:
        assert exit_code == 0, message
        reason = {"full": "No space left on device", "no reader": "its reader has left"}.get(kind)
        assert message == (f"npllm: standard output: {reason}; npllm goes on without it.\n" if reason else "")
    else:
        assert exit_code == {"full": 5, "no reader": 141}.get(kind, 0), message
        full = "npllm: standard output cannot be written (No space left on device); free disk space"
        assert message.startswith(full) if kind == "full" else not message
    if verb in ("pretrain", "sft"):
        assert summary(tmp_path / "new")["steps"] == {"pretrain": 12, "sft": 2}[verb]
    if kind in ("ascii", "latin-1", "utf-16"):
        stream.flush()
        shown = stream.buffer.getvalue().decode(kind)
        assert shown.strip()
        if verb == "generate":
            assert shown.startswith({"ascii": r"caf\xe9 <=", "latin-1": "café <=", "utf-16": "café ≤"}[kind])
    if stream:
        stream.close()


@pytest.mark.parametrize("kind", ["ascii", "closed", "full", "no reader"])
def test_standard_error_of_every_kind_keeps_the_exit_code(monkeypatch, kind):
    stream = stream_of(kind)
    monkeypatch.setattr(sys, "stderr", stream)
    assert run("evaluate", f"{NOT_UTF_8} ≤") == 3
    if kind == "ascii":
        stream.flush()
        assert stream.buffer.getvalue().startswith(rb"npllm: caf\xe9 <= is not a folder")
    if stream:
        stream.close()


def test_a_reader_that_leaves_does_not_end_a_training(places, tmp_path):
    """In a process of its own, where Python flushes the streams at the end."""
    process = subprocess.Popen(
        [*NPLLM, *arguments_of("pretrain", places | {"NEW": tmp_path / "new"})],
        env=ENVIRONMENT | {"PYTHONUNBUFFERED": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline().startswith("trains on")
    process.stdout.close()
    message = process.stderr.read()
    assert process.wait(PATIENCE) == 0
    assert message == "npllm: standard output: its reader has left; npllm goes on without it.\n"
    assert summary(tmp_path / "new")["steps"] == 12


def test_no_file_gets_the_descriptor_of_a_closed_stream(tmp_path):
    """What a library prints would else end in that file."""
    code = "import os; from npllm.output import guarded_streams\n"
    code += f"with guarded_streams(endures=True), open({str(tmp_path / 'file')!r}, 'wb'): os.write(1, b'x')"
    shell = f"exec {shlex.join([sys.executable, '-c', code])} >&-"
    assert subprocess.run(["sh", "-c", shell], env=ENVIRONMENT, timeout=PATIENCE).returncode == 0
    assert (tmp_path / "file").read_bytes() == b""


def test_text_is_shown_and_not_interpreted(capsys, monkeypatch):
    """Rich reads markup in text, also in a table, a rule, a status and a column; it
    passes escape sequences on to the terminal."""
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    shown = io.StringIO()
    console = TextConsole(file=shown, force_terminal=True, color_system=None, width=500)
    console.print(HOSTILE)
    console.print(table)
    console.rule(HOSTILE)
    with console.status(HOSTILE):
        pass
    assert shown.getvalue().count(HARMLESS) >= 5
    for each in ("\x1b[31m", "\x1b]0", "\x07", "\x9b", "\u202e", "\r \\x9b"):
        assert each not in shown.getvalue()


@pytest.mark.parametrize("width", [30, 40, 80, 140])
def test_no_figure_of_a_table_is_cut(width):
    figures = [f"{number}.{number}{number}1" for number in range(9)]
    table = console_table("figures", [f"heading {number}" for number in range(9)], [tuple(figures)])
    console = TextConsole(file=io.StringIO(), width=width)
    console.print(table)
    lines = console.file.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    assert "…" not in console.file.getvalue()
    shown = "".join("".join(lines).split())
    assert all(shown.count(digit) >= "".join(figures).count(digit) for digit in "0123456789.")


def test_errors_show_no_escape_sequence(capsys, monkeypatch):
    def fail():
        raise DataError(HOSTILE)

    monkeypatch.setitem(VERBS, "warmup", fail)
    assert run("warmup") == 3
    assert capsys.readouterr().err == f"npllm: {HARMLESS}\n"


def test_a_terminal_gets_text_printable_and_a_file_gets_it_as_it_is(monkeypatch):
    for is_terminal, expected in ((True, HARMLESS), (False, HOSTILE)):
        stream = io.StringIO()
        stream.isatty = lambda answer=is_terminal: answer
        monkeypatch.setattr(sys, "stdout", stream)
        with guarded_streams(endures=False):
            show(HOSTILE)
        assert stream.getvalue() == f"{expected}\n"


SPLIT = "a\nb\tc\rd\u2028e"  # as the name of a file
WHOLE = r"a\nb\tc\rd\u2028e"


def test_a_name_never_splits_a_message(capsys, tmp_path, monkeypatch):
    """An error, a warning, a line on the console and one of a verb; a listing of bad
    records keeps its lines."""
    monkeypatch.chdir(tmp_path)
    assert run("generate", SPLIT) == 3
    assert run("pretrain", "--data.source", SPLIT, "--out", "out") == 3
    assert run("tokenizer", "encode", SPLIT, "x") == 3
    for line in capsys.readouterr().err.splitlines():
        assert line.startswith("npllm: ")
        assert WHOLE in line

    write_jsonl(tmp_path / SPLIT, [{}, {"prompt": 1}, {"prompt": "a", "response": "b"}])
    (tmp_path / SPLIT).rename(f"{SPLIT}.jsonl")
    assert run("sft", "absent", "--data", f"{SPLIT}.jsonl") == 3
    head, *listing = capsys.readouterr().err.splitlines()
    assert head.startswith(f"npllm: {WHOLE}.jsonl has 2 bad records of 3. ") or head.startswith("npllm: absent")

    monkeypatch.setitem(VERBS, "warmup", lambda: warnings.warn(NpllmWarning(SPLIT), stacklevel=1))
    assert run("warmup") == 0
    assert capsys.readouterr().err == f"npllm: {WHOLE}\n"
    assert "\n" not in shell_word(SPLIT)
    console = TextConsole(file=io.StringIO())
    console.print(SPLIT, soft_wrap=True)
    assert console.file.getvalue() == f"{WHOLE}\n"


def test_line_ends_and_tabs_are_text():
    assert printable("a\tb\r\nc\n") == "a\tb\r\nc\n"


@pytest.mark.parametrize("name", [NOT_UTF_8, "two words", "it's\x1b[1m", "plain", "two\nlines\tand \\n"])
def test_a_command_that_is_shown_can_be_copied(name):
    shell = ["bash", "-c", f"printf %s {shell_word(name)}"]
    assert subprocess.run(shell, stdout=subprocess.PIPE, check=True).stdout == os.fsencode(name)


def test_a_path_in_a_command_is_no_option():
    assert shell_word(Path("--out")) == "./--out"
    assert shell_word("--out") == "--out"
    assert shell_word(Path("/a/-b")) == "/a/-b"
