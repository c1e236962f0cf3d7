"""Optimisation: update rules, learning-rate schedules and the batch ramp."""

from npllm.optim.config import BatchConfig, OptimConfig
from npllm.optim.optimizers import SGD, Adam, AdamW, Muon, Optimizer, build_optimizer, moment_count
from npllm.optim.schedules import batch_size, learning_rate, warmup_updates

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "BatchConfig",
    "Muon",
    "OptimConfig",
    "Optimizer",
    "batch_size",
    "build_optimizer",
    "learning_rate",
    "moment_count",
    "warmup_updates",
]
