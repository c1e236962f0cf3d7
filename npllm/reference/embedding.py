r"""Embedding: look up one vector for the token and one for its position, and add them.

Forward:

$$
y_{b,t} = token_embedding[tokens_{b,t}] + position_embedding[positions_{b,t}]
$$

The position is $first_position + t$ unless `positions` is given. In a row of several
documents it restarts at the start of each document.

A look-up is a product with a one-hot row, so this is a linear layer whose input is
mostly zeros. Only the rows that were looked up have a gradient. The row of token v is
used wherever $tokens_{b,t} = v$:

$$
dtoken_embedding[v] = \sum_{b,t} dy_{b,t}     % over all b, t with $tokens_{b,t} = v$
dposition_embedding[p] = \sum_{b,t} dy_{b,t}  % over all b, t with $positions_{b,t} = p$
$$

`dtable[tokens] += dy` would be wrong: for a token that occurs twice, NumPy keeps only
one of the two additions. `np.add.at` adds them all.

Why cache only the tokens and their positions: the operation is linear in the tables, so
their values are not in the gradient.

Source: Bengio et al., "A neural probabilistic language model", 2003; learned positions
as in Radford et al., "Language models are unsupervised multitask learners" (GPT-2),
2019.
"""

from typing import NamedTuple

import numpy as np


class EmbeddingCache(NamedTuple):
    tokens: np.ndarray  # (B, T)
    first_position: int
    positions: np.ndarray | None  # (B, T)


def position_of_each(cache):
    """Return the position of every token, (B, T)."""
    if cache.positions is not None:
        return cache.positions
    B, T = cache.tokens.shape
    return np.broadcast_to(cache.first_position + np.arange(T), (B, T))


def embedding_forward(tokens, token_embedding, position_embedding=None, *, first_position=0, positions=None):
    """Look up a vector for each token, and add one for its position.

    tokens: (B, T) integers below V. token_embedding: (V, C). position_embedding:
    (n_positions, C) or None. positions: (B, T) integers, the position of every token;
    None = the first column is at `first_position` and the others follow.

    Returns y, (B, T, C), of the table's dtype, and the cache.
    """
    cache = EmbeddingCache(tokens, first_position, positions)
    y = token_embedding[tokens]
    if position_embedding is not None:
        y += position_embedding[position_of_each(cache)]
    return y, cache


def embedding_backward(dy, cache, dtoken_embedding, dposition_embedding=None):
    """Add the gradients dy, (B, T, C), to those of the tables.

    Tokens have no gradient, so nothing is returned.
    """
    np.add.at(dtoken_embedding, cache.tokens, dy)
    if dposition_embedding is not None:
        np.add.at(dposition_embedding, position_of_each(cache), dy)
