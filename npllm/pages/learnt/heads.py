"""What attention heads look at: one score for each kind of head that is looked for.

A kind is a set of wanted pairs (query, key). The score of a head is the weight that its
queries give to their wanted keys, summed over the keys and averaged over the queries
that have any. A head that looks nowhere else gets 1. What chance gives is the score of
a head that weights all keys it sees alike, 1 / (i + 1) each for query i.

Sources: Elhage et al., "A mathematical framework for Transformer circuits", 2021;
Olsson et al., "In-context learning and induction heads", 2022.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from npllm.pages.learnt.labels import bracket_pairs
from npllm.reference.random import random_words
from npllm.reference.random_streams import REPEATED_TOKENS

KINDS = {
    "previous token": "the token just before the query",
    "first token": "the first token of the row",
    "same token": "earlier tokens that are the same as the query's",
    "matching bracket": "from a token with a closing bracket, the token with the bracket that it closes",
    "induction": "the token after the earlier occurrence of the query's token, in a row of random tokens that is "
    "repeated once",
}
# A head is named after a kind where its score is at least this far from chance to 1.
NAMED = 0.25


class HeadScores(NamedTuple):
    """The scores of one kind.

    scores: (L, H). chance: of a head that weights all keys alike. queries: number of
    queries with a wanted key; without any, the scores are NaN.
    """

    scores: np.ndarray
    chance: float
    queries: int


class ScoreSums:
    """Sums up the scores of one kind over batches."""

    def __init__(self, n_layer: int, n_head: int):
        self.weights = np.zeros((n_layer, n_head))
        self.chance, self.queries = 0.0, 0

    def add(self, attention: np.ndarray, wanted: np.ndarray) -> None:
        """Add the queries of a batch.

        attention: (L, B, H, T, T). wanted: (B, T, T) bool, [b, query, key].
        """
        has_any = wanted.any(axis=2)  # (B, T)
        self.weights += np.einsum("lbhij,bij->lh", attention, wanted.astype(attention.dtype), dtype=np.float64)
        seen = np.arange(1, wanted.shape[1] + 1)
        self.chance += float((wanted.sum(axis=2) / seen).sum())
        self.queries += int(has_any.sum())

    def result(self) -> HeadScores:
        """The scores of all batches."""
        if not self.queries:
            return HeadScores(np.full(self.weights.shape, np.nan), np.nan, 0)
        return HeadScores(self.weights / self.queries, self.chance / self.queries, self.queries)


def previous_token(tokens: np.ndarray) -> np.ndarray:
    """Wanted keys of each query, (B, T, T): the one before it."""
    B, T = tokens.shape
    return np.broadcast_to(np.eye(T, k=-1, dtype=bool), (B, T, T))


def first_token(tokens: np.ndarray) -> np.ndarray:
    """Wanted keys of each query but the first, (B, T, T): the first one."""
    wanted = np.zeros((*tokens.shape, tokens.shape[1]), bool)
    wanted[:, 1:, 0] = True
    return wanted


def same_token(tokens: np.ndarray) -> np.ndarray:
    """Wanted keys of each query, (B, T, T): earlier ones of the same token."""
    return np.tril(tokens[:, :, None] == tokens[:, None, :], k=-1)


def matching_bracket(tokens: np.ndarray, pieces: Sequence[bytes]) -> np.ndarray:
    """Wanted keys of each query, (B, T, T): of a closing bracket the opening one.

    pieces: the bytes of each token of the vocabulary.
    """
    wanted = np.zeros((*tokens.shape, tokens.shape[1]), bool)
    for row, ids in enumerate(tokens):
        for closing, opening in bracket_pairs([pieces[id] for id in ids]):
            wanted[row, closing, opening] = True
    return wanted


def repeated_rows(n_rows: int, length: int, vocab_size: int, seed: int) -> np.ndarray:
    """Rows of random tokens that are repeated once, (n_rows, 2 · (length // 2))."""
    half = length // 2
    words = random_words(n_rows * half, seed=seed, stream=REPEATED_TOKENS).astype(np.uint64)
    tokens = (words * np.uint64(vocab_size) >> np.uint64(32)).astype(np.int32).reshape(n_rows, half)
    return np.concatenate([tokens, tokens], axis=1)


def induction(tokens: np.ndarray) -> np.ndarray:
    """Wanted keys of each query in the second half of `repeated_rows`, (B, T, T): the
    token after the same token of the first half."""
    B, T = tokens.shape
    half = T // 2
    wanted = np.zeros((B, T, T), bool)
    queries = np.arange(half, T)
    wanted[:, queries, queries - half + 1] = half > 1  # with a single token, that key is the query itself
    return wanted


def distance(score: float, chance: float) -> float:
    """How far a score is from chance (0) to 1."""
    return (score - chance) / (1.0 - chance) if chance < 1.0 else np.nan


def name_of(scores: dict[str, HeadScores], layer: int, head: int) -> str | None:
    """The kind of a head: the one whose score is furthest from chance, if it is NAMED
    or more. None = none of them."""
    found = {kind: distance(each.scores[layer, head], each.chance) for kind, each in scores.items() if each.queries}
    best = max(found, key=found.get, default=None)
    return best if best is not None and found[best] >= NAMED else None
