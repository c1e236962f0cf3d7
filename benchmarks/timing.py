"""Timing side by side, and the ceilings of the machine."""

import os
import time
from collections.abc import Callable
from datetime import date
from statistics import median

import numpy as np

from npllm.training.machine import cpu_model, matmul_peak


def interleave(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, A B A B ..., after one call of each that does not count.

    Taking turns makes a ratio fair on a machine whose speed drifts: a slow second hits all alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for round_number in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if round_number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(seconds: list[float]) -> float:
    """Half the distance between the quartiles, as a share of the median."""
    low, high = np.percentile(seconds, [25, 75])
    return float((high - low) / 2.0 / median(seconds))


def copy_bandwidth(n_bytes: int = 1 << 28, rounds: int = 5) -> float:
    """Bytes read and written per second by a copy too large for the caches, the best of a few."""
    source = np.ones(n_bytes, np.uint8)
    target = np.empty_like(source)
    seconds = interleave({"copy": lambda: np.copyto(target, source)}, rounds)["copy"]
    return 2.0 * n_bytes / min(seconds)


def machine_facts() -> dict[str, str | int | float]:
    """What the figures were measured on."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count() or 1,
        "date": date.today().isoformat(),
        "numpy": np.__version__,
        "matmul_gflops": matmul_peak(np.float32) / 1e9,
        "copy_gb_per_s": copy_bandwidth() / 1e9,
    }
