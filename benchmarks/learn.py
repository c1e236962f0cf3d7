"""`benchmarks learn`: how good a model gets in the same time, or on as many tokens.

A contender is a recipe, with options of `npllm pretrain` if it is not taken as it is.
Each trains with several seeds on the embedded corpus, the contenders by turns, so that
a slow hour of the machine meets all of them. The first one is the best so far: it is
trained again in every race, and the others are compared with it.

PyTorch's best effort is a network and settings like nanoGPT's (`torch_learner`), on the
same tokens and for as many seconds of updates.
"""

import inspect
import shlex
import subprocess
import sys
import tempfile
from itertools import combinations
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from textwrap import fill
from typing import NamedTuple

import numpy as np
from numba import get_num_threads
from rich.table import Table

from benchmarks.peers.process import ROOT, WorkerError
from benchmarks.race import Contender, absences
from benchmarks.tables import Row, build_table
from npllm.data.shards import read_shard
from npllm.model.parameters import parameter_count
from npllm.optim import batch_size
from npllm.runs.arguments import parse_arguments
from npllm.runs.metrics import read_metrics
from npllm.runs.run_folder import RunFolder, load
from npllm.runs.summary import read_summary
from npllm.training.config import RunConfig, load_recipe
from npllm.training.stage_verb import sections_with_defaults

# nanoGPT's network and optimiser, at the size of the recipe `classic`, with the batch
# and the learning rate that were best for AdamW on this corpus.
PYTORCH = Contender(
    "PyTorch, nanoGPT",
    "torch_learner",
    {
        "model": {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 128},
        "optimizer": {"lr": 2e-3, "betas": (0.9, 0.99), "weight_decay": 0.1},
        "rows": 8,
    },
)
LEGEND = 50  # characters in a line: a contender may have many options
COMPRESSORS = ("gzip", "bz2", "xz")


class Budget(NamedTuple):
    """Minutes of updates, or a number of tokens."""

    minutes: float
    tokens: int | None = None

    def options(self, contender: list[str]) -> list[str]:
        """Return the options of `npllm pretrain` for a contender.

        With a number of tokens, that is as many steps as its batches need.
        """
        if self.tokens is None:
            return ["--minutes", str(self.minutes)]
        config = config_of(contender)
        steps, left = 0, self.tokens
        while left > 0:
            left -= batch_size(steps, config.batch) * config.model.block_size
            steps += 1
        return ["--train.steps", str(steps)]


def config_of(contender: list[str]) -> RunConfig:
    """Return the config of a recipe with options."""
    recipe, *options = contender

    def config(**sections):
        return RunConfig(**sections)

    config.__signature__ = inspect.Signature(sections_with_defaults(load_recipe(recipe)))
    config.__annotations__ = {name: each.annotation for name, each in config.__signature__.parameters.items()}
    return parse_arguments(config, options, prog=recipe)


