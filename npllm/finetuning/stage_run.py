"""The run folder of a later stage. It holds all that the stage began with, so it can go on without its ancestors.

config.toml, tokenizer.json, metrics.jsonl, checkpoints/ ...    as in pretraining
models/NAME.h5          checkpoints of the models that it began with, copied
data/NAME.jsonl         its records, with their hashes beside them
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
from rich.console import Console

from npllm.data.records import write_records
from npllm.errors import ConfigError, DataError
from npllm.files.atomic import sync, write_atomically
from npllm.finetuning.adaptation import AdaptConfig, lr_scales
from npllm.finetuning.chosen_records import OnBad
from npllm.generation import check_writes
from npllm.model import GPT, ActorCritic, ModelConfig
from npllm.model.config import check_choices
from npllm.optim import build_optimizer, warmup_updates
from npllm.runs.checkpoint import checkpoint_files, model_from_checkpoint
from npllm.runs.checksums import checked, write_checksums
from npllm.runs.config_file import config_text, load_config
from npllm.runs.new_run import create_run
from npllm.runs.run_folder import RunFolder, run_of
from npllm.tokenizer import Tokenizer
from npllm.training.config import LoopConfig, TrainConfig
from npllm.training.memory import Work, check_memory, networks_of, reserve_arenas, stage_memory
from npllm.training.pretrain import check_disk, describe_machine
from npllm.training.spikes import SpikeDetector
from npllm.training.state import LoopState
from npllm.training.train import Stage, train
from npllm.training.warmup import load_kernels

C = TypeVar("C", bound=LoopConfig)

FEWEST_LOOKS = 4  # at the held-out records, in a run whose length nobody set
MOST_PASSES = 4  # over its records, of a run that looks for spikes


@dataclass(frozen=True, kw_only=True)
class StageConfig(LoopConfig):
    """What every later stage has: the loop's settings, and which weights it trains."""

    adapt: AdaptConfig = field(default_factory=AdaptConfig)

    def __post_init__(self):
        super().__post_init__()
        if self.train.minutes != TrainConfig().minutes:
            raise ConfigError("train.minutes is for pretraining; set train.steps, or the stage's epochs.")


class Usual(NamedTuple):
    """How long a stage learns where it is not told, and how short it may become where records are few."""

    epochs: float
    batch: int
    least_batch: int  # the gradient of fewer records is little but noise
    least_updates: int  # at the stage's learning rate fewer change too little


@dataclass(frozen=True, kw_only=True)
class RecordSettings:
    """How a stage uses its records. A subclass names its section, which the complaints name."""

    section: ClassVar[str]
    usual: ClassVar[Usual]
    epochs: float | None = None
    """times that each record is learnt from, where train.steps is none; none = 3 in sft and 1 in reward and dpo, and
    more where records are few"""
    val_fraction: float = 0.1
    """share of the records that is held out, all with the same prompt together"""
    on_bad: OnBad = "stop"
    """what becomes of records that are bad or too long: stop = all are named and nothing is trained; skip = they are
    left out; truncate = of those that are too long the prompt loses its beginning, the others are left out"""

    def __post_init__(self):
        check_choices(self.section, self)
        if self.epochs is not None and not self.epochs > 0:
            raise ConfigError(f"{self.section}.epochs is {self.epochs}, but must be above 0.")
        if not 0 < self.val_fraction < 1:
            raise ConfigError(f"{self.section}.val_fraction is {self.val_fraction}, but must be between 0 and 1.")


def create_stage_run(
    path: Path,
    stage: str,
    config: LoopConfig,
    tokenizer: Tokenizer,
    *,
    models: Mapping[str, Path],
    records: Mapping[str, Sequence],
) -> RunFolder:
    """A run folder ready to train. models: name -> the checkpoint to copy. records: name -> dataclasses."""
    with create_run(path) as draft:
        (draft.path / "models").mkdir()
        for name, checkpoint in models.items():
            shutil.copyfile(checkpoint, model_file(draft, name))
            sync(model_file(draft, name))
        sync(draft.path / "models")
        for name, rows in records.items():
            write_records(record_file(draft, name), rows)
        write_checksums(draft.path / "data")
        tokenizer.save(draft.tokenizer)
        write_atomically(draft.config, config_text(config, describe_machine(stage)).encode())
    return RunFolder(path)


def model_file(run: RunFolder, name: str) -> Path:
    """Where a model lies that the stage began with."""
    return run.path / "models" / f"{name}.h5"


def record_file(run: RunFolder, name: str) -> Path:
    """Where records of the stage lie."""
    return run.path / "data" / f"{name}.jsonl"


def checked_records(run: RunFolder, name: str) -> Path:
    """Where they lie, once it is known that they are those that the stage began with. Raises DataError for others."""
    return checked(record_file(run, name))


def load_model(run: RunFolder, name: str) -> GPT:
    """A model that the stage began with."""
    return model_from_checkpoint(model_file(run, name))


def trained_checkpoint(path: Path) -> tuple[Path, Tokenizer]:
    """The checkpoint that a run (or a checkpoint in it) stands for, and its tokenizer."""
    run = run_of(path)
    return (Path(path) if Path(path).is_file() else run.newest_checkpoint()), run.load_tokenizer()


