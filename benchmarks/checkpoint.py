"""`benchmarks checkpoint`: a training step that saves the state, and one that does not.

Training waits only for the snapshot, a copy in memory. Hashing and writing run during
the next step, on the same cores. What was written is compared with the state at the
time of saving.
"""

import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from rich.table import Table

from benchmarks.configs import CONFIGS, Config
from benchmarks.tables import Row, build_table
from benchmarks.timing import spread, times_faster
from npllm.model import GPT
from npllm.optim import AdamW
from npllm.runs.checkpoint import load_checkpoint
from npllm.runs.checkpoint_store import CheckpointStore
from npllm.training.state import LoopState

LIMIT = 1.3  # times a normal step; a step that saves may take this long


def measure(names: tuple[str, ...], rounds: int) -> list[Row]:
    """Return a row for each configuration."""
    return [{"config": name, **measure_config(CONFIGS[name], rounds)} for name in names]


def measure_config(config: Config, rounds: int) -> Row:
    """Time steps with and without saving, in turns.

    Each starts after all writing has ended.
    """
    model = GPT(config.model)
    state = LoopState(model, AdamW(model, lr=1e-3))
    tokens = np.random.default_rng(0).integers(0, config.model.vocab_size, (config.n_rows, config.model.block_size))

    def step() -> None:
        model.loss_and_grad(tokens, tokens)
        state.optimizer.step(grad_clip=1.0)

    step()
    plain, saving, writing = [], [], []
    with tempfile.TemporaryDirectory() as folder, CheckpointStore(Path(folder), keep=1, every=1) as store:
        for _ in range(rounds):
            plain.append(seconds_of(step))
            saved_step, params = state.step, model.params.flat.copy()
            start = time.perf_counter()
            store.save(state, val_loss=None)
            step()
            saving.append(time.perf_counter() - start)
            store.wait()
            writing.append(time.perf_counter() - start)
            path = store.path(saved_step)
            if not np.array_equal(load_checkpoint(path).arrays["params"], params):
                raise AssertionError(f"{path} is not the state that was saved")
        megabytes = path.stat().st_size / 1e6
    return {
        "megabytes": megabytes,
        "step_ms": 1e3 * median(plain),
        "saving_step_ms": 1e3 * median(saving),
        "spread": spread(saving),
        "times_a_step": 1.0 / times_faster(saving, plain),
        "on_the_disk_ms": 1e3 * median(writing),
    }


def seconds_of(function) -> float:
    """Return the seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def tables(rows: list[Row]) -> list[Table]:
    """Return the tables to print."""
    columns = {
        "config": ("config", "{}"),
        "MB": ("megabytes", "{:,.1f}"),
        "step, ms": ("step_ms", "{:,.1f}"),
        "saving step, ms": ("saving_step_ms", "{:,.1f}"),
        "spread": ("spread", "±{:.1%}"),
        "× a step": ("times_a_step", "{:.2f}×"),
        "on the disk after, ms": ("on_the_disk_ms", "{:,.1f}"),
    }
    return [build_table("one training step that saves a checkpoint", rows, columns)]


def verdict(rows: list[Row]) -> list[str]:
    """Return a line for each configuration where saving takes more than LIMIT."""
    return [
        f"{row['config']}: a step that saves takes {row['times_a_step']:.2f}× a normal one, above {LIMIT}×"
        for row in rows
        if row["times_a_step"] > LIMIT
    ]