def measure(contenders: tuple[str, ...], budget: Budget, seeds: int, peers: bool) -> list[Row]:
    """Return a row for each contender and seed. contenders: "RECIPE OPTIONS ..."."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            for number, contender in enumerate(contenders):
                run = RunFolder(Path(folder, f"{number}-{seed}"))
                words = shlex.split(contender)
                train(run, ["--recipe", *words, *budget.options(words), "--train.seed", str(seed)])
                rows.append({"contender": contender, "seed": seed, **result_of(run)})
            if peers:
                rows.append({"contender": PYTORCH.name, "seed": seed, **train_pytorch(run, rows[-1], seed)})
    return rows


def train(run: RunFolder, options: list[str]) -> None:
    """Train in a new process; only its errors are shown."""
    command = [sys.executable, "-m", "npllm", "pretrain", *options, "--out", str(run.path)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)} failed.")


def result_of(run: RunFolder) -> Row:
    """Return the figures of a finished run and its curve, as pairs (seconds, bits per
    byte) of the validation sample."""
    summary = read_summary(run, {"val_bits_per_byte": float, "val_loss": float})
    per_nat = summary["val_bits_per_byte"] / summary["val_loss"]
    seconds, curve = 0.0, []
    for record in read_metrics(run.metrics):
        seconds += record["seconds"]
        if "val_loss" in record:
            curve.append((seconds, per_nat * record["val_loss"]))
    model, _ = load(run.path)
    return {
        "bits_per_byte": summary["val_bits_per_byte"],
        "seconds": summary["seconds"],
        "tokens": summary["tokens"],
        "parameters": parameter_count(model.config),
        "corpus_sha256": read_shard(run.train_shard).source_sha256,
        "curve": curve,
        **{f"{name}_bits_per_byte": summary[f"{name}_bits_per_byte"] for name in COMPRESSORS},
    }


def train_pytorch(run: RunFolder, ours: Row, seed: int) -> Row:
    """Return the row of PyTorch, trained on the tokens of a run for as many seconds."""
    train, val = run.load_shards()
    files = {}
    for name, shard in (("train", train), ("val", val)):
        files[name] = str(run.path / f"{name}.int32")
        shard.tokens.astype(np.int32).tofile(files[name])
    settings = {"vocab_size": train.vocab_size, "val_bytes": val.n_bytes, "threads": get_num_threads()}
    try:
        with PYTORCH.start() as worker:
            return worker.set_up("learn", **files, **settings, **PYTORCH.settings, seconds=ours["seconds"], seed=seed)
    except WorkerError as error:
        return {"failure": str(error)}


def summarise(rows: list[Row]) -> list[Row]:
    """Return a row for each contender: means over the seeds, and the first compared."""
    ran = [row for row in rows if "failure" not in row]
    by_contender = {name: [row for row in ran if row["contender"] == name] for name in by_name(ran)}
    first = [row["bits_per_byte"] for row in next(iter(by_contender.values()))]
    summary = []
    for name, group in by_contender.items():
        bits = [row["bits_per_byte"] for row in group]
        summary.append(
            {
                "contender": name,
                "bits_per_byte": mean(bits),
                "error": stdev(bits) / sqrt(len(bits)) if len(bits) > 1 else None,
                "difference": mean(bits) - mean(first) if summary else None,
                "p": chance(first, bits) if summary and len(bits) > 1 else None,
                "tokens_per_s": mean(row["tokens"] / row["seconds"] for row in group),
                "seconds": mean(row["seconds"] for row in group),
                "parameters": group[0]["parameters"],
            }
        )
    return summary


def by_name(rows: list[Row]) -> list[str]:
    """Return the names of the contenders, in order."""
    return list(dict.fromkeys(row["contender"] for row in rows))


def chance(first: list[float], second: list[float]) -> float:
    """Return the p-value of a permutation test: how often a random division of all
    results into two groups differs in its means by at least as much, in any direction.

    With three seeds each there are 20 divisions, so it is at least 0.1.
    """
    both, n = first + second, len(first)
    found = abs(mean(first) - mean(second))
    differences = []
    for chosen in combinations(range(len(both)), n):
        ours = [both[i] for i in chosen]
        others = [both[i] for i in range(len(both)) if i not in chosen]
        differences.append(abs(mean(ours) - mean(others)))
    return mean(difference >= found * (1.0 - 1e-12) for difference in differences)


def tables(rows: list[Row]) -> list[Table]:
    """Return the tables to print: the contenders, then what compressors reach."""
    contenders = {
        "contender": ("contender", "{}"),
        "bits per byte": ("bits_per_byte", "{:.4f}"),
        "±": ("error", "{:.4f}"),
        "against the first": ("difference", "{:+.4f}"),
        "p": ("p", "{:.2f}"),
        "tokens/s": ("tokens_per_s", "{:,.0f}"),
        "seconds": ("seconds", "{:.0f}"),
        "parameters": ("parameters", "{:,}"),
    }
    return [build_table("validation text, mean of the seeds", summarise(rows), contenders)]


def verdict(rows: list[Row]) -> list[str]:
    """Return lines: the corpus, the compressors, and who did not take part."""
    ours = rows[0]
    compressed = ", ".join(f"{name} -9 {ours[f'{name}_bits_per_byte']:.3f}" for name in COMPRESSORS)
    return [f"the same text: {compressed}", f"corpus: SHA-256 {ours['corpus_sha256']}", *absences(rows)]


def plot(rows: list[Row], path: Path) -> None:
    """Draw bits per byte against seconds into a PNG, with the compressors as lines."""
    from matplotlib.figure import Figure  # an optional dependency, and slow to import

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    ran = [row for row in rows if "failure" not in row]
    for number, name in enumerate(by_name(ran)):
        for row in (row for row in ran if row["contender"] == name):
            label = fill(name, LEGEND) if row["seed"] == 0 else None
            axes.plot(*zip(*row["curve"], strict=True), color=f"C{number}", linewidth=1.0, label=label)
    for name in COMPRESSORS:
        axes.axhline(bits := ran[0][f"{name}_bits_per_byte"], color="#999999", linewidth=0.8, linestyle="--")
        axes.annotate(
            f"{name} -9", (0.01, bits), xycoords=("axes fraction", "data"), fontsize=8, color="#666666", va="bottom"
        )
    axes.set_xscale("log")
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("bits per byte of a validation sample")
    axes.legend()
    figure.savefig(path, dpi=120)
