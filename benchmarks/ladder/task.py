"""The content of an operation's file: its sizes, its arrays, and three of its rungs."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Arrays = tuple[np.ndarray, ...]


class Task(NamedTuple):
    """An operation at one size."""

    operation: str
    shape: str
    flops: float
    """arithmetic operations; a comparison, division, root, exp, log or tanh is one"""
    n_bytes: float
    """least traffic with the memory: each input read once, each output written once"""
    inputs: Arrays
    outputs: Arrays
    """arrays that the loop writes, results first; none = it changes its inputs"""
    loop: Callable[..., None]
    """called with (*inputs, *outputs)"""
    numpy: Callable[..., Arrays]
    """called with inputs; returns the results"""
    kernel: Callable[..., Arrays]
    """called with (empty, *inputs), where empty allocates; returns the results"""
    in_torch: str = ""
    """name in `benchmarks.peers.torch_ops`; "" = no such rung"""
    elements: int = 0
    """above 0: one core does it in its cache; no parallel rung, time per element"""


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Return random numbers of order one, float32."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def blank(*shape: int) -> np.ndarray:
    """Return an array for results, float32.

    It is written once, because the first write to a page takes much longer than later
    ones.
    """
    return np.zeros(shape, np.float32) + np.float32(0.0)
