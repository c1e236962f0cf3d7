"""Embedding: look up one vector for the token and one for its position, and add them.

Forward:

    y[b,t] = token_embedding[tokens[b,t]] + position_embedding[first_position + t]

A look-up is a product with a one-hot row, so this is a linear layer whose input is mostly zeros: only the rows that
were looked up can have a gradient. The row of token v is used wherever tokens[b,t] = v:

    dtoken_embedding[v]                     = sum of dy[b,t] over all (b,t) with tokens[b,t] = v
    dposition_embedding[first_position + t] = sum of dy[b,t] over b

`dtable[tokens] += dy` would be wrong: with a token that occurs twice NumPy keeps one of the two additions.
`np.add.at` adds them all.

Why cache only the tokens and where they stand: the op is linear in the tables, so their values play no part in the
gradient.

Source: Bengio et al., "A neural probabilistic language model", 2003; learned positions as in Radford et al.,
"Language models are unsupervised multitask learners" (GPT-2), 2019.
"""

from typing import NamedTuple

import numpy as np


class EmbeddingCache(NamedTuple):
    tokens: np.ndarray  # (B, T)
    first_position: int


def embedding_forward(tokens, token_embedding, position_embedding=None, *, first_position=0, empty=np.empty):
    """tokens: (B, T) integers below V. token_embedding: (V, C). position_embedding: (positions, C) or None.

    The first column stands at `first_position`. Returns y, (B, T, C), of the table's dtype, and the cache.
    """
    y = token_embedding[tokens]
    if position_embedding is not None:
        y += position_embedding[first_position : first_position + tokens.shape[1]]
    return y, EmbeddingCache(tokens, first_position)


def embedding_backward(dy, cache, dtoken_embedding, dposition_embedding=None, *, empty=np.empty):
    """Adds the gradients dy, (B, T, C), to those of the tables. Tokens have no gradient: nothing is returned."""
    np.add.at(dtoken_embedding, cache.tokens, dy)
    if dposition_embedding is not None:
        first = cache.first_position
        dposition_embedding[first : first + dy.shape[1]] += dy.sum(axis=0)
