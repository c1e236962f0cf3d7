"""Scores of responses: the reward model's output on a fixed scale, and what is
rewarded.

The output of a reward model is trained on differences, so its mean is arbitrary and its
deviation depends on how long it was trained. PPO, RLOO, GRPO and best-of-n all use
these functions, so they all prefer the same responses.
"""

from typing import NamedTuple

import numpy as np

LEAST_DEVIATION = 1e-8  # of scores that differ


class Scores(NamedTuple):
    """Scores of responses, float64, in the shape of the responses.

    proxy: the reward model's score, calibrated. rewarded: what a policy is rewarded
    with: proxy, or missing_stop_score for a response without a stop token.
    """

    proxy: np.ndarray
    rewarded: np.ndarray


class Scale(NamedTuple):
    """The mean and the standard deviation of raw scores."""

    mean: float
    deviation: float


def scale_of(raw_scores: np.ndarray) -> Scale:
    """The scale of raw scores of any shape; deviation 1 if they are all equal."""
    deviation = raw_scores.std()
    return Scale(raw_scores.mean(), deviation if deviation > LEAST_DEVIATION else 1.0)


def score(raw_scores: np.ndarray, stopped: np.ndarray, scale: Scale, missing_stop_score: float) -> Scores:
    """The calibrated scores and what is rewarded.

    raw_scores: the outputs of the reward model, float64. stopped: bool, whether a
    response ends with the stop token. Both have the same shape.
    """
    proxy = (raw_scores - scale.mean) / scale.deviation
    return Scores(proxy, np.where(stopped, proxy, missing_stop_score))
