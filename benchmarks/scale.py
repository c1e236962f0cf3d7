"""`benchmarks scale`: a training step with 1, 2, ... threads, each in its own process.

The result must not depend on the number of threads; the table shows whether all bits
are equal.
"""

import numba
from rich.table import Table

from benchmarks.configs import CONFIGS, Config
from benchmarks.race import Contender
from benchmarks.tables import Row, build_table
from benchmarks.train import EXACT, race_training

POOLS = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def measure(names: tuple[str, ...], rounds: int) -> list[Row]:
    """Return a row for each configuration and number of threads."""
    return [{"config": name, **row} for name in names for row in measure_config(CONFIGS[name], rounds)]


def measure_config(config: Config, rounds: int) -> list[Row]:
    """Return a row for each number of threads, up to Numba's."""
    counts = range(1, numba.config.NUMBA_NUM_THREADS + 1)
    contenders = [
        Contender(f"{n} threads", "npllm_worker", {"mode": "float32"}, EXACT, dict.fromkeys(POOLS, str(n)))
        for n in counts
    ]
    rows = race_training(config, contenders, rounds)
    for n, row in zip(counts, rows, strict=True):
        row["threads"] = n
        row["times_one_thread"] = 1.0 / row["ratio"]
        row["same_bits"] = all(
            row["facts"][key] == rows[0]["facts"][key] for key in ("loss", "grad_norm", "second_loss")
        )
    return rows


def tables(rows: list[Row]) -> list[Table]:
    """Return the tables to print."""
    columns = {
        "config": ("config", "{}"),
        "threads": ("threads", "{:d}"),
        "tokens/s": ("tokens_per_s", "{:,.0f}"),
        "spread": ("spread", "±{:.1%}"),
        "× one thread": ("times_one_thread", "{:.2f}×"),
        "same bits": ("same_bits", "{}"),
    }
    return [build_table("one training step by number of threads", rows, columns)]


def verdict(rows: list[Row]) -> list[str]:
    """Return a line for each case where more threads are not faster."""
    return [
        f"{row['config']}: {row['threads']} threads are not faster than one ({row['times_one_thread']:.2f}×)"
        for row in rows
        if row["threads"] > 1 and row["times_one_thread"] <= 1.0
    ]
