"""What the file of an operation holds: its sizes, its arrays, and the operation on three of the rungs."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Arrays = tuple[np.ndarray, ...]


class Task(NamedTuple):
    """An operation at one size."""

    operation: str
    shape: str
    flops: float
    """arithmetic operations; a comparison, division, square root, exp, log or tanh counts as one"""
    n_bytes: float
    """the least that must pass between the memory and the cores: each input read once, each output written once"""
    inputs: Arrays
    outputs: Arrays
    """where the loop writes its results, which come first; none = it changes its inputs, which are then the results"""
    loop: Callable[..., None]
    """of (*inputs, *outputs)"""
    numpy: Callable[..., Arrays]
    """of inputs; returns the results"""
    kernel: Callable[..., Arrays]
    """of (empty, *inputs), where empty allocates; returns the results"""
    in_torch: str = ""
    """name in `benchmarks.peers.torch_ops`; none = no such rung"""
    elements: int = 0
    """above 0 for what one core does in its cache: there is no parallel rung, and the time is shown for one element"""


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Random numbers of order one, float32."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def blank(*shape: int) -> np.ndarray:
    """For results; float32, written once, because the first write to a page costs far more than the next."""
    return np.zeros(shape, np.float32) + np.float32(0.0)
