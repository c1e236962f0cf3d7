"""Pretraining: raw text in, a run folder with a trained model out."""

import platform
import shutil
from importlib.metadata import version
from pathlib import Path

import numba
from rich.console import Console

from npllm.data.shards import TokenShard
from npllm.errors import ConfigError, ResourceError
from npllm.files.atomic import write_atomically
from npllm.runs.checkpoint_store import MOST_BESIDES_KEEP
from npllm.runs.config_file import config_text, load_config
from npllm.runs.new_run import create_run
from npllm.runs.run_folder import RunFolder, open_run
from npllm.training.calibration import steps_in_budget
from npllm.training.config import RunConfig, TrainConfig
from npllm.training.evaluation import quick_loss
from npllm.training.loop import NextTokenGradients, build_state
from npllm.training.machine import cpu_model, usable_dtype
from npllm.training.memory import Memory, pretraining_work, require_pretraining_memory, reserve_arenas
from npllm.training.prepare import prepare_data
from npllm.training.results import report_results
from npllm.training.state import LoopState
from npllm.training.train import Stage, train


def pretrain(config: RunConfig, path: Path, console: Console) -> None:
    """The main job from the beginning: prepare data, fix the number of steps, train, evaluate."""
    set_up_kernels(config.train, console)
    with create_run(path) as draft, console.status("preparing") as status:
        corpus = prepare_data(config.data, draft, status.update)
        remarks, held_out = corpus.remarks, corpus.held_out
        del corpus  # the text is on the disk now, as tokens
        train_shard, val_shard = draft.load_shards()
        stage = next_token_stage(config, train_shard, val_shard)
        status.update("compiling kernels (kept for the next run)")
        memory = require_pretraining_memory(config, train_shard.vocab_size, val_shard.n_bytes)
        if config.train.steps is None:
            status.update(f"measuring how many steps fit into {config.train.minutes:g} minutes")
            config = config.with_steps(steps_in_budget(config, train_shard.vocab_size, train_shard.tokens))
        state = build_state(config, train_shard.vocab_size)
        reserve_arenas(state.model, pretraining_work(config))
        check_disk(draft.path, state, config.train.keep)
        write_atomically(draft.config, config_text(config, describe_machine("pretrain")).encode())
    run = RunFolder(path)
    for line in (*remarks, describe(config, state, train_shard, val_shard, memory, held_out)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    with run.lock():
        train(run, config, state, stage, console)
        report_results(run, state, val_shard, console)


def resume(path: Path, console: Console) -> None:
    """Go on where a run stopped, bit for bit."""
    run = open_run(path)
    with run.lock():
        config = load_config(run.config, RunConfig)
        set_up_kernels(config.train, console)
        train_shard, val_shard = run.load_shards()
        require_pretraining_memory(config, train_shard.vocab_size, val_shard.n_bytes)
        state = build_state(config, train_shard.vocab_size)
        reserve_arenas(state.model, pretraining_work(config))
        train(run, config, state, next_token_stage(config, train_shard, val_shard), console)
        report_results(run, state, val_shard, console)


def next_token_stage(config: RunConfig, train_shard: TokenShard, val_shard: TokenShard) -> Stage:
    """What is particular to pretraining."""
    return Stage(
        gradients=NextTokenGradients(config, train_shard.tokens),
        validate=lambda model: quick_loss(model, val_shard.tokens),
        tokens_per_byte=len(train_shard.tokens) / train_shard.n_bytes,
    )


def describe(
    config: RunConfig, state: LoopState, train: TokenShard, val: TokenShard, memory: Memory, held_out: str
) -> str:
    """Two lines about what is going to happen."""
    val_share = val.n_bytes / (train.n_bytes + val.n_bytes)
    n_params = state.model.params.count
    return (
        f"{n_params / 1e6:.2f} M parameters, vocabulary {train.vocab_size:,}, "
        f"{memory.announced / 1e6:.0f} MB of memory; "
        f"{config.train.steps:,} steps of up to {config.batch.size} × {config.model.block_size} tokens\n"
        f"trains on {train.n_bytes / 1e6:.2f} MB = {len(train.tokens) / 1e6:.2f} M tokens, "
        f"validates on {val.n_bytes / 1e6:.2f} MB ({100 * val_share:.1f} %): {held_out}"
    )


def describe_machine(stage: str) -> dict[str, str]:
    """The verb that made a run, versions and processor: with another one the same config may give other bits."""
    packages = {name: version(name) for name in ("npllm", "numpy", "numba")}
    return {"stage": stage, **packages, "python": platform.python_version(), "cpu": cpu_model()}


def check_disk(folder: Path, state: LoopState, keep: int) -> None:
    """Raise ResourceError before training when the checkpoints would not fit: all that are kept, and the one being
    written."""
    count = keep + MOST_BESIDES_KEEP + 1
    needed = count * sum(array.nbytes for array in state.arrays().values())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ResourceError(
            f"The disk of --out has {free / 1e6:.0f} MB free, but {count} checkpoints need {needed / 1e6:.0f} MB; "
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
