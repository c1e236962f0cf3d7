"""What single neurons of the MLPs answer to: the tokens at which they are highest."""

from typing import NamedTuple

import numpy as np

TOP = 10  # tokens at which a neuron is highest
SHOWN = 3  # neurons of each layer


class Neuron(NamedTuple):
    """A neuron, and the places where it is highest.

    purity: share of its TOP places that hold their most frequent token. rows: numbers
    of the positions, highest first. values: of the neuron there.
    """

    layer: int
    number: int
    purity: float
    rows: list[int]
    values: list[float]


def top_rows(activations: np.ndarray, count: int = TOP) -> np.ndarray:
    """The rows at which each neuron is highest, (min(count, n), F), highest first. Of
    equal rows the first one. activations: (n, F)."""
    return np.argsort(-activations, axis=0, kind="stable")[:count]


def purities(top: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """The share of each neuron's top rows that hold their most frequent token, (F,).

    top: (count, F). tokens: (n,), the token of each row.
    """
    at = np.sort(tokens[top], axis=0)  # (count, F): equal tokens stand together
    longest, current = np.ones(at.shape[1], int), np.ones(at.shape[1], int)
    for before, here in zip(at[:-1], at[1:], strict=True):
        current = np.where(before == here, current + 1, 1)
        longest = np.maximum(longest, current)
    return longest / len(at)


def peak(activations: np.ndarray) -> np.ndarray:
    """How far each neuron's highest value is above its mean, in standard deviations,
    (F,). activations: (n, F)."""
    deviation = activations.std(axis=0, dtype=np.float64)
    above = activations.max(axis=0) - activations.mean(axis=0, dtype=np.float64)
    return np.where(deviation > 0.0, above / np.maximum(deviation, 1e-30), 0.0)


def chosen_neurons(layer: int, activations: np.ndarray, tokens: np.ndarray) -> tuple[list[Neuron], float]:
    """The neurons of a layer with the highest `peak`, and the mean purity of all.

    activations: (n, F). tokens: (n,).
    """
    top = top_rows(activations)
    pure = purities(top, tokens)
    order = np.argsort(-peak(activations), kind="stable")[:SHOWN]
    neurons = [
        Neuron(layer, int(n), float(pure[n]), top[:, n].tolist(), activations[top[:, n], n].tolist()) for n in order
    ]
    return neurons, float(pure.mean())
