"""The contract of a stage: pretraining, SFT, a reward model, PPO ... are objects of one
class.

   arguments ─ stage.inputs ─> create_run ─> folder ─ stage.job ─> train ─> stage.report
                                               └──── train_run, also to resume ────┘

A stage is one file: its config, the inputs that it copies into the folder of a run, the
job that is trained, and its report. What all stages share is here. `stages.py` lists
them.
"""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from rich.console import Console

from npllm.distributed import world
from npllm.distributed.launch import check_alike
from npllm.errors import ConfigError, DataError, ResourceError
from npllm.files.atomic import write_atomically
from npllm.model import GPT
from npllm.runs.checkpoint import checkpoint_files, load_checkpoint
from npllm.runs.checkpoint_store import MOST_BESIDES_KEEP
from npllm.runs.checksums import NAME, check_list, checked
from npllm.runs.config_file import config_text, load_config
from npllm.runs.inputs import model_file, record_file
from npllm.runs.new_run import claim_run, discard_untrained, draft_run
from npllm.runs.run_folder import RunFolder
from npllm.runs.verify import Check
from npllm.training.config import LoopConfig
from npllm.training.job import Job
from npllm.training.machine import describe_machine, limit_threads, usable_dtype
from npllm.training.memory import (
    check_memory,
    largest_batch,
    reserve_arenas,
    spare_buffers,
    stage_memory,
    update_scratch_bytes,
)
from npllm.training.state import LoopState
from npllm.training.tensorboard import check_log
from npllm.training.train import OnRecord, train
from npllm.training.warmup import kind_of, load_kernels

C = TypeVar("C", bound=LoopConfig)
Figures = list[tuple[str, str]]  # (name, value as it is shown)


class Inputs(Protocol):
    """The inputs that a run starts from."""

    def write(self, draft: RunFolder, console: Console) -> LoopConfig:
        """Write the inputs into the folder of a new run. Returns the run's config."""


class Stage(ABC, Generic[C]):
    """One kind of training. Each subclass has a file of its own, with its config."""

    name: str  # in config.toml, and the verb of the command line
    config_type: type[C]
    models: tuple[str, ...] = ()  # names of the run's copies of input models, see runs/inputs.py
    records: tuple[str, ...] = ()  # names of the run's copies of input records
    first_options: tuple[str, ...] = ("optim.lr", "batch.size", "train.steps", "train.seed")  # that --help shows

    def default_config(self, arguments: Sequence[str]) -> C:
        """The config that the user's options change. arguments: of the command line."""
        return self.config_type()

    def folder_name(self, config: C, **arguments: Any) -> str:
        """The name of a new run's folder below runs/, if --out is not given. arguments:
        those of `inputs`."""
        return self.name

    @abstractmethod
    def inputs(self, config: C, console: Console, **arguments: Any) -> Inputs:
        """Read and check the inputs of a new run.

        A subclass names its arguments. They are the arguments of the verb, and their
        descriptions in the docstring are the verb's help.
        """

    @abstractmethod
    def job(self, run: RunFolder, config: C) -> Job:
        """The job of a run, made from its folder, in the initial state."""

    @abstractmethod
    def report(self, run: RunFolder, config: C, job: Job, console: Console) -> str:
        """Write summary.json and print the results. Called after the last update.

        Returns a shell command to try next.
        """

    def held_out_figures(self, run: RunFolder, config: C, model: GPT, console: Console) -> Figures:
        """The figures of a model of the run on the records that the run held out, for
        `npllm evaluate`. console: shows how much is done. Raises ConfigError in a stage
        that holds none out."""
        raise ConfigError(f"{run.path} holds no validation text; name one with --data.")

    def input_checks(self, run: RunFolder) -> Mapping[Path, Check]:
        """The input files of a run and the check of each, for `npllm verify`."""
        models = {model_file(run, name): load_checkpoint for name in self.models}
        records = {record_file(run, name): checked for name in self.records}
        return models | records | {run.path / "data" / NAME: check_list}


def start_run(
    stage: Stage[C],
    config: C,
    out: Path | None,
    console: Console,
    *,
    on_record: OnRecord = lambda record: None,
    **arguments: Any,
) -> RunFolder:
    """Make a run and train it. A run that fails before its first checkpoint is deleted,
    so that the user can correct the error and repeat the command.

    on_record: see `train`. arguments: of the stage's `inputs`.
    """
    check_log(config.train.log)
    if world().rank:
        run = RunFolder(world().share(None))
        train_run(run, console, stage)
        return run
    with claim_run(out, stage.folder_name(config, **arguments)) as path:
        run = create_run(stage, stage.inputs(config, console, **arguments), path, console)
        try:
            world().share(path.absolute())
            train_run(run, console, stage, on_record)
        except (ConfigError, DataError, ResourceError):
            discard_untrained(path)
            raise
    return run


