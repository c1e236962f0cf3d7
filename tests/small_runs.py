"""Tiny runs for the tests of training and of the command line: text, arguments, and what a run folder holds."""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np

import npllm
from npllm.cli import main
from npllm.files.locks import LOCK
from npllm.runs.checkpoint import checkpoint_files, load_checkpoint
from npllm.runs.metrics import read_metrics
from npllm.training import train

# Started as `[*NPLLM, VERB, ...]` with this environment, a test's process runs the package under test, wherever it is.
NPLLM = [sys.executable, "-m", "npllm"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(npllm.__path__[0]).parent)}
# Seconds after which a process that hangs is given up. What works takes a few, on the
# busiest machine a minute or two: no verdict depends on it.
PATIENCE = 3600

TINY = {
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


def write_text(folder: Path, n_lines: int = 60, seed: int = 0) -> Path:
    """A file of random sentences from few words; about 33 bytes a line."""
    words = ["the", "cat", "dog", "sat", "ran", "on", "under", "a", "mat", "roof", "and", "purred"]
    rng = np.random.default_rng(seed)
    path = folder / "text.txt"
    path.write_text("".join(" ".join(rng.choice(words, 8)) + ".\n" for _ in range(n_lines)))
    return path


def pretrain_arguments(text: Path, out: Path, **changes) -> list[str]:
    """`npllm pretrain` of a tiny model; model__n_embd=16 stands for --model.n_embd 16."""
    settings = TINY | {name.replace("__", "."): value for name, value in changes.items()}
    options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return ["pretrain", "--data.source", str(text), "--out", str(out), *options]


def run(*arguments) -> int:
    """`npllm ARGUMENTS` in this process; its exit code."""
    return main([str(argument) for argument in arguments])


def refused(capsys, *arguments, exit_code: int) -> str:
    """Run `npllm ARGUMENTS`, which must end with this exit code and one sentence on stderr. Returns the sentence."""
    capsys.readouterr()
    assert run(*arguments) == exit_code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("npllm: ")
    return lines[0]


def stop_after(monkeypatch, *steps: int) -> None:
    """Press Ctrl-C while each of these steps is made for the first time."""
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
    """Of a run, oldest first."""
    return checkpoint_files(run_folder / "checkpoints")


def state_digests(run_folder: Path) -> dict[str, str]:
    """SHA-256 of each array of the newest checkpoint: the weights and the optimiser's moments."""
    arrays = load_checkpoint(checkpoints(run_folder)[-1]).arrays
    return {name: hashlib.sha256(array).hexdigest() for name, array in arrays.items()}


def untimed_metrics(run_folder: Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    clocked = {"seconds", "tokens_per_s", "mfu"}
    return [
        {key: value for key, value in record.items() if key not in clocked}
        for record in read_metrics(run_folder / "metrics.jsonl")
    ]


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but for locks: a run may get one that had none."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != LOCK]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
