"""Pretraining: raw text in, a run folder with a trained model out."""

import platform
import shutil
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numba
from rich.console import Console

from npllm.atomic import write_atomically
from npllm.data.shards import TokenShard
from npllm.errors import ConfigError, Interrupted, ResourceError
from npllm.training.calibration import steps_in_budget, warm_up
from npllm.training.checkpoint import checkpoints, restore_checkpoint, save_checkpoint
from npllm.training.config import RunConfig, TrainConfig, config_text, load_config
from npllm.training.evaluation import quick_loss
from npllm.training.interrupts import stop_on_signals
from npllm.training.loop import build_state, updates
from npllm.training.machine import cpu_model, matmul_peak, usable_dtype
from npllm.training.metrics import append_metrics, drop_metrics_after
from npllm.training.prepare import prepare_data
from npllm.training.progress import ProgressView
from npllm.training.results import report_results
from npllm.training.run_folder import RunFolder, create_run, open_run
from npllm.training.state import LoopState


def pretrain(config: RunConfig, path: Path, console: Console) -> None:
    """The main job from the beginning: prepare data, fix the number of steps, train, evaluate."""
    set_up_kernels(config.train, console)
    with create_run(path) as draft, console.status("preparing") as status:
        skipped = prepare_data(config.data, draft, status.update).skipped
        train_shard, val_shard = draft.load_shards()
        status.update("compiling kernels (kept for the next run)")
        memory = warm_up(config, train_shard.vocab_size, train_shard.tokens)
        if config.train.steps is None:
            status.update(f"measuring how many steps fit into {config.train.minutes:g} minutes")
            config = config.with_steps(steps_in_budget(config, train_shard.vocab_size, train_shard.tokens))
        state = build_state(config, train_shard.vocab_size)
        check_disk(draft.path, state, config.train.keep)
        write_atomically(draft.config, config_text(config, describe_machine()).encode())
    run = RunFolder(path)
    if skipped:
        what = f"{len(skipped)} files that are empty or no UTF-8 text were skipped, the first of them {skipped[0]}"
        console.print(what, highlight=False, markup=False, soft_wrap=True)
    console.print(describe(config, state, train_shard, val_shard, memory), highlight=False, soft_wrap=True)
    train(run, config, state, train_shard, val_shard, console)
    report_results(run, state, val_shard, console)


def resume(path: Path, console: Console) -> None:
    """Go on where a run stopped, bit for bit."""
    run = open_run(path)
    config = load_config(run.config)
    set_up_kernels(config.train, console)
    train_shard, val_shard = run.load_shards()
    state = build_state(config, train_shard.vocab_size)
    if checkpoints(run.checkpoints):
        restore_checkpoint(run.newest_checkpoint(), state)
    where = f"{run.path}: going on after step {state.step} of {config.train.steps}"
    console.print(where, highlight=False, markup=False, soft_wrap=True)
    train(run, config, state, train_shard, val_shard, console)
    report_results(run, state, val_shard, console)


def train(
    run: RunFolder,
    config: RunConfig,
    state: LoopState,
    train_shard: TokenShard,
    val_shard: TokenShard,
    console: Console,
) -> None:
    """Make the updates that remain, with metrics, a look at the validation text and checkpoints on the way."""
    T = config.model.block_size
    flops_per_token = state.model.config.flops_per_token(T)
    peak = matmul_peak(state.model.dtype)
    tokens_per_byte = len(train_shard.tokens) / train_shard.n_bytes
    view = ProgressView(
        console, config, state.step, tokens_per_byte=tokens_per_byte, flops_per_token=flops_per_token, peak=peak
    )
    drop_metrics_after(run.metrics, state.step)
    with stop_on_signals() as stop, view:
        for update in updates(state, config, train_shard.tokens):
            record: dict[str, Any] = asdict(update)
            record["tokens_per_s"] = update.batch * T / update.seconds
            record["mfu"] = record["tokens_per_s"] * flops_per_token / peak
            is_last, stopping = update.step == config.train.steps, stop.requested
            if update.step % config.train.eval_every == 0 or is_last:
                record["val_loss"] = quick_loss(state.model, val_shard.tokens)
            append_metrics(run.metrics, record)
            view.show(update, T)
            if update.step % config.train.checkpoint_every == 0 or is_last or stopping:
                save_checkpoint(run.checkpoints, state, config.train.keep)
            if stopping and not is_last:
                raise Interrupted(f"Stopped and saved after step {update.step}; go on with: npllm resume {run.path}")


def describe(config: RunConfig, state: LoopState, train: TokenShard, val: TokenShard, memory: int) -> str:
    """Two lines about what is going to happen."""
    n_params = state.model.params.count
    return (
        f"{n_params / 1e6:.2f} M parameters, vocabulary {train.vocab_size:,}, {memory / 1e6:.0f} MB of memory; "
        f"{config.train.steps:,} steps of up to {config.batch.size} × {config.model.block_size} tokens\n"
        f"trains on {train.n_bytes / 1e6:.2f} MB = {len(train.tokens) / 1e6:.2f} M tokens, "
        f"validates on {val.n_bytes / 1e6:.2f} MB"
    )


def describe_machine() -> dict[str, str]:
    """Versions and processor: with another one the same config may give other bits."""
    packages = {name: version(name) for name in ("npllm", "numpy", "numba")}
    return {"stage": "pretrain", **packages, "python": platform.python_version(), "cpu": cpu_model()}


def check_disk(folder: Path, state: LoopState, keep: int) -> None:
    """Raise ResourceError before training when the checkpoints would not fit: `keep`, and the one being written."""
    needed = (keep + 1) * sum(array.nbytes for array in state.arrays().values())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ResourceError(
            f"The disk of --out has {free / 1e6:.0f} MB free, but {keep + 1} checkpoints need {needed / 1e6:.0f} MB; "
            "free some, lower train.keep, or choose another --out."
        )


def set_up_kernels(config: TrainConfig, console: Console) -> None:
    """Limit the threads of the kernels, and say so where they cannot multiply what they should. Raises ConfigError when
    there are not so many threads."""
    if usable_dtype(config.dtype) != config.dtype:
        console.print("This CPU cannot multiply bfloat16 (it lacks AVX512-BF16): training in float32.", highlight=False)
    threads = config.threads
    if threads is None:
        return
    if not 1 <= threads <= numba.config.NUMBA_NUM_THREADS:
        raise ConfigError(f"train.threads is {threads}, but this machine offers 1 to {numba.config.NUMBA_NUM_THREADS}.")
    numba.set_num_threads(threads)
