"""What the token embeddings have in common: neighbours, classes, and a map."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MOST_TOKENS = 1000  # the most frequent ones, which are compared
NEIGHBOURS = 6
# The class of a token is the first of these that its text matches as a whole.
CLASSES = (
    ("white space", r"\s+"),
    ("number", r"\s*\d+"),
    ("word after a space", r"[ \t]+[a-z]+"),
    ("word or its part", r"[a-z]+"),
    ("capitalised", r"\s*[A-Z][a-z]*"),
    ("capitals", r"\s*[A-Z]{2,}"),
    ("signs", r"\s*[^\w\s]+\s*"),
)
OTHER = "mixed"


class Neighbours(NamedTuple):
    """The most alike tokens of one token. others: (id, cosine), the nearest first."""

    token: int
    others: list[tuple[int, float]]


class EmbeddingMeasures(NamedTuple):
    """tokens: the ids that are compared, the most frequent first, (n,).

    classes: the class of each one. same_class: share of them whose nearest neighbour
    has the same class. chance: of a random neighbour. nearest: of the most frequent
    ones. places: (n, 2), their places on the map. explained: share of the variance that
    each axis of the map has, (2,).
    """

    tokens: np.ndarray
    classes: list[str]
    same_class: float
    chance: float
    nearest: list[Neighbours]
    places: np.ndarray
    explained: np.ndarray


def class_of(piece: bytes) -> str:
    """The class of a token by its text."""
    text = piece.decode("utf-8", errors="replace")
    return next((name for name, pattern in CLASSES if re.fullmatch(pattern, text)), OTHER)


def frequent_tokens(text: np.ndarray, vocab_size: int) -> np.ndarray:
    """The ids that occur in a text, (n_tokens,), the most frequent first; of equally
    frequent ones the lower id."""
    counts = np.bincount(text, minlength=vocab_size)
    order = np.argsort(-counts, kind="stable")
    return order[counts[order] > 0][:MOST_TOKENS]


def cosines(embedding: np.ndarray) -> np.ndarray:
    """The cosine of each pair of rows of embedding, (n, C): (n, n), -1 on the
    diagonal."""
    rows = embedding.astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    similar = rows @ rows.T
    np.fill_diagonal(similar, -1.0)
    return similar


def principal_components(embedding: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places of the rows of embedding, (n, C), on the two axes of largest variance,
    (n, 2), and the share of the variance on each axis, (2,).

    An axis has two directions; here its largest entry is positive.
    """
    centred = embedding.astype(np.float64) - embedding.mean(axis=0, dtype=np.float64)
    _, values, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:2] * np.sign(np.take_along_axis(axes[:2], np.abs(axes[:2]).argmax(axis=1)[:, None], axis=1))
    places, variance = np.zeros((len(embedding), 2)), values**2
    places[:, : len(axes)] = centred @ axes.T
    shares = np.zeros(2)
    shares[: len(axes)] = variance[:2] / max(float(variance.sum()), 1e-300)
    return places, shares


def measure_embeddings(
    embedding: np.ndarray, tokens: np.ndarray, pieces: Sequence[bytes], n_shown: int
) -> EmbeddingMeasures:
    """Return the measures of a token embedding, (V, C).

    tokens: the ids to compare, (n,). pieces: the bytes of each token. n_shown: the
    number of tokens whose neighbours are returned.
    """
    rows = embedding[tokens]
    classes = [class_of(pieces[id]) for id in tokens]
    similar = cosines(rows)
    nearest = similar.argmax(axis=1)
    same = np.array([classes[other] == classes[one] for one, other in enumerate(nearest)])
    shares = [classes.count(name) for name in set(classes)]
    n = len(tokens)
    chance = sum(count * (count - 1) for count in shares) / max(n * (n - 1), 1)
    order = np.argsort(-similar[:n_shown], axis=1, kind="stable")[:, : min(NEIGHBOURS, n - 1)]
    lists = [
        Neighbours(int(tokens[one]), [(int(tokens[other]), float(similar[one, other])) for other in others])
        for one, others in enumerate(order)
    ]
    return EmbeddingMeasures(tokens, classes, float(same.mean()), chance, lists, *principal_components(rows))
