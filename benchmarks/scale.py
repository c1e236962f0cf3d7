"""`benchmarks scale`: a training step by number of threads and of ranks.

Strong scaling: the same batch with more threads in one process, with more ranks, and
with PyTorch's processes (DistributedDataParallel, gloo). Weak scaling: one rank that
has its share of the batch, beside all ranks with the whole one. Every contender cuts
the batch into as many micro-batches as there are ranks at most, because ranks divide
micro-batches. Threads and ranks must compute the same bits.

What `npllm plan` predicts stands beside what is measured. Its measurement of the
machine is a contender, too, so that it meets the same machine.
"""

from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np
from rich.table import Table

from benchmarks.configs import CONFIGS, Config
from benchmarks.peers.parameter_file import shared_model
from benchmarks.race import Contender, Facts, absences, race
from benchmarks.tables import Row, build_table
from benchmarks.timing import times_faster
from benchmarks.train import EXACT, UPDATE, check_same_training
from npllm.distributed.costs import Network
from npllm.model import Architecture
from npllm.optim import BatchConfig
from npllm.planning.cost_model import CostModel, Speed, powers_of_two
from npllm.planning.verb import LATENCY
from npllm.training.config import RunConfig

POOLS = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# What all ranks must have of the tokens per second of others, and how far a prediction
# may be off.
THREADS_BAR, PEER_BAR, PLAN_BAR = 0.9, 1.0, 0.25


class Sizes(NamedTuple):
    """A batch of n_rows sequences, as many on each of at most `ranks` ranks, on a
    machine of so many cores."""

    cores: int
    ranks: int
    n_rows: int

    @property
    def micro_size(self) -> int:
        return self.n_rows // self.ranks


