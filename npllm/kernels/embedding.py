"""Embedding. See `npllm.reference.embedding` for the mathematics.

A look-up moves memory and hardly computes, so a second thread gains less than waking it
costs. Both kernels are therefore serial. In the backward the gradients of a token that
occurs twice are then added in the order of the batch.
"""

import numpy as np

from npllm.kernels.jit import serial
from npllm.reference.embedding import EmbeddingCache


def embedding_forward(
    tokens, token_embedding, position_embedding=None, *, first_position=0, positions=None, empty=np.empty
):
    """Look up a vector for each token, and add one for its position.

    tokens: (B, T) integers below V. token_embedding: (V, C). position_embedding:
    (n_positions, C) or None. positions: (B, T) integers, the position of every token;
    None = the first column is at `first_position` and the others follow.

    Returns y, (B, T, C), of the table's dtype, and the cache. Raises IndexError for a
    token or a position outside its table.
    """
    B, T = tokens.shape
    V, C = token_embedding.shape
    if position_embedding is not None:
        _check_positions(first_position, T, positions, len(position_embedding))
    y = empty((B, T, C), token_embedding.dtype)
    in_range = _forward(tokens, token_embedding, position_embedding, first_position, positions, y)
    if not in_range:
        raise IndexError(f"tokens holds a value outside 0 ... {V - 1}; tokenize with the vocabulary of this table.")
    return y, EmbeddingCache(tokens, first_position, positions)


def embedding_backward(dy, cache, dtoken_embedding, dposition_embedding=None, *, empty=np.empty):
    """Add the gradients dy, (B, T, C), to those of the tables.

    Tokens have no gradient, so nothing is returned.
    """
    _backward(dy, *cache, dtoken_embedding, dposition_embedding)


def _check_positions(first_position, T, positions, size):
    lowest, highest = first_position, first_position + T - 1
    if positions is not None:
        lowest, highest = positions.min(), positions.max()
    if lowest < 0 or highest >= size:
        raise IndexError(
            f"Positions from {lowest} to {highest} do not fit a table of {size} positions; shorten the sequence."
        )


@serial
def _forward(tokens, token_embedding, position_embedding, first_position, positions, y):
    """Fill y, and return whether every token is in the table."""
    B, T, C = y.shape
    for b in range(B):
        for t in range(T):
            token = tokens[b, t]
            if token < 0 or token >= len(token_embedding):
                return False
            position = first_position + t if positions is None else positions[b, t]
            for j in range(C):
                y_j = token_embedding[token, j]
                if position_embedding is not None:
                    y_j += position_embedding[position, j]
                y[b, t, j] = y_j
    return True


@serial
def _backward(dy, tokens, first_position, positions, dtoken_embedding, dposition_embedding):
    B, T, C = dy.shape
    for b in range(B):
        for t in range(T):
            token = tokens[b, t]
            position = first_position + t if positions is None else positions[b, t]
            for j in range(C):
                dy_j = dy[b, t, j]
                dtoken_embedding[token, j] += dy_j
                if dposition_embedding is not None:
                    dposition_embedding[position, j] += dy_j
