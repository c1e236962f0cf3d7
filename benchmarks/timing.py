"""Timing side by side: rounds A B A B ..., medians, spread, ratios within a round.

A machine's speed drifts with its clock, its heat and its other users. Ratios are taken
within a round, because a slow second then affects all contenders alike.
"""

from collections.abc import Callable
from functools import partial
from statistics import median
from time import sleep

import numpy as np

from benchmarks.peers.serving import SETTLE, seconds_of

# Seconds. After their work the threads of a pool spin for a while before they sleep,
# and would slow the next runner: OpenBLAS's and GNU's OpenMP for up to 0.03 s, Intel's
# OpenMP, which PyTorch may use, for 0.2 s.
PAUSE = 0.25
SHORT_PAUSE = 0.05  # where only NumPy and Numba take turns

Runner = Callable[[], float]  # does its work once or several times; returns seconds per time


def interleave(runners: dict[str, Runner], rounds: int, pause: float = PAUSE) -> dict[str, list[float]]:
    """Return the seconds of each runner in every round.

    Each starts after the threads of the previous one have gone to sleep.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, run in runners.items():
            sleep(pause)
            seconds[name].append(run())
    return seconds


def timed(function: Callable[[], object], burst: float = 0.02) -> Runner:
    """Return a runner that repeats a short function for about `burst` seconds.

    The function is called twice beforehand.
    """
    function()
    return partial(seconds_of, function, repeats_within(burst, seconds_of(function, 1)))


def repeats_within(burst: float, seconds: float) -> int:
    """Return how often work that takes `seconds` fits into a burst.

    It is at least twice for short work, so that the first call can settle.
    """
    return max(2 if seconds < SETTLE else 1, round(burst / seconds))


def spread(seconds: list[float]) -> float | None:
    """Return half the distance between the quartiles, as a share of the median.

    One round has none.
    """
    if len(seconds) < 2:
        return None
    low, high = np.percentile(seconds, [25, 75])
    return float((high - low) / 2.0 / median(seconds))


def times_faster(ours: list[float], theirs: list[float]) -> float:
    """Return the median of theirs / ours over the rounds; above 1, we are faster."""
    return median(b / a for a, b in zip(ours, theirs, strict=True))