def sizes_of(config: Config) -> Sizes:
    """Return the sizes of a config on this machine."""
    cores = numba.config.NUMBA_NUM_THREADS
    *_, ranks = powers_of_two(min(cores, config.n_rows))
    return Sizes(cores, ranks, config.n_rows // ranks * ranks)


def name_of(ranks: int, threads: int) -> str:
    return f"{ranks} rank{'s' * (ranks > 1)} × {threads} thread{'s' * (threads > 1)}"


def on(ranks: int, threads: int, name: str = "", **settings) -> Contender:
    """Return npllm on so many ranks, each with so many threads."""
    environment = dict.fromkeys(POOLS, str(threads))
    return Contender(name or name_of(ranks, threads), "npllm_ranks_worker", settings, EXACT, environment, ranks)


def strong(sizes: Sizes) -> dict[str, tuple[int, int]]:
    """Return ranks and threads of the contenders that have the whole batch, by name."""
    splits = [(1, threads) for threads in range(1, sizes.cores + 1)]
    splits += [(ranks, sizes.cores // ranks) for ranks in powers_of_two(sizes.ranks) if ranks > 1]
    return {name_of(*split): split for split in splits}


SHARE = "1 rank with its share of the batch"
DDP = {"PyTorch DDP": "eager", "PyTorch DDP compiled": "compiled"}


def probe_of(ranks: int) -> str:
    """Return the name of the measurement for a plan of so many ranks here."""
    return f"plan's measurement for {ranks}"


def contenders_of(sizes: Sizes, peers: bool) -> list[Contender]:
    threads = sizes.cores // sizes.ranks
    contenders = [on(*split) for split in strong(sizes).values()]
    contenders.append(on(1, threads, SHARE, timed_rows=sizes.micro_size))
    for name, mode in DDP.items() if peers else ():
        settings = {"mode": mode, "processes": sizes.ranks, "threads": threads}
        contenders.append(Contender(name, "torch_ddp_worker", settings, EXACT, {"OMP_NUM_THREADS": str(threads)}))
    for ranks in powers_of_two(sizes.ranks):
        settings = {"job": "probe", "probed_ranks": ranks, "probed_threads": sizes.cores // ranks}
        contenders.append(Contender(probe_of(ranks), "npllm_worker", settings))
    return contenders


def measure(names: tuple[str, ...], rounds: int, peers: bool = True) -> list[Row]:
    """Return a row for each configuration and contender."""
    return [{"config": name, **row} for name in names for row in measure_config(CONFIGS[name], rounds, peers)]


def measure_config(config: Config, rounds: int, peers: bool) -> list[Row]:
    """Return a row for each contender."""
    sizes, T = sizes_of(config), config.model.block_size
    rng = np.random.default_rng(0)
    windows = rng.integers(0, config.model.vocab_size, (sizes.n_rows, T + 1))
    with shared_model(config.model) as job:
        batch = Path(job["parameters"]).with_name("batch")
        np.stack([windows[:, :-1], windows[:, 1:]]).tofile(batch)
        shape = {"batch": str(batch), "shape": (sizes.n_rows, T), "micro_size": sizes.micro_size}
        settings = {**job, **shape, **UPDATE, "mode": "float32", "timed_rows": sizes.n_rows}
        rows = race(contenders_of(sizes, peers), "train", settings, check_result, rounds)
    took_part = {row["contender"]: row for row in rows if "failure" not in row}
    splits = strong(sizes)
    for name, row in took_part.items():
        row["tokens_per_s"] = T * (sizes.micro_size if name == SHARE else sizes.n_rows) / row["seconds"]
        row["communication"] = row["facts"].get("communication")
        if name in splits:
            row["ranks"], row["threads"] = splits[name]
        if name in splits or name in DDP:
            row["times_one"] = times_faster(row["seconds_by_round"], rows[0]["seconds_by_round"])
        if name in splits and row["ranks"] * row["threads"] == sizes.cores:
            probe = took_part[probe_of(row["ranks"])]
            row["planned"] = predicted(config, sizes, row["ranks"], probe) / row["seconds"]
    return [row for row in rows if not row["contender"].startswith("plan's")]


def check_result(contender: Contender, theirs: Facts, ours: Facts) -> None:
    """Stop the benchmark unless losses and gradient norm are the same and, for npllm,
    every bit of the weights."""
    if contender.settings.get("job") == "probe":
        return
    check_same_training(contender, theirs, ours)
    if not contender.is_peer and theirs["params_sha256"] != ours["params_sha256"]:
        raise SystemExit(f"{contender.name} has other weights than one thread; nothing was timed.")


def predicted(config: Config, sizes: Sizes, ranks: int, probe: Row) -> float:
    """Return the seconds of an update that a plan for this machine predicts.

    probe: the row of the measurement. All ranks are on this host.
    """
    architecture = Architecture(**{field.name: getattr(config.model, field.name) for field in fields(Architecture)})
    batch = BatchConfig(size=sizes.n_rows, micro_size=sizes.micro_size)
    flops, memory = probe["facts"]["flops"] / probe["seconds"] / ranks, probe["facts"]["memory_bandwidth"]
    network = Network(1e-6 * LATENCY, float("inf"), memory, ranks_per_host=ranks)
    run = RunConfig(model=architecture, batch=batch)
    return CostModel(run, config.model.vocab_size, Speed(flops, memory), network).step(ranks).seconds


def summarise(rows: list[Row]) -> list[Row]:
    """Return a row for each configuration that all ranks of the machine took part in:
    their tokens per second against those of others."""
    summary = []
    for config in dict.fromkeys(row["config"] for row in rows):
        ran = {row["contender"]: row for row in rows if row["config"] == config and "failure" not in row}
        ranks = max((row for row in ran.values() if row.get("ranks")), key=lambda row: row["ranks"])
        threads = max((row for row in ran.values() if row.get("ranks") == 1), key=lambda row: row["threads"])
        if ranks["ranks"] == 1:
            continue
        peer = min((ran[name] for name in DDP if name in ran), key=lambda row: row["seconds"], default=None)
        compared = {"config": config, "ours": ranks["contender"]}
        for name, other in (("threads", threads), ("share", ran[SHARE]), ("peer", peer)):
            if other is not None:
                compared[name] = other["contender"]
                compared[f"against_{name}"] = times_faster(ranks["seconds_by_round"], other["seconds_by_round"])
        summary.append(compared)
    return summary


def tables(rows: list[Row]) -> list[Table]:
    """Return the tables to print."""
    columns = {
        "config": ("config", "{}"),
        "contender": ("contender", "{}"),
        "tokens/s": ("tokens_per_s", "{:,.0f}"),
        "spread": ("spread", "±{:.1%}"),
        "× one thread": ("times_one", "{:.2f}×"),
        "commu- nication": ("communication", "{:.0%}"),
        "plan / measured": ("planned", "{:.2f}×"),
    }
    return [build_table("one training step by ranks and threads", rows, columns)]


def verdict(rows: list[Row]) -> list[str]:
    """Return lines that say who did not take part, and which bars are met."""
    lines = absences(rows)
    for row in summarise(rows):
        who = f"{row['config']}: {row['ours']}"
        lines.append(f"{who}, against {row['threads']}: {held(row['against_threads'], THREADS_BAR)}")
        if "peer" in row:
            lines.append(f"{who}, against {row['peer']}: {held(row['against_peer'], PEER_BAR)}")
        lines.append(f"{who}, weak scaling: {row['against_share']:.0%} of the speed of one rank with its share, each")
    planned = [row["planned"] for row in rows if row.get("planned")]
    if planned:
        furthest = max(planned, key=lambda ratio: abs(ratio - 1.0))
        met = "met" if abs(furthest - 1.0) <= PLAN_BAR else "MISSED"
        lines.append(f"npllm plan is at most {abs(furthest - 1.0):.0%} off, bar {PLAN_BAR:.0%}: {met}")
    return lines


def held(ratio: float, bar: float) -> str:
    """Return a ratio, its bar, and whether it is met."""
    return f"{ratio:.2f}×, bar {bar:.1f}×: {'met' if ratio >= bar else 'MISSED'}"
