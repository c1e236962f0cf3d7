"""The settings of `npllm classify`."""

from dataclasses import dataclass, field
from typing import Literal

from npllm.errors import ConfigError
from npllm.finetuning.stage_run import StageConfig
from npllm.model.config import check_choices
from npllm.optim import BatchConfig, OptimConfig
from npllm.training.spikes import SpikeConfig


@dataclass(frozen=True, kw_only=True)
class ClassifySettings:
    """How the labels are used."""

    labels: tuple[int, ...] = (8, 32, 128, 512)
    """labels per class at which accuracy is measured; those that a class has too few for are left out"""
    seeds: int = 5
    """trainings for each number of labels, at least 2"""
    compare_scratch: bool = False
    """train the same network from random weights too, with the same labels and as many updates"""
    scratch_lr: float = 3e-3
    """its learning rate: random weights have further to go than pretrained ones, whose rate is optim.lr"""
    epochs: float = 3.0
    """times that each text is learnt from (GPT-1: 3), where that is more than min_updates"""
    min_updates: int = 60
    """updates at least, however few the labels"""
    aux_lm: float = 0.5
    """weight of the texts' language-model loss beside that of the classes (GPT-1: 0.5)"""
    pool: Literal["last", "mean"] = "mean"
    """what the head reads: the final state of the last token (GPT-1), or the mean of all tokens' states"""
    test_fraction: float = 0.2
    """share of each class that is held out as the test, where there is no file for it"""
    test_texts: int = 1000
    """most texts to test on; of more a random choice"""

    on_bad: Literal["stop", "skip"] = "stop"
    """what becomes of bad records: stop = all are named and nothing is trained; skip = they are left out. Of a text
    that is too long the end is read"""

    def __post_init__(self):
        check_choices("classify", self)
        if not self.labels or min(self.labels) < 1 or list(self.labels) != sorted(set(self.labels)):
            raise ConfigError(f"classify.labels is {self.labels}, but must be numbers above 0 that rise.")
        if self.seeds < 2:
            raise ConfigError(f"classify.seeds is {self.seeds}, but must be at least 2: one says nothing of chance.")
        if not self.scratch_lr > 0:
            raise ConfigError(f"classify.scratch_lr is {self.scratch_lr}, but must be above 0.")
        if not self.epochs > 0:
            raise ConfigError(f"classify.epochs is {self.epochs}, but must be above 0.")
        if not self.aux_lm >= 0:
            raise ConfigError(f"classify.aux_lm is {self.aux_lm}, but must not be negative.")
        if not 0 < self.test_fraction < 1:
            raise ConfigError(f"classify.test_fraction is {self.test_fraction}, but must be between 0 and 1.")
        for name in ("min_updates", "test_texts"):
            if getattr(self, name) < 1:
                raise ConfigError(f"classify.{name} is {getattr(self, name)}, but must be at least 1.")


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig(StageConfig):
    """A complete experiment in transfer. train.steps counts the updates of the run's own classifier only."""

    lengthened_by = "train.steps or classify.epochs"
    classify: ClassifySettings = field(default_factory=ClassifySettings)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=1e-3, min_lr=0.0, warmup_steps=10, decay="linear", weight_decay=0.01)
    )
    batch: BatchConfig = field(default_factory=lambda: BatchConfig(size=16, micro_size=16))
    # A classifier's loss falls to nearly nothing; beside such a window every hard text would count as a spike.
    spikes: SpikeConfig = field(default_factory=lambda: SpikeConfig(enabled=False))

    def n_updates(self, n_texts: int) -> int:
        """How many updates learning from so many texts takes."""
        return max(self.classify.min_updates, round(self.classify.epochs * n_texts / self.batch.size))