def create_run(stage: Stage, inputs: Inputs, path: Path, console: Console) -> RunFolder:
    """Make a run folder at `path`, ready to train. Raises ConfigError when `path` is
    taken."""
    with draft_run(path) as draft:
        config = inputs.write(draft, console)
        write_atomically(draft.config, config_text(config, describe_machine(stage.name)).encode())
    return RunFolder(path)


def train_run(run: RunFolder, console: Console, stage: Stage, on_record: OnRecord = lambda record: None) -> None:
    """Train a run from its newest checkpoint to its last update, and report.

    on_record: see `train`.
    """
    ranks = world()
    with ExitStack() as held:
        config, job = ranks.agree(lambda: _prepared(run, console, stage, held))
        if ranks.size > 1:
            check_alike(ranks, {"config.toml": repr(config)})
        train(run, config, job, console, on_record)
        if ranks.rank == 0:
            command = stage.report(run, config, job, console)
            console.print(f"Next: {command}", soft_wrap=True)  # keeps the command on one line


def _prepared(run: RunFolder, console: Console, stage: Stage[C], held: ExitStack) -> tuple[C, Job]:
    """The config of a run and its job, with the memory that it takes. Rank 0 then holds
    the run's lock, until `held` is closed."""
    if world().rank == 0:
        held.enter_context(run.lock())
    config = load_run_config(run, stage.config_type)
    check_log(config.train.log)
    check_ranks(config, world().size)
    limit_threads(config.train.threads)
    if usable_dtype(config.train.dtype) != config.train.dtype:
        console.print("This CPU cannot multiply bfloat16 (it lacks AVX512-BF16): training in float32.")
    job = stage.job(run, config)
    if config.train.patience is not None and job.validate is None:
        raise ConfigError(
            f"train.patience is {config.train.patience}, but npllm {stage.name} measures no validation loss; leave "
            "it out."
        )
    console.print(job.description, soft_wrap=True)
    if world().size > 1:
        job.state.optimizer.shard(world())
    prepare_memory(run, config, job, console)
    return config, job


def check_ranks(config: LoopConfig, size: int) -> None:
    """Raise ConfigError if a run has more ranks than its largest batch has
    micro-batches, which are what the ranks divide."""
    rows, micro_size = largest_batch(config), config.batch.micro_size
    if size > (n_parts := -(-rows // micro_size)):
        mend = f"lower batch.micro_size to {rows // size}" if size <= rows else f"raise batch.size to {size}"
        raise ConfigError(
            f"There are {size} ranks, but the largest batch, {rows} sequences, has only {n_parts} micro-batches of "
            f"batch.micro_size = {micro_size} to divide; {mend}, or start fewer ranks."
        )


def load_run_config(run: RunFolder, kind: type[C]) -> C:
    """The config of a run. Raises ConfigError if it is not complete."""
    config = load_config(run.config, kind)
    needed = {"batch.size": config.batch.size}
    if not config.has_budget:
        needed["train.steps"] = config.train.steps
    for name, value in needed.items():
        if value is None:
            raise ConfigError(f"{run.config} has no {name}; restore the config.toml of the run.")
    return config


def prepare_memory(run: RunFolder, config: LoopConfig, job: Job, console: Console) -> None:
    """Print how much memory training takes, and reserve it. Raises ResourceError if
    there is too little memory, or too little disk space for the checkpoints."""
    model = job.state.model
    generates = job.work.written != (0, 0)
    load_kernels(kind_of(model.config, model.dtype_name, config.optim, policy=job.work.policy, generates=generates))
    update, spares = update_scratch_bytes(job.state.optimizer), spare_buffers(config, world())
    work = replace(job.work, update=update, spares=spares)
    memory = stage_memory(job.state, job.readers, work)
    check_memory(memory)
    for network in model.parts().values():
        reserve_arenas(network, work, writes=network.config == model.config)
    console.print(f"{memory.announced / 1e6:.0f} MB of memory")
    if not checkpoint_files(run.checkpoints):
        check_disk(run.path, job.state, config.train.keep)


def check_disk(folder: Path, state: LoopState, keep: int) -> None:
    """Raise ResourceError if the disk has no space for the checkpoints: all that are
    kept, and the one that is being written."""
    count = keep + MOST_BESIDES_KEEP + 1
    needed = count * state.saved_bytes
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ResourceError(
            f"The disk of --out has {free / 1e6:.0f} MB free, but {count} checkpoints need {needed / 1e6:.0f} MB; "
            "free some, lower train.keep, or choose another --out."
        )
