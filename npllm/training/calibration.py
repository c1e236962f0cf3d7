"""Turning a time budget into a number of steps."""

import time
from itertools import count
from statistics import median

import numpy as np

from npllm.data.sampler import WindowSampler
from npllm.optim import batch_size
from npllm.training.config import RunConfig
from npllm.training.loop import build_state, make_update

MAX_STEPS = 1_000_000
SHARE_OF_BUDGET = 0.03  # spent on the measurement


def warm_up(config: RunConfig, vocab_size: int, tokens: np.ndarray) -> int:
    """Run one update on a model that is thrown away, so that every kernel is compiled.

    Returns its peak memory in bytes: parameters, gradients, moments and activations.
    """
    state = build_state(config, vocab_size)
    sampler = WindowSampler(len(tokens), config.model.block_size, config.train.seed)
    make_update(state, config.with_steps(1), tokens, sampler)
    buffers = [*state.arrays().values(), state.model.grads.flat]
    return state.model.arena.peak + sum(array.nbytes for array in buffers)


def steps_in_budget(config: RunConfig, vocab_size: int, tokens: np.ndarray) -> int:
    """How many updates fit into config.train.minutes on this machine, the batch ramp counted in.

    Times updates of a model that is thrown away. An update takes time in proportion to its micro-batches, so the time
    of one is measured and added up over the ramp.
    """
    budget = 60.0 * config.train.minutes
    state = build_state(config, vocab_size)
    sampler = WindowSampler(len(tokens), config.model.block_size, config.train.seed)
    per_micro_batch = []
    end = time.perf_counter() + SHARE_OF_BUDGET * budget
    while len(per_micro_batch) < 3 or time.perf_counter() < end:
        update = make_update(state, config.with_steps(MAX_STEPS), tokens, sampler)
        per_micro_batch.append(update.seconds / _micro_batches(update.batch, config))
    seconds = median(per_micro_batch[1:])
    spent = 0.0
    for step in count():
        spent += seconds * _micro_batches(batch_size(step, config.batch), config)
        if spent > budget or step == MAX_STEPS:
            return max(1, step)
    raise AssertionError("count() does not end")


def _micro_batches(rows: int, config: RunConfig) -> int:
    return -(-rows // config.batch.micro_size)
