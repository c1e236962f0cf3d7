"""The speed of a pretraining as share of what the machine reaches."""

import numba
import numpy as np

from npllm.model import ModelConfig
from npllm.pages.columns import Columns
from npllm.pages.kernel_times import product_peak
from npllm.training.machine import cpu_model


def speed_words(columns: Columns, model: ModelConfig, train: dict, cpu: str) -> str:
    """Sentences about the speed of a run; "" for a log without speeds.

    train: the section of its config. cpu: the processor that it says it ran on. The
    peak is measured now, so it is that of the run only on the same processor.
    """
    speeds = columns["tokens_per_s"]
    speeds = speeds[np.isfinite(speeds) & (speeds > 0)]
    if not len(speeds):
        return ""
    tokens_per_s, flops = float(np.median(speeds)), model.flops_per_token(model.block_size)
    reached = tokens_per_s * flops
    words = (
        f"Half of the updates ran at {tokens_per_s:,.0f} tokens per second or more. The matrix products of a token "
        f"take {flops / 1e6:,.1f} million operations, so that is {reached / 1e9:,.1f} GFLOP/s."
    )
    reason = obstacle(train["threads"], cpu)
    if reason:
        return f"{words} The share of the machine's peak is not shown: {reason}."
    peak = peak_of(train)
    if reached > peak:
        return (
            f"{words} The share of the machine's peak is not shown: it reaches only {peak / 1e9:,.1f} GFLOP/s while "
            "this page is made, so it is busy."
        )
    return (
        f"{words} That is {100 * reached / peak:.0f} % of the machine's peak, the {peak / 1e9:,.1f} GFLOP/s that a "
        "product of large matrices reached while this page was made."
    )


def obstacle(threads: int | None, cpu: str) -> str:
    """Why this machine cannot say what the peak of a run's machine is; "" = it can."""
    if cpu != cpu_model():
        return f"the run was made on another processor ({cpu or 'which its config.toml does not name'})"
    if threads is not None and threads > numba.config.NUMBA_NUM_THREADS:
        return f"the run had {threads} threads, and this machine offers {numba.config.NUMBA_NUM_THREADS}"
    if numba.config.DISABLE_JIT:
        return "NUMBA_DISABLE_JIT is set, so the kernels are plain Python"
    return ""


def peak_of(train: dict) -> float:
    """Operations per second of a large matrix product, in the dtype of a run and with
    its number of threads."""
    before = numba.get_num_threads()
    numba.set_num_threads(train["threads"] or numba.config.NUMBA_NUM_THREADS)
    try:
        return product_peak("float64" if train["dtype"] == "float64" else "float32")
    finally:
        numba.set_num_threads(before)
