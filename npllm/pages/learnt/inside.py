"""The inside of a model while it reads tokens, and the same for random weights."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from npllm.model import GPT
from npllm.model.inspection import inspect
from npllm.reference import layernorm_forward, rmsnorm_forward

MOST_LOGITS = 1 << 23  # numbers
ACTIVATIONS = {"gelu": "up", "relu2": "relu2", "swiglu": "swiglu"}  # the operation whose result enters `down`


class Inside(NamedTuple):
    """The arrays of a pass.

    streams: (L+1, B, T, C), the residual stream before each block and after the last
    one. attention: (L, B, H, T, T), each head's weights; a row sums to one.
    activations: (L, B, T, F), the MLP's values after the nonlinearity.
    """

    streams: np.ndarray
    attention: np.ndarray
    activations: np.ndarray


def random_twin(model: GPT) -> GPT:
    """Return a network of the same config with the initial values of the same seed."""
    config = replace(model.config.language_model, dropout=0.0)
    return GPT(config, seed=model.seed, dtype=model.dtype.name, backend="reference")


def rows_at_once(model: GPT, length: int, most: int) -> int:
    """How many rows of a length go into one pass, so that its logits stay small."""
    return max(1, min(most, MOST_LOGITS // (length * model.config.vocab_size)))


def inside(model: GPT, tokens: np.ndarray) -> Inside:
    """Return the inside of a model while it reads tokens, (B, T)."""
    # The loss is not used. A target in each row lets a row have a single token.
    found = inspect(model, tokens, np.zeros_like(tokens), backward=False)
    operation = ACTIVATIONS[model.config.mlp]
    layers = range(model.config.n_layer)
    activations = np.stack([found.outputs[f"blocks.{layer}.mlp.{operation}"] for layer in layers])
    return Inside(found.streams, found.attention, activations)


def logits_of_stream(model: GPT, rows: np.ndarray) -> np.ndarray:
    """Return the logits, (n, V) float64, of rows of a residual stream, (n, C), as if it
    were the last one."""
    weights, rows = model.merged(), rows.astype(np.float64)
    weight, eps = weights["final_norm.weight"].astype(np.float64), model.config.norm_eps
    if model.config.norm == "rmsnorm":
        normed, _ = rmsnorm_forward(rows, weight, eps)
    else:
        bias = weights.get("final_norm.bias")
        normed, _ = layernorm_forward(rows, weight, None if bias is None else bias.astype(np.float64), eps)
    return normed @ weights[model.head_name].T.astype(np.float64)
