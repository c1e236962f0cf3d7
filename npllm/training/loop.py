"""The training loop: sample, forward and backward, clip and update, again."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import isfinite

import numpy as np

from npllm.data.sampler import WindowSampler, batch
from npllm.errors import TrainingError
from npllm.model import GPT, ModelConfig
from npllm.optim import batch_size, build_optimizer, learning_rate
from npllm.training.config import RunConfig
from npllm.training.machine import usable_dtype
from npllm.training.state import LoopState


@dataclass(frozen=True)
class Update:
    """What one update did. loss: nats per token, of the weights before the update. grad_norm: before clipping."""

    step: int  # updates made, this one included
    loss: float
    grad_norm: float
    lr: float
    batch: int  # sequences
    tokens: int  # trained on so far
    seconds: float  # that this update took


def build_state(config: RunConfig, vocab_size: int) -> LoopState:
    """Model and optimiser at the beginning of a run."""
    model_config = ModelConfig(**asdict(config.model), vocab_size=vocab_size)
    model = GPT(model_config, seed=config.train.seed, dtype=usable_dtype(config.train.dtype))
    return LoopState(model, build_optimizer(model, config.optim))


def updates(state: LoopState, config: RunConfig, tokens: np.ndarray) -> Iterator[Update]:
    """Make the updates that remain of config.train.steps, on windows of `tokens`, (n_tokens,); yield after each.

    Between two of them the state is complete: saved there and restored later, it goes on bit for bit.
    """
    sampler = WindowSampler(len(tokens), config.model.block_size, config.train.seed)
    while state.step < config.train.steps:
        yield make_update(state, config, tokens, sampler)


def make_update(state: LoopState, config: RunConfig, tokens: np.ndarray, sampler: WindowSampler) -> Update:
    """One update: the gradients of the batch's micro-batches add up, then the optimiser steps."""
    start = time.perf_counter()
    step, T = state.step, config.model.block_size
    rows = batch_size(step, config.batch)
    lr = learning_rate(step, config.train.steps, config.optim)

    loss = 0.0
    for first in range(0, rows, config.batch.micro_size):
        last = min(first + config.batch.micro_size, rows)
        ids = np.arange(state.next_sample + first, state.next_sample + last)
        x, y = batch(tokens, sampler.positions(ids), T)  # (rows of the micro-batch, T)
        loss += state.model.loss_and_grad(x, y, n_targets=rows * T, step=step, first_row=first)
    if not isfinite(loss):
        raise TrainingError(f"The loss of step {step + 1} is {loss}; lower optim.lr or lengthen optim.warmup_steps.")
    grad_norm = state.optimizer.step(grad_clip=config.optim.grad_clip, lr=lr)

    state.next_sample += rows
    state.tokens += rows * T
    seconds = time.perf_counter() - start
    state.seconds += seconds
    return Update(state.step, loss, grad_norm, lr, rows, state.tokens, seconds)
