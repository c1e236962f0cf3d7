"""Tiny runs for tests of training and the command line, and what their folders hold."""

import hashlib
import io
import json
import os
import random
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import npllm
from npllm.cli import main
from npllm.files.locks import LOCK
from npllm.output import TextConsole
from npllm.runs.checkpoint import checkpoint_files, load_checkpoint
from npllm.runs.metrics import read_metrics
from npllm.training import train

# A process that is started as `[*NPLLM, VERB, ...]` with this environment runs the
# package under test, wherever it is installed.
NPLLM = [sys.executable, "-m", "npllm"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(npllm.__path__[0]).parent)}
# Seconds after which a process that hangs is given up. A process that works takes a few
# seconds, on the busiest machine a minute or two, so no test's result depends on this.
PATIENCE = 3600

TINY = {
    "recipe": "classic",  # AdamW and cosine decay: tests know their numbers
    "data.tokenizer": "char",
    "data.val_fraction": 0.1,
    "model.n_layer": 1,
    "model.n_head": 2,
    "model.n_embd": 8,
    "model.block_size": 8,
    "optim.warmup_steps": 2,
    "batch.size": 4,
    "batch.micro_size": 2,
    "batch.ramp_start": None,
    "batch.ramp_steps": 0,
    "train.steps": 6,
}
# Settings with which a run on `broken_text` has loss spikes and goes back.
SPIKING = {
    "model__block_size": 16,
    "model__dropout": 0.1,
    "optim__lr": 0.01,
    "batch__size": 2,
    "train__checkpoint_every": 20,
    "train__eval_every": 20,
    "spikes__window": 64,
    "spikes__min_history": 16,
    "spikes__sigma": 5.0,
    "spikes__margin": 2,
    "spikes__max_rollbacks": 1000,
}


def write_text(folder: Path, n_lines: int = 60, seed: int = 0) -> Path:
    """Write random sentences of a few words, about 33 bytes a line; the file's path."""
    words = ["the", "cat", "dog", "sat", "ran", "on", "under", "a", "mat", "roof", "and", "purred"]
    rng = np.random.default_rng(seed)
    path = folder / "text.txt"
    path.write_text("".join(" ".join(rng.choice(words, 8)) + ".\n" for _ in range(n_lines)))
    return path


def broken_text(folder: Path) -> Path:
    """Write sentences with a line of random signs here and there; the file's path."""
    path, dice = write_text(folder, n_lines=400), random.Random(0)
    lines = path.read_text().splitlines(keepends=True)
    for at in range(37, len(lines), 80):
        lines[at] = "".join(dice.choices("XYZW#@%&", k=60)) + "\n"
    path.write_text("".join(lines))
    return path


def pretrain_arguments(text: Path, out: Path, **changes) -> list[str]:
    """Words of `npllm pretrain` for a tiny model.

    model__n_embd=16 stands for --model.n_embd 16.
    """
    settings = TINY | {name.replace("__", "."): value for name, value in changes.items()}
    options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return ["pretrain", "--data.source", str(text), "--out", str(out), *options]


def run(*arguments) -> int:
    """Run `npllm ARGUMENTS` in this process; its exit code."""
    return main([str(argument) for argument in arguments])


def refused(capsys, *arguments, exit_code: int) -> str:
    """Run `npllm ARGUMENTS`, which must fail with this exit code; its message.

    The message must be one sentence on stderr.
    """
    capsys.readouterr()
    assert run(*arguments) == exit_code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("npllm: ")
    return lines[0]


def shown_on_a_terminal(action: Callable[[Console], object]) -> str:
    """What a terminal gets while action(console) works."""
    console = TextConsole(file=io.StringIO(), force_terminal=True, width=80, _environ={"TERM": "xterm"})
    action(console)
    return console.file.getvalue()


def broken_at_80_columns(table: Table) -> list[str]:
    """The words and figures of a table that 80 columns break over two lines."""
    console = TextConsole(file=io.StringIO(), width=80)
    console.print(table)
    printed = set(re.split(r"[\s│┃]+", console.file.getvalue()))
    texts = (text for column in table.columns for text in (column.header, *column.cells))
    return [word for text in texts for word in str(text).split() if word not in printed]


def stop_after(monkeypatch, *steps: int) -> None:
    """Send SIGINT (Ctrl-C) during each of these steps, the first time it is made."""
    real_updates, remaining = train.updates, set(steps)

    def updates(*args):
        for update in real_updates(*args):
            if update.step in remaining:
                remaining.remove(update.step)
                signal.raise_signal(signal.SIGINT)
            yield update

    monkeypatch.setattr(train, "updates", updates)


def summary(run_folder: Path) -> dict:
    return json.loads((run_folder / "summary.json").read_text())


def checkpoints(run_folder: Path) -> list[Path]:
    """The checkpoint files of a run, oldest first."""
    return checkpoint_files(run_folder / "checkpoints")


def state_digests(run_folder: Path) -> dict[str, str]:
    """SHA-256 of each array of the newest checkpoint: weights and optimizer state."""
    arrays = load_checkpoint(checkpoints(run_folder)[-1]).arrays
    return {name: hashlib.sha256(array).hexdigest() for name, array in arrays.items()}


def untimed_metrics(run_folder: Path) -> list[dict]:
    """The records of metrics.jsonl without the fields that depend on the clock."""
    clocked = {"seconds", "tokens_per_s"}
    return [
        {key: value for key, value in record.items() if key not in clocked}
        for record in read_metrics(run_folder / "metrics.jsonl")
    ]


def content(folder: Path) -> dict[str, bytes]:
    """Relative path -> bytes of every file below a folder, except lock files.

    A run that had no lock file may get one when it is opened.
    """
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != LOCK]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
