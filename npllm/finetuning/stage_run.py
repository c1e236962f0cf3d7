"""What the stages after pretraining share: settings, length and initial state."""

from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple, TypeVar

import numpy as np

from npllm.errors import ConfigError
from npllm.finetuning.adaptation import AdaptConfig, lr_scales
from npllm.finetuning.chosen_records import OnBad
from npllm.model import Trainable
from npllm.model.config import check_choices
from npllm.optim import build_optimizer
from npllm.training.config import LoopConfig, TrainConfig
from npllm.training.spikes import SpikeDetector
from npllm.training.state import LoopState

C = TypeVar("C", bound=LoopConfig)

FEWEST_LOOKS = 4  # least evaluations on held-out records, if train.steps was not set
MOST_PASSES = 4  # with more passes over its records, a run has no spike detector


@dataclass(frozen=True, kw_only=True)
class StageConfig(LoopConfig):
    """The config of a later stage: the loop's settings, and which weights it trains."""

    adapt: AdaptConfig = field(default_factory=AdaptConfig)

    def __post_init__(self):
        super().__post_init__()
        if self.train.minutes != TrainConfig().minutes:
            raise ConfigError("train.minutes is for pretraining; set train.steps, or the stage's epochs.")


class Usual(NamedTuple):
    """A stage's length if the user sets none, and the lower limits for few records."""

    epochs: float
    batch: int
    least_batch: int  # the gradient of fewer records is mostly noise
    least_updates: int  # at the stage's learning rate, fewer change the model too little


@dataclass(frozen=True, kw_only=True)
class RecordSettings:
    """How a stage uses its records.

    A subclass sets `section`, its name in the config, which error messages use.
    """

    section: ClassVar[str]
    usual: ClassVar[Usual]
    epochs: float | None = None
    """passes over the records, if train.steps is none;
    none = 3 in sft, 1 in reward and dpo, and more if there are few records"""
    val_fraction: float = 0.1
    """share of the records that is held out for validation;
    those with the same prompt stay together"""
    on_bad: OnBad = "stop"
    """records that are bad or too long: stop = list all of them and train nothing;
    skip = leave them out;
    truncate = cut off the beginning of prompts that are too long, skip the others"""

    def __post_init__(self):
        check_choices(self.section, self)
        if self.epochs is not None and not self.epochs > 0:
            raise ConfigError(f"{self.section}.epochs is {self.epochs}; set it above 0.")
        if not 0 < self.val_fraction < 1:
            raise ConfigError(f"{self.section}.val_fraction is {self.val_fraction}; set it between 0 and 1.")


def fix_length(config: C, settings: RecordSettings, n_rows: int) -> C:
    """Return the config with batch size, epochs and number of updates set.

    What the user has set stays. The other values are the stage's usual ones. If these
    make fewer than least_updates, the batch becomes smaller, and if that is not enough,
    there are more epochs.

    A run with many passes over the same records gets no spike detector. Its losses fall
    to nearly 0, and compared with such a window every harder record would be a spike.

    n_rows: the number of training records; in SFT, of packed rows.
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


def describe_length(config: LoopConfig, n_rows: int, unit: str) -> str:
    """Return a line about the length of a run. unit: what a batch holds, as "pairs"."""
    steps, size = config.train.steps, config.batch.size
    times = f"passes over all {n_rows:,}: {steps * size / n_rows:.3g}"
    watch = "" if config.spikes.enabled else "; no detection of loss spikes"
    return f"updates: {steps:,}, {unit} in each: {size}; {times}{watch}"


def new_state(model: Trainable, config: StageConfig, extra: dict[str, np.ndarray] | None = None) -> LoopState:
    """Return the state before the first update.

    extra: arrays that the stage saves besides weights and moments.
    """
    optimizer = build_optimizer(model, config.optim, lr_scales(config.adapt, model))
    detector = SpikeDetector(config.spikes)
    return LoopState(model, optimizer, detector, extra=extra or {})


def micro_batch(config: LoopConfig) -> int:
    """Return the number of samples in a micro-batch, at most those of a batch."""
    return min(config.batch.size, config.batch.micro_size)
