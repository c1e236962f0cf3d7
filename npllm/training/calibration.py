"""Turning a time budget into a number of steps."""

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
    """How many updates fit into config.train.minutes on this machine, the batch ramp counted in.

    Times updates of full size on a model that is thrown away. An update takes time in proportion to its sequences, so
    the time of one sequence is added up over the ramp.
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
