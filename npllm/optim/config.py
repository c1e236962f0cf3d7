"""Settings of the optimiser, its schedule and the batch."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from npllm.errors import ConfigError
from npllm.model.config import check_choices

LARGEST_BATCH = 1 << 24  # sequences


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The update rule, its learning-rate schedule and clipping."""

    follows: ClassVar[dict[str, str]] = {"min_lr": "lr", "matrix_lr": "lr"}  # see Option in runs/arguments.py
    name: Literal["adamw", "muon", "adam", "sgd"] = "adamw"
    """update rule; muon is for the blocks' matrices, with AdamW for the rest; sgd takes
    beta1 as its momentum"""
    lr: float = 1e-3
    """peak learning rate"""
    matrix_lr: float = 2e-2
    """peak learning rate of muon's matrices, scheduled like lr; if only lr is set, it
    changes in proportion"""
    min_lr: float = 1e-4
    """learning rate at the end of the decay; a tenth of the peak, as in GPT-3"""
    warmup_steps: int = 100
    """steps of linear warm-up from 0 to the peak; at most a tenth of the run"""
    decay: Literal["cosine", "linear", "constant", "inverse_sqrt", "wsd"] = "cosine"
    """shape of the decay; wsd = warm-up, stable, then linear"""
    cooldown: float = 0.2
    """share of the updates in which wsd lowers the rate"""
    beta1: float = 0.9
    """decay rate of Adam's mean of the gradient (GPT-3: 0.9)"""
    beta2: float = 0.95
    """decay rate of Adam's mean square of the gradient (GPT-3: 0.95)"""
    eps: float = 1e-8
    """added to Adam's denominator (GPT-3: 1e-8)"""
    weight_decay: float = 0.1
    """on matrices only, not on biases and norms (GPT-3: 0.1)"""
    grad_clip: float = 1.0
    """largest norm of the gradient; a larger one is scaled down (GPT-3: 1.0); 0 = no
    clipping
    """

    def __post_init__(self):
        check_choices("optim", self)
        for field in ("lr", "matrix_lr", "min_lr", "warmup_steps", "weight_decay", "grad_clip"):
            if not getattr(self, field) >= 0:
                raise ConfigError(f"optim.{field} is {getattr(self, field)}; set it to at least 0.")
        if not self.eps > 0:  # else a parameter without a gradient moves by 0 / 0
            raise ConfigError(f"optim.eps is {self.eps}; set it above 0.")
        for field in ("beta1", "beta2"):
            if not 0 <= getattr(self, field) < 1:
                raise ConfigError(f"optim.{field} is {getattr(self, field)}; set it to at least 0 and below 1.")
        if not 0 < self.cooldown <= 1:
            raise ConfigError(f"optim.cooldown is {self.cooldown}; set it above 0 and to at most 1.")
        if self.min_lr > self.lr:
            raise ConfigError(f"optim.min_lr = {self.min_lr} is above optim.lr = {self.lr}; lower optim.min_lr.")


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """The number of sequences in one update."""

    follows: ClassVar[dict[str, str]] = {"ramp_start": "size"}
    size: int | None = 12
    """sequences of block_size tokens per update; none, in sft, reward and dpo = 16 rows
    or 32 pairs, or fewer if the data is small; in ppo = 32, or a divisor of
    ppo.rollout_size
    """
    micro_size: int = 12
    """sequences in memory at once; a batch is the sum of the gradients of its
    micro-batches
    """
    ramp_start: int | None = None
    """sequences per update at the start; none = batch.size from the first step"""
    ramp_steps: int = 0
    """updates over which the batch grows from ramp_start to size"""

    def __post_init__(self):
        for field in ("size", "micro_size"):
            if (value := getattr(self, field)) is not None and value < 1:
                raise ConfigError(f"batch.{field} is {value}; set it to at least 1.")
        if self.size is not None and self.size > LARGEST_BATCH:  # else their indices alone fill the memory
            raise ConfigError(f"batch.size is {self.size}; set it to at most {LARGEST_BATCH}.")
        if self.ramp_steps < 0:
            raise ConfigError(f"batch.ramp_steps is {self.ramp_steps}; set it to at least 0.")
        if self.ramp_start is not None and not 1 <= self.ramp_start <= (self.size or LARGEST_BATCH):
            raise ConfigError(
                f"batch.ramp_start = {self.ramp_start} is not between 1 and batch.size = {self.size}; set it to a "
                "number between them, or to none for no ramp."
            )
