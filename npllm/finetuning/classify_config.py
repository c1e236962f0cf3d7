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
    """How the classifier is trained and tested."""

    labels: tuple[int, ...] = (8, 32, 128, 512)
    """labels per class at which the accuracy is measured;
    a number is left out if a class has fewer texts"""
    seeds: int = 5
    """trainings for each number of labels, at least 2"""
    compare_scratch: bool = False
    """also train the same network from random weights,
    on the same labels and for as many updates"""
    scratch_lr: float = 3e-3
    """learning rate from random weights, which have to change more than pretrained
    ones; optim.lr is that of pretrained weights"""
    epochs: float = 3.0
    """passes over the texts (GPT-1: 3); more if these make fewer than min_updates"""
    min_updates: int = 60
    """least number of updates, however few the labels"""
    aux_lm: float = 0.5
    """weight of the texts' language-model loss, added to the classes' (GPT-1: 0.5)"""
    pool: Literal["last", "mean"] = "mean"
    """what the head reads: the final state of the last token (GPT-1),
    or the mean of the final states of all tokens"""
    test_fraction: float = 0.2
    """share of each class that is held out for the test, if there is no --test"""
    test_texts: int = 1000
    """most texts to test on; if there are more, they are chosen at random"""

    on_bad: Literal["stop", "skip"] = "stop"
    """bad records: stop = list all of them and train nothing; skip = leave them out;
    a text that is too long is not bad: only its end is read"""

    def __post_init__(self):
        check_choices("classify", self)
        if not self.labels or min(self.labels) < 1 or list(self.labels) != sorted(set(self.labels)):
            raise ConfigError(f"classify.labels is {self.labels}; list numbers above 0 in rising order.")
        if self.seeds < 2:
            raise ConfigError(f"classify.seeds is {self.seeds}; set it to at least 2, so that there is a spread.")
        if not self.scratch_lr > 0:
            raise ConfigError(f"classify.scratch_lr is {self.scratch_lr}; set it above 0.")
        if not self.epochs > 0:
            raise ConfigError(f"classify.epochs is {self.epochs}; set it above 0.")
        if not self.aux_lm >= 0:
            raise ConfigError(f"classify.aux_lm is {self.aux_lm}; set it to at least 0.")
        if not 0 < self.test_fraction < 1:
            raise ConfigError(f"classify.test_fraction is {self.test_fraction}; set it between 0 and 1.")
        for name in ("min_updates", "test_texts"):
            if getattr(self, name) < 1:
                raise ConfigError(f"classify.{name} is {getattr(self, name)}; set it to at least 1.")


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig(StageConfig):
    """The config of `npllm classify`.

    train.steps counts the updates of the run's own classifier only.
    """

    lengthened_by = "train.steps or classify.epochs"
    classify: ClassifySettings = field(default_factory=ClassifySettings)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=1e-3, min_lr=0.0, warmup_steps=10, decay="linear", weight_decay=0.01)
    )
    batch: BatchConfig = field(default_factory=lambda: BatchConfig(size=16, micro_size=16))
    # A classifier's loss falls to nearly 0. Compared with such a window, every hard
    # text would count as a spike.
    spikes: SpikeConfig = field(default_factory=lambda: SpikeConfig(enabled=False))

    def n_updates(self, n_texts: int) -> int:
        """The number of updates of a training on n_texts texts."""
        return max(self.classify.min_updates, round(self.classify.epochs * n_texts / self.batch.size))
