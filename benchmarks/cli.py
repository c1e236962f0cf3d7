"""The benchmarks' command line."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks import (
    checkpoint,
    gemm,
    generate,
    heads,
    kernels,
    learn,
    parity,
    parity_gguf,
    parity_lm_eval,
    parity_peft,
    scale,
    startup,
    tokenizer,
    train,
)
from benchmarks.configs import CONFIGS
from benchmarks.ladder import climb, roofline, view
from benchmarks.machine import machine_facts
from benchmarks.tables import Row
from npllm.cli import explain
from npllm.data.corpora import load_corpus
from npllm.errors import ConfigError, NpllmError
from npllm.files.atomic import append, write_atomically
from npllm.output import READER_LEFT, TextConsole, guarded_streams
from npllm.report.plots import draw_if_possible

ConfigName = Literal["cpu", "mid", "baby", "gpt2", "default"]
StageName = Literal["sft", "reward", "ppo"]


def train_command(
    *,
    configs: tuple[ConfigName | StageName, ...] = ("cpu", "mid", "baby", "gpt2", "default", "sft", "reward", "ppo"),
    rounds: int = 5,
    peers: bool = True,
    json: Path | None = None,
) -> None:
    """Tokens per second and memory of training steps. Peer: PyTorch.

    A step is forward, backward, clipping and AdamW.

    Args:
        configs: sizes of model and batch; stages, each compared with plain training
        rounds: timed steps of each, or bursts of short steps
        peers: time the peers too, in the interpreter that NPLLM_PEERS_PYTHON names
        json: file to write the figures to as well
    """
    facts = introduce(rounds, json)
    publish(train, train.measure(configs, rounds, 1e9 * facts["peak_gflops"], peers), facts, json)


def generate_command(*, rounds: int = 5, peers: bool = True, json: Path | None = None) -> None:
    """Tokens per second of generation. Peer: Hugging Face transformers.

    The model has GPT-2's size and a KV cache; the batch is 1.

    Args:
        rounds: timed texts of each
        peers: time the peers too, in the interpreter that NPLLM_PEERS_PYTHON names
        json: file to write the figures to as well
    """
    facts = introduce(rounds, json)
    rows = generate.measure(generate.GPT2, rounds, 1e9 * facts["stream_gb_per_s"], peers)
    publish(generate, rows, facts, json)


def scale_command(
    *,
    configs: tuple[ConfigName, ...] = ("cpu", "mid"),
    rounds: int = 5,
    peers: bool = True,
    json: Path | None = None,
) -> None:
    """Tokens per second of training by threads and ranks. Peer: PyTorch DDP.

    Args:
        configs: sizes of model and batch
        rounds: timed steps of each, or bursts of short steps
        peers: time the peers too, in the interpreter that NPLLM_PEERS_PYTHON names
        json: file to write the figures to as well
    """
    facts = introduce(rounds, json)
    publish(scale, scale.measure(configs, rounds, peers), facts, json)


def checkpoint_command(
    *, configs: tuple[ConfigName, ...] = ("mid",), rounds: int = 5, json: Path | None = None
) -> None:
    """A training step that saves the state, and one that does not.

    Args:
        configs: sizes of model and batch
        rounds: timed steps of each
        json: file to write the figures to as well
    """
    facts = introduce(rounds, json)
    publish(checkpoint, checkpoint.measure(configs, rounds), facts, json)


def startup_command(*, rounds: int = 5, json: Path | None = None) -> None:
    """Seconds of start-up in fresh processes, with and without compilation.

    Args:
        rounds: processes of each kind; the one that compiles runs once
        json: file to write the figures to as well
    """
    facts = introduce(rounds, json)
    publish(startup, startup.measure(startup.DEFAULT_JOB, rounds), facts, json)


def tokenizer_command(
    *, source: str = "stdlib", vocab_size: int = 2048, rounds: int = 3, peers: bool = True, json: Path | None = None
) -> None:
    """Byte-level BPE: training and encoding. Peers: tokenizers and tiktoken.

    Args:
        source: corpus, as in `npllm pretrain --data.source`
        vocab_size: entries to learn
        rounds: timed passes of each over the corpus
        peers: time the peers too, in the interpreter that NPLLM_PEERS_PYTHON names
        json: file to write the figures to as well
    """
    facts = introduce(rounds, json)
    texts = [document.text for document in load_corpus(source).train]
    publish(tokenizer, tokenizer.measure(texts, vocab_size, rounds, peers), facts, json)


def kernels_command(
    *, dtype: Literal["float32", "float64"] = "float32", rounds: int = 7, json: Path | None = None
) -> None:
    """Each kernel, compared with NumPy's version and with the machine's peak.

    Args:
        dtype: of the arrays
        rounds: timed bursts of each
        json: file to write the figures to as well
    """
    facts = introduce(rounds, json, dtype=dtype)
    publish(kernels, kernels.measure(dtype, rounds, 1e9 * facts["peak_gflops"]), facts, json)


def gemm_command(
    *, configs: tuple[ConfigName, ...] = ("cpu", "mid", "baby", "gpt2"), rounds: int = 5, json: Path | None = None
) -> None:
    """Matrix products of training, with one thread and with all. Peer: OpenBLAS.

    Args:
        configs: sizes of model and batch
        rounds: timed bursts of each
        json: file to write the figures to as well
    """
    facts = introduce(rounds, json)
    publish(gemm, gemm.measure({name: CONFIGS[name] for name in configs}, rounds), facts, json)


def ladder_command(*, rounds: int = 5, peers: bool = True, plot: Path | None = None, json: Path | None = None) -> None:
    """The same operation in Python, Numba, NumPy, npllm's kernels and PyTorch.

    Args:
        rounds: timed bursts of each
        peers: time the peers too, in the interpreter that NPLLM_PEERS_PYTHON names
        plot: PNG to draw: a roofline plot of all versions
        json: file to write the figures to as well
    """
    if plot is not None and find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib; pip install 'npllm[plot]' installs it.")
    facts = introduce(rounds, json, plot)
    peak, bandwidth = 1e9 * facts["peak_gflops"], 1e9 * facts["stream_gb_per_s"]
    rows = climb.measure(rounds, peak, bandwidth, peers)
    publish(view, rows, facts, json)
    if plot is not None:
        say(draw_if_possible("plot", plot, lambda: roofline.plot(rows, peak, bandwidth, plot)))


def learn_command(
    *,
    contenders: tuple[str, ...] = ("classic", "default"),
    minutes: float = 3.0,
    tokens: int | None = None,
    seeds: int = 3,
    peers: bool = True,
    plot: Path | None = None,
    json: Path | None = None,
) -> None:
    """The best model for the time: bits per byte of recipes. Peer: PyTorch.

    Args:
        contenders: recipes, each with options of npllm pretrain if wanted:
            "default --optim.beta2 0.95"; all are compared with the first
        minutes: of updates in each training
        tokens: train on as many tokens instead
        seeds: trainings of each contender
        peers: train the peer too, in the interpreter that NPLLM_PEERS_PYTHON names
        plot: PNG to draw: bits per byte against seconds
        json: file to write the figures to as well
    """
    if plot is not None and find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib; pip install 'npllm[plot]' installs it.")
    facts = introduce(seeds, json, plot)
    rows = learn.measure(contenders, learn.Budget(minutes, tokens), seeds, peers)
    publish(learn, rows, facts, json)
    if plot is not None:
        say(draw_if_possible("plot", plot, lambda: learn.plot(rows, plot)))


def heads_command(
    *,
    contenders: tuple[str, ...] = heads.CONTENDERS,
    tokens: int = 2_000_000,
    moments: int = 8,
    seeds: int = 1,
    json: Path | None = None,
) -> None:
    """From which size and time a model has an induction head.

    Args:
        contenders: recipes, each with options of npllm pretrain if wanted:
            "default --model.n_layer 2"
        tokens: of each training
        moments: how often the heads are measured in a training
        seeds: trainings of each contender
        json: file to write the figures to as well
    """
    if moments < 1:
        raise ConfigError(f"--moments is {moments}; give at least 1.")
    facts = introduce(seeds, json)
    publish(heads, heads.measure(contenders, tokens, moments, seeds), facts, json)


def parity_command(*, json: Path | None = None) -> None:
    """Whether other libraries compute from exported models what npllm does.

    It runs in the interpreter that NPLLM_PEERS_PYTHON names. Exit code 1 where results
    differ; a library that is not installed there is named and left out.

    Args:
        json: file to write the figures to as well
    """
    facts = introduce(len(parity.FAMILIES), json)
    rows = [*parity.measure(), *parity_peft.measure(), *parity_gguf.measure(), *parity_lm_eval.measure()]
    publish(parity, rows, facts, json)
    if differences := parity.wrong(rows):
        raise SystemExit("\n".join(differences))


COMMANDS = {
    "parity": parity_command,
    "learn": learn_command,
    "heads": heads_command,
    "train": train_command,
    "generate": generate_command,
    "scale": scale_command,
    "checkpoint": checkpoint_command,
    "startup": startup_command,
    "tokenizer": tokenizer_command,
    "kernels": kernels_command,
    "gemm": gemm_command,
    "ladder": ladder_command,
}


def introduce(rounds: int, *files: Path | None, dtype: str = "float32") -> dict[str, Any]:
    """Measure and print the facts of the machine, and return them.

    files: what the command will write. Raises ConfigError if there is no round to
    measure, and ResourceError if a file cannot be written.
    """
    if rounds < 1:
        raise ConfigError(f"--rounds is {rounds}; give at least 1.")
    for path in files:
        if path is not None:
            is_new = not path.exists()
            append(path, b"")  # fails now, and not after everything is measured
            if is_new:
                path.unlink()  # the measurement may be interrupted
    facts = machine_facts(dtype)
    say(f"{facts['cpu']}, {facts['threads']} of {facts['cores']} cores, {facts['date']}")
    say(f"numpy {facts['numpy']} with {facts['blas']}, numba {facts['numba']}")
    say(f"peak {facts['peak_gflops']:.0f} GFLOP/s {dtype}, memory {facts['stream_gb_per_s']:.1f} GB/s")
    if rounds == 1:
        say("one round, so there is no spread")
    return facts


def publish(benchmark, rows: list[Row], facts: dict[str, Any], path: Path | None) -> None:
    """Print the tables of a benchmark and where npllm loses; write the rows to path."""
    for table in benchmark.tables(rows):
        TextConsole().print("", table)
    for line in benchmark.verdict(rows):
        say(line)
    if path is not None:
        write_atomically(path, (json.dumps({"machine": facts, "rows": rows}, indent=2) + "\n").encode())


def say(line: str) -> None:
    TextConsole().print(line, soft_wrap=True)


def main(arguments: list[str] | None = None) -> int:
    """Run one benchmark. Returns the exit code, as `npllm` does."""
    with guarded_streams(endures=False):
        try:
            try:
                tyro.extras.subcommand_cli_from_dict(
                    COMMANDS, prog="python -m benchmarks", args=arguments, use_underscores=True
                )
            finally:  # --help ends with SystemExit
                sys.stdout.flush()
        except BrokenPipeError:
            return READER_LEFT
        except (NpllmError, KeyboardInterrupt, MemoryError, OSError) as error:
            lines, exit_code = explain(error)
            print("benchmarks: " + "\n  ".join(lines), file=sys.stderr)
            return exit_code
    return 0
