"""Causal attention, forward: scores, softmax and weighted sum over earlier positions.

The loop handles one query at a time, and its products are dot products. The kernel
handles a block of queries, so that both products use the tiles of matmul.
"""

from math import sqrt

import numpy as np
from numba import prange

import npllm.kernels
import npllm.reference
from benchmarks.ladder.task import Task, blank, normal

SMALL = (1, 32, 1, 32)  # sizes for the loop in Python


def loop(qkv, y):
    """qkv: (B, T, 3, H, D); y: (B, T, H, D)."""
    B, T, _, H, D = qkv.shape
    for unit in prange(B * H):
        b, h = unit // H, unit % H
        weights = np.empty(T, qkv.dtype)
        for i in range(T):
            maximum = -np.inf
            for j in range(i + 1):
                score = qkv.dtype.type(0.0)
                for d in range(D):
                    score += qkv[b, i, 0, h, d] * qkv[b, j, 1, h, d]
                weights[j] = score / sqrt(D)
                maximum = max(maximum, weights[j])
            total = qkv.dtype.type(0.0)
            for j in range(i + 1):
                weights[j] = np.exp(weights[j] - maximum)
                total += weights[j]
            for d in range(D):
                value = qkv.dtype.type(0.0)
                for j in range(i + 1):
                    value += weights[j] * qkv[b, j, 2, h, d]
                y[b, i, h, d] = value / total


def _attention(ops, qkv, **memory):
    B, T, _, H, D = qkv.shape
    y, _ = ops.attention_forward(qkv.reshape(B, T, 3 * H * D), H, H, **memory)
    return (y.reshape(B, T, H, D),)


def numpy(qkv):
    return _attention(npllm.reference, qkv)


def kernel(empty, qkv):
    return _attention(npllm.kernels, qkv, empty=empty)


def task(B=8, T=256, H=8, D=64) -> Task:
    return Task(
        operation="attention",
        shape=f"{B}×{T}×{H}×{D}",
        flops=2.0 * B * H * T * (T + 1) * D,
        n_bytes=16.0 * B * T * H * D,
        inputs=(normal(B, T, 3, H, D),),
        outputs=(blank(B, T, H, D),),
        loop=loop,
        numpy=numpy,
        kernel=kernel,
        in_torch="attention",
    )
