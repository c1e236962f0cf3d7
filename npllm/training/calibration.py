"""Calibration: the number of steps that fit into a time budget."""

import time
from dataclasses import replace
from statistics import median

import numpy as np

from npllm.optim import BatchConfig, batch_size
from npllm.training.config import RunConfig
from npllm.training.loop import NextTokenGradients, build_state, make_update

MAX_STEPS = 1_000_000
SHARE_OF_BUDGET = 0.03  # spent on the measurement


def steps_in_budget(config: RunConfig, vocab_size: int, tokens: np.ndarray) -> int:
    """How many updates fit into config.train.minutes on this machine, batch ramp
    included.

    tokens: the training tokens, (n_tokens,). Updates with the full batch are timed on a
    model that is thrown away. The time of an update is taken as proportional to its
    number of sequences, and added up over the ramp.
    """
    budget = 60.0 * config.train.minutes
    state = build_state(config, vocab_size)
    full_size = BatchConfig(size=config.batch.size, micro_size=config.batch.micro_size)
    no_ramp = replace(config, batch=full_size).with_steps(MAX_STEPS)
    gradients = NextTokenGradients(no_ramp, tokens)
    seconds = []
    end = time.perf_counter() + SHARE_OF_BUDGET * budget
    while len(seconds) < 3 or time.perf_counter() < end:
        seconds.append(make_update(state, no_ramp, gradients).seconds)
    per_sequence = median(seconds[1:]) / config.batch.size
    steps, spent = 0, per_sequence * batch_size(0, config.batch)  # seconds at the end of the step after `steps`
    while spent <= budget and steps < MAX_STEPS:
        steps += 1
        spent += per_sequence * batch_size(steps, config.batch)
    return max(1, steps)
