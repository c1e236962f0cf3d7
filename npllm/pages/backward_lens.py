r"""The backward lens: what a step writes into an MLP, in words.

The last matrix W of an MLP adds $y_n = x_n W$ to the residual stream at position n.
With $d_n$, the gradient of the loss by $y_n$, the gradient of the matrix is a sum of
outer products, one for each position:

$$
dW = \sum_n x_n^T d_n
$$

A step against it changes W by $-lr dW$. Where the MLP's hidden state is $x_n$ again,
its result then moves along $-d_n$. This direction lies in the space of the residual
stream, so the head can say in words what it is. With the weight g of the final norm and
the head's matrix E, the logits move by

$$
E (g \cdot (-d_n))
$$

A word with a large value becomes likelier by the step, and a word with a low one
becomes less likely. Values are those of a move of length 1. A position's share is that
of its product in the sum of squared sizes.

What is left out: later blocks, which also read the changed stream, and the division in
the final norm.

Source: Katz, Belinkov, Geva & Wolf, "Backward lens: projecting language model gradients
into the vocabulary space", 2024.
"""

from typing import NamedTuple

import numpy as np

from npllm.model import GPT
from npllm.model.inspection import Inspection

WORDS = 4  # of each direction


class Reading(NamedTuple):
    """One position of one layer. up, down: ids of tokens, the strongest first, and how
    far their logits move for a step of length 1 along -d. share: of the squared size of
    all outer products of the layer."""

    share: float
    up: list[tuple[int, float]]
    down: list[tuple[int, float]]


class LayerReading(NamedTuple):
    """readings: of each position. error: relative distance of the sum of the outer
    products from the gradient that the backward gave, in Euclidean norms."""

    layer: int
    readings: list[Reading]
    error: float


def backward_lens(model: GPT, inside: Inspection) -> list[LayerReading]:
    """Return what the gradient of each layer's last matrix says, position by position.

    inside: of one row of tokens.
    """
    weights = {name: np.asarray(array, np.float64) for name, array in model.merged().items()}
    head, norm = weights[model.head_name], weights["final_norm.weight"]
    n_words = min(WORDS, len(head))
    layers = []
    for layer in range(model.config.n_layer):
        name = f"blocks.{layer}.mlp.down"
        x = inside.operations[name].forward.arguments["x"]  # (T, F)
        d = inside.gradients[name][0]  # (T, C)
        sizes = np.linalg.norm(x, axis=1) * np.linalg.norm(d, axis=1)
        lengths = np.maximum(np.linalg.norm(d, axis=1, keepdims=True), np.finfo(float).tiny)
        moves = (-d / lengths * norm) @ head.T  # (T, V)
        readings = []
        for n, move in enumerate(moves):
            order = np.argsort(move, kind="stable")
            share = sizes[n] ** 2 / max(float(np.sum(sizes**2)), np.finfo(float).tiny)
            readings.append(Reading(float(share), _words(move, order[::-1][:n_words]), _words(move, order[:n_words])))
        gradient = inside.gradients[f"{name}.weight"]
        distance, size = np.linalg.norm(x.T @ d - gradient), np.linalg.norm(gradient)
        layers.append(LayerReading(layer, readings, float(distance / size) if size else 0.0))
    return layers


def _words(move: np.ndarray, ids: np.ndarray) -> list[tuple[int, float]]:
    return [(int(i), float(move[i])) for i in ids]
