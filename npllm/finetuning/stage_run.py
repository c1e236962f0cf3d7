"""What the stages after pretraining share: their settings, how long they learn, their initial state."""

from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple, TypeVar

import numpy as np

from npllm.errors import ConfigError
from npllm.finetuning.adaptation import AdaptConfig, lr_scales
from npllm.finetuning.chosen_records import OnBad
from npllm.model import Trainable
from npllm.model.config import check_choices
from npllm.optim import build_optimizer, warmup_updates
from npllm.training.config import LoopConfig, TrainConfig
from npllm.training.spikes import SpikeDetector
from npllm.training.state import LoopState

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


def describe_length(config: LoopConfig, n_rows: int, unit: str) -> str:
    """What is going to happen, in a line. unit: what a batch holds, as "pairs"."""
    steps, size = config.train.steps, config.batch.size
    times = f"each of the {n_rows:,} is learnt from {steps * size / n_rows:.3g} times"
    watch = "" if config.spikes.enabled else "; loss spikes are not looked for"
    return f"updates: {steps:,}, {unit} in each: {size}; {times}{watch}"


def new_state(model: Trainable, config: StageConfig, extra: dict[str, np.ndarray] | None = None) -> LoopState:
    """Before the first update of a stage. extra: what the stage carries besides weights and moments."""
    optimizer = build_optimizer(model, config.optim, lr_scales(config.adapt, model))
    detector = SpikeDetector(config.spikes, warmup_updates(config.train.steps, config.optim))
    return LoopState(model, optimizer, detector, extra=extra or {})


def micro_batch(config: LoopConfig) -> int:
    """Samples at once."""
    return min(config.batch.size, config.batch.micro_size)
