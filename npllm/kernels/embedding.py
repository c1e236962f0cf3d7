"""Embedding. See `npllm.reference.embedding` for the mathematics.

Look-ups move memory and hardly compute, so a second thread is worth less than waking it: both kernels are serial. That
also makes the sum of a token that occurs twice a sum in the order of the batch.

`python -m benchmarks kernels` on 2 cores of an AVX-512 server CPU, float32, 768 tokens of width 128: 18 times
as fast as NumPy's reference, whose `np.add.at` takes nearly all of its time.
"""

import numpy as np

from npllm.kernels.jit import serial
from npllm.reference.embedding import EmbeddingCache


def embedding_forward(tokens, token_embedding, position_embedding=None, *, first_position=0, empty=np.empty):
    """tokens: (B, T) integers below V. token_embedding: (V, C). position_embedding: (positions, C) or None.

    The first column stands at `first_position`. Returns y, (B, T, C), of the table's dtype, and the cache. Raises
    IndexError for a token or position outside its table.
    """
    B, T = tokens.shape
    V, C = token_embedding.shape
    if position_embedding is not None and first_position + T > len(position_embedding):
        raise IndexError(
            f"Positions up to {first_position + T - 1} do not fit a table of {len(position_embedding)} positions: "
            "shorten the sequence."
        )
    y = empty((B, T, C), token_embedding.dtype)
    in_range = _forward(tokens, token_embedding, position_embedding, first_position, y)
    if not in_range:
        raise IndexError(f"tokens holds a value outside 0 ... {V - 1}: tokenize with the vocabulary of this table.")
    return y, EmbeddingCache(tokens, first_position)


def embedding_backward(dy, cache, dtoken_embedding, dposition_embedding=None, *, empty=np.empty):
    """Adds the gradients dy, (B, T, C), to those of the tables. Tokens have no gradient: nothing is returned."""
    _backward(dy, cache.tokens, cache.first_position, dtoken_embedding, dposition_embedding)


@serial
def _forward(tokens, token_embedding, position_embedding, first_position, y):
    """Fills y; returns whether every token is in the table."""
    B, T, C = y.shape
    for b in range(B):
        for t in range(T):
            token = tokens[b, t]
            if token < 0 or token >= len(token_embedding):
                return False
            for j in range(C):
                y_j = token_embedding[token, j]
                if position_embedding is not None:
                    y_j += position_embedding[first_position + t, j]
                y[b, t, j] = y_j
    return True


@serial
def _backward(dy, tokens, first_position, dtoken_embedding, dposition_embedding):
    B, T, C = dy.shape
    for b in range(B):
        for t in range(T):
            token, position = tokens[b, t], first_position + t
            for j in range(C):
                dy_j = dy[b, t, j]
                dtoken_embedding[token, j] += dy_j
                if dposition_embedding is not None:
                    dposition_embedding[position, j] += dy_j