def policy_checkpoint(path: Path) -> tuple[Path, Tokenizer, ModelConfig]:
    """The same, and the shape of the model, for a stage whose model writes texts.

    Raises ConfigError for a run whose model judges them.
    """
    checkpoint, tokenizer = trained_checkpoint(path)
    model = model_from_checkpoint(checkpoint)
    check_writes(model, path)
    return checkpoint, tokenizer, model.config


def block_size_of(checkpoint: Path) -> int:
    """The longest sequence of the model in a checkpoint, in tokens."""
    return model_from_checkpoint(checkpoint).config.block_size


def check_same_tokenizer(one: Path, other: Path) -> None:
    """Raise DataError unless two runs write text with the same tokens."""
    if run_of(one).load_tokenizer().sha256() != run_of(other).load_tokenizer().sha256():
        raise DataError(
            f"{one} and {other} have different tokenizers; train the reward model from the run whose policy it judges."
        )


def fix_length(config: C, settings: RecordSettings, n_rows: int) -> C:
    """The config of a run on n_rows records (of SFT: packed rows), with its batch, epochs and updates as numbers.

    What was set stays. The rest is the usual, but where that makes fewer than
    least_updates the batch is smaller, and where that is not enough there are more epochs.
    A run over the same few records again and again has no detector of spikes: its losses
    fall to nearly nothing, and beside such a window every harder record would count as one.
    """
    usual, size, epochs, steps = settings.usual, config.batch.size, settings.epochs, config.train.steps
    if size is None:
        fitting = int((epochs or usual.epochs) * n_rows / usual.least_updates)
        size = min(usual.batch, n_rows, max(usual.least_batch, fitting))
        batch = replace(config.batch, size=size, micro_size=min(size, config.batch.micro_size))
        config = replace(config, batch=batch)
    if steps is None:
        epochs = epochs or max(usual.epochs, usual.least_updates * size / n_rows)
        steps = max(1, round(epochs * n_rows / size))
        looks = min(config.train.eval_every, max(1, steps // FEWEST_LOOKS))
        config = replace(config, train=replace(config.train, steps=steps, eval_every=looks))
        config = replace(config, **{settings.section: replace(settings, epochs=epochs)})
    if steps * size > MOST_PASSES * n_rows:
        config = replace(config, spikes=replace(config.spikes, enabled=False))
    return config


def load_fixed(run: RunFolder, kind: type[C]) -> C:
    """The config of a run that `fix_length` made. Raises ConfigError where it is no longer complete."""
    config = load_config(run.config, kind)
    for name, value in (("train.steps", config.train.steps), ("batch.size", config.batch.size)):
        if value is None:
            raise ConfigError(f"{run.config} has no {name}; restore the config.toml of the run.")
    return config


def describe_length(config: LoopConfig, n_rows: int, unit: str) -> str:
    """What is going to happen, in a line. unit: what a batch holds, as "pairs"."""
    steps, size = config.train.steps, config.batch.size
    times = f"each of the {n_rows:,} is learnt from {steps * size / n_rows:.3g} times"
    watch = "" if config.spikes.enabled else "; loss spikes are not looked for"
    return f"{steps:,} updates of {size} {unit}: {times}{watch}"


def new_state(model: GPT | ActorCritic, config: StageConfig, extra: dict[str, np.ndarray] | None = None) -> LoopState:
    """Before the first update of a stage. extra: what the stage carries besides weights and moments."""
    scales = {
        name: scale
        for part, of_part in model.configs.items()
        for name, scale in lr_scales(config.adapt, of_part, names_of(part, model)).items()
    }
    optimizer = build_optimizer(model, config.optim, scales)
    detector = SpikeDetector(config.spikes, warmup_updates(config.train.steps, config.optim))
    return LoopState(model, optimizer, detector, extra=extra or {})


def names_of(part: str, model: GPT | ActorCritic) -> list[str]:
    """The parameters of the "model" or of the "critic"."""
    return [name for name in model.params if name.startswith("critic.") == (part == "critic")]


def train_stage(
    run: RunFolder,
    config: StageConfig,
    state: LoopState,
    stage: Stage,
    console: Console,
    *,
    work: Work,
    readers: Sequence[GPT] = (),
) -> None:
    """Say how much memory it takes, and train to the last step. Raises ResourceError before the first one when the
    memory is too small for it, or the disk for the checkpoints.

    work: what the passes are like. readers: models that stay beside the one that is trained.
    """
    model = state.model
    load_kernels(model.config, model.dtype_name, config.optim, policy=work.policy)
    memory = stage_memory(state, readers, work)
    check_memory(memory)
    for network in networks_of(model):
        reserve_arenas(network, work, writes=network.config == model.config)
    console.print(f"{memory.announced / 1e6:.0f} MB of memory", highlight=False)
    if not checkpoint_files(run.checkpoints):
        check_disk(run.path, state, config.train.keep)
    train(run, config, state, stage, console)


def micro_batch(config: LoopConfig) -> int:
    """Samples at once."""
    return min(config.batch.size, config.batch.micro_size)


def write_summary(run: RunFolder, state: LoopState, **figures: Any) -> None:
    """summary.json: the final figures, for programs."""
    summary = figures | {
        "steps": state.step,
        "tokens": state.tokens,
        "seconds": round(state.seconds, 3),
        "params_sha256": hashlib.sha256(state.model.params.flat).hexdigest(),
    }
    write_atomically(run.summary, (json.dumps(summary, indent=2) + "\n").encode())
