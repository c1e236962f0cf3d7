"""`benchmarks heads`: from which size and time a model has an induction head.

An induction head finds the earlier occurrence of the present token and looks at the
token after it, so the model can repeat what it has read. It needs another head, in a
layer before it, that looks at the previous token: one layer alone cannot have one.

Each contender is a recipe with options of `npllm pretrain`. It trains once for each
seed, and its checkpoints are measured with the functions of `npllm report`
(`npllm/pages/learnt/heads.py` defines the scores and what chance gives). Induction is
seen on random tokens that are repeated once: only the repetition foretells them.

Source: Olsson et al., "In-context learning and induction heads", 2022.
"""

import shlex
import tempfile
from collections.abc import Callable
from math import ceil
from pathlib import Path

from rich.table import Table

from benchmarks.learn import Budget, train
from benchmarks.tables import Row, build_table
from npllm.data.shards import read_shard
from npllm.model.parameters import parameter_count
from npllm.pages.learnt.heads import NAMED, HeadScores
from npllm.pages.learnt.inside import random_twin
from npllm.pages.learnt.measure import head_scores
from npllm.pages.learnt.section import kinds
from npllm.pages.learnt.windows import Windows, of_shard
from npllm.runs.checkpoint import checkpoint_files
from npllm.runs.metrics import read_metrics
from npllm.runs.run_folder import RunFolder, load
from npllm.runs.summary import read_summary

# An induction head needs two layers, so the first contender is the control.
CONTENDERS = (*(f"default --model.n_layer {n}" for n in (1, 2)), "default", "default --model.n_layer 4")
SHOWN = ("induction", "previous token")


def measure(contenders: tuple[str, ...], tokens: int, moments: int, seeds: int) -> list[Row]:
    """Return a row for each contender, seed and moment. contenders: "RECIPE OPTIONS
    ..."."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            for number, contender in enumerate(contenders):
                run = RunFolder(Path(folder, f"{number}-{seed}"))
                train(run, options_of(contender, tokens, moments, seed))
                rows += [{"contender": contender, "seed": seed, **row} for row in rows_of(run)]
    return rows


def options_of(contender: str, tokens: int, moments: int, seed: int) -> list[str]:
    """Return the options of `npllm pretrain`. It saves a checkpoint at each moment, and
    evaluates only there: the best evaluation so far saves one, too."""
    words = shlex.split(contender)
    length = Budget(0.0, tokens).options(words)
    every = ceil(int(length[1]) / moments)
    times = {"eval_every": every, "checkpoint_every": every, "keep": moments, "seed": seed}
    return ["--recipe", *words, *length, *(word for name, n in times.items() for word in (f"--train.{name}", str(n)))]


def rows_of(run: RunFolder) -> list[Row]:
    """Return a row for random weights and for each checkpoint of a run, the oldest
    first."""
    summary = read_summary(run, {"val_bits_per_byte": float, "val_loss": float})
    records = {record["step"]: record for record in read_metrics(run.metrics)}
    model, tokenizer = load(run.path)
    windows = Windows(of_shard(read_shard(run.val_shard)), tokenizer, model.config)
    random = head_scores(random_twin(model), windows, model.seed)
    size = {"parameters": parameter_count(model.config)}
    rows = [{"tokens": 0, **size, **best_heads(random, random)}]
    for path in checkpoint_files(run.checkpoints):
        record = records.get(int(path.stem.removeprefix("step-")))
        if record is None:  # of a short training there is still the checkpoint of the random weights
            continue
        model, _ = load(path)
        bits = record["val_loss"] * summary["val_bits_per_byte"] / summary["val_loss"]
        found = best_heads(head_scores(model, windows, model.seed), random)
        rows.append({"tokens": record["tokens"], "bits_per_byte": bits, **size, **found})
    return rows


def best_heads(scores: dict[str, HeadScores], random: dict[str, HeadScores]) -> Row:
    """Return the best head of each kind that is shown, as the report does."""
    return {
        kind.name: {
            "score": kind.best,
            "layer": int(kind.layer),
            "head": int(kind.head),
            "chance": kind.chance,
            "is_found": bool(kind.found),
        }
        for kind in kinds(scores, random)
        if kind.name in SHOWN
    }


def tables(rows: list[Row]) -> list[Table]:
    """Return a table for each kind of head, and one of bits per byte."""
    of_heads = [
        _table(f"best {kind} head", rows, lambda row, kind=kind: row[kind]["score"], chance=kind) for kind in SHOWN
    ]
    return [*of_heads, _table("bits per byte of a validation sample", rows, lambda row: row.get("bits_per_byte"))]


def _table(title: str, rows: list[Row], value: Callable[[Row], float | None], chance: str | None = None) -> Table:
    """Return a table of one value: a row for each training, and a column for each
    number of tokens. chance: kind of head whose chance stands beside it."""
    columns = {"contender": ("contender", "{}"), "seed": ("seed", "{}")}
    if chance:
        columns["chance"] = ("chance", "{:.3f}")
    columns |= {moment(tokens): (moment(tokens), "{:.3f}") for tokens in sorted({row["tokens"] for row in rows})}
    lines = []
    for (name, seed), own in trainings(rows).items():
        lines.append({"contender": name, "seed": seed} | {moment(row["tokens"]): value(row) for row in own})
        if chance:
            lines[-1]["chance"] = own[0][chance]["chance"]
    return build_table(title, lines, columns)


def moment(tokens: int) -> str:
    return f"{tokens / 1e6:.2f}M"


def trainings(rows: list[Row]) -> dict[tuple[str, int], list[Row]]:
    """Return the rows of each training, by contender and seed."""
    found: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        found.setdefault((row["contender"], row["seed"]), []).append(row)
    return found


def verdict(rows: list[Row]) -> list[str]:
    """Return lines: when a head counts, and from when on each training has one."""
    lines = [f"A head counts from {NAMED:.0%} of the way from chance to 1 on."]
    for (name, seed), own in trainings(rows).items():
        first = next((row for row in own if row["induction"]["is_found"]), None)
        what = "no induction head"
        if first:
            where = first["induction"]
            what = f"induction head after {first['tokens']:,} tokens: layer {where['layer']}, head {where['head']}"
        lines.append(f"{name}, {own[0]['parameters']:,} parameters, seed {seed}: {what}")
    return lines
