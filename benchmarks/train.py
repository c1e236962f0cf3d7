"""`benchmarks train`: whole training steps of npllm and PyTorch.

Each contender runs in its own process. A step is forward, backward, clipping and AdamW
on one batch. Before anything is timed, two steps from the same parameters must give the
same losses and the same gradient norm.
"""

from pathlib import Path

import numpy as np
from rich.table import Table

from benchmarks import stages
from benchmarks.configs import CONFIGS, TINY, Config
from benchmarks.peers.parameter_file import shared_model
from benchmarks.race import Contender, Facts, absences, race
from benchmarks.tables import Row, build_table, build_tables, say_where_we_lose

WITH_NUMPY = ("cpu", "default")  # with larger ones plain NumPy would take too long
UPDATE = {"optimizer": {"lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}, "grad_clip": 1.0}
# bfloat16 has 8 bits: an activation is off by up to 1/256, a mean of many by less.
EXACT, ROUNDED = 1e-4, 2e-2

NPLLM = [
    Contender("npllm", "npllm_worker", {"mode": "float32"}, EXACT),
    Contender("npllm bf16", "npllm_worker", {"mode": "bf16"}, ROUNDED),
]
NUMPY = [Contender("NumPy", "npllm_worker", {"mode": "numpy"}, EXACT)]
PYTORCH = [
    Contender("PyTorch", "torch_worker", {"mode": "eager"}, EXACT),
    Contender("PyTorch compiled", "torch_worker", {"mode": "compiled"}, EXACT),
    Contender("PyTorch bf16", "torch_worker", {"mode": "bf16"}, ROUNDED),
    Contender("PyTorch bf16 compiled", "torch_worker", {"mode": "bf16 compiled"}, ROUNDED),
]


def measure(names: tuple[str, ...], rounds: int, peak: float, peers: bool = True) -> list[Row]:
    """Return a row for each configuration, or stage after pretraining, and contender.

    peak: of the machine, in operations per second.
    """
    race_training(TINY, NPLLM, rounds=1)  # compiles the kernels: the compiler's memory must not count
    rows = []
    for name in names:
        if name not in CONFIGS:
            rows += stages.measure(name, rounds)
            continue
        contenders = NPLLM + NUMPY * (name in WITH_NUMPY) + PYTORCH * peers
        for row in race_training(CONFIGS[name], contenders, rounds):
            if "failure" not in row:
                row["share_of_peak"] = CONFIGS[name].step_flops / row["seconds"] / peak
            rows.append({"config": name, **row})
    return rows


def race_training(config: Config, contenders: list[Contender], rounds: int) -> list[Row]:
    """Return a row for each contender. A different result stops the benchmark."""
    shape = config.n_rows, config.model.block_size
    with shared_model(config.model) as job:
        batch = Path(job["parameters"]).with_name("batch")
        np.random.default_rng(0).integers(0, config.model.vocab_size, (2, *shape)).tofile(batch)
        settings = {**job, "batch": str(batch), "shape": shape, **UPDATE}
        rows = race(contenders, "train", settings, check_same_training, rounds)
    for row in rows:
        if "failure" not in row:
            row["tokens_per_s"] = config.n_tokens / row["seconds"]
    return rows


def check_same_training(contender: Contender, theirs: Facts, ours: Facts) -> None:
    """Stop the benchmark unless three numbers are the same.

    They are the first loss, the gradient norm, and the loss after one update.
    """
    for quantity in ("loss", "grad_norm", "second_loss"):
        a, b = theirs[quantity], ours[quantity]
        if not abs(a - b) <= contender.tolerance * abs(b):
            raise SystemExit(f"{contender.name} has {quantity} = {a:.6g}, but npllm {b:.6g}; nothing was timed.")


def summarise(rows: list[Row]) -> list[Row]:
    """Return a row per configuration that compares npllm with PyTorch's best.

    Only configurations that plain PyTorch took part in have one.
    """
    summary = []
    for config in dict.fromkeys(row["config"] for row in rows):
        ran = {row["contender"]: row for row in rows if row["config"] == config and "failure" not in row}
        if PYTORCH[0].name not in ran:
            continue
        theirs = [row for name, row in ran.items() if name.startswith("PyTorch")]
        float32 = min((row for row in theirs if "bf16" not in row["contender"]), key=lambda row: row["ratio"])
        best = min(theirs, key=lambda row: row["ratio"])
        ours = min((row for name, row in ran.items() if name.startswith("npllm")), key=lambda row: row["ratio"])
        summary.append(
            {
                "config": config,
                "float32_peer": float32["contender"],
                "float32_ratio": float32["ratio"],
                "our_best": ours["contender"],
                "best_peer": best["contender"],
                "best_ratio": best["ratio"] / ours["ratio"],
                "memory_ratio": ran["npllm"]["peak_mb"] / ran[PYTORCH[0].name]["peak_mb"],
            }
        )
    return summary


def tables(rows: list[Row]) -> list[Table]:
    """Return the tables to print: all figures, then npllm against PyTorch's best."""
    contenders = {
        "contender": ("contender", "{}"),
        "seconds": ("seconds", "{:.4f}"),
        "spread": ("spread", "±{:.1%}"),
        "tokens/s": ("tokens_per_s", "{:,.0f}"),
        "npllm is faster": ("ratio", "{:.2f}×"),
        "of peak": ("share_of_peak", "{:.0%}"),
        "peak MB": ("peak_mb", "{:,.0f}"),
        "above imports": ("peak_above_imports_mb", "{:,.0f}"),
    }
    best = {
        "config": ("config", "{}"),
        "best float32 peer": ("float32_peer", "{}"),
        "npllm is faster": ("float32_ratio", "{:.2f}×"),
        "best peer of all": ("best_peer", "{}"),
        "npllm's best": ("our_best", "{}"),
        "is faster": ("best_ratio", "{:.2f}×"),
        "peak memory, npllm / PyTorch": ("memory_ratio", "{:.2f}"),
    }
    summary = summarise(rows)
    tables = build_tables("forward, backward, clipping, AdamW", rows, contenders, by=("config",))
    return tables + [build_table("npllm against the best of PyTorch", summary, best)] * bool(summary)


def verdict(rows: list[Row]) -> list[str]:
    """Return lines that say who did not take part and why, and where npllm loses."""
    summary = summarise(rows)
    return absences(rows) + say_where_we_lose(
        [(f"{row['config']}, float32, against {row['float32_peer']}", row["float32_ratio"]) for row in summary]
        + [(f"{row['config']}, best dtypes, against {row['best_peer']}", row["best_ratio"]) for row in summary]
    )
