"""Bigrams: a vector for each token together with the one before it.

    y[b,t] = token_embedding[tokens[b,t]] + bigram_embedding[rows[b,t]]

    rows[b,t] = hash(tokens[b,t-1], tokens[b,t])

The embedding of a token says nothing of what stands before it; the first block has to
find that by attention. A look-up finds it at once and costs hardly any time, however
large its table is.

A vocabulary of V tokens has V^2 pairs, far more than rows. So the row is a hash of the
pair, and pairs share rows. Most pairs never occur, and frequent ones seldom meet. The
first token of a document has no token before it, and a pair of its own.

The hash multiplies the pair, as one number, by 2^64 divided by the golden ratio, and
keeps the upper half of the product modulo 2^64: it depends on all digits of the number.
It does not depend on V, so new tokens do not move the pairs of the old ones.

The look-up is the one of `embedding.py`, with these rows in place of positions. Its
gradient is there.

Sources: Joulin et al., "Bag of tricks for efficient text classification", 2017 (hashed
n-grams); Knuth, "The art of computer programming", volume 3, section 6.4 (the hash).
"""

import numpy as np

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
HALF = np.uint64(32)  # bits


def bigram_rows(tokens, n_rows, before=None, is_first=None):
    """Return the row of the bigram table for each token, (B, T) int32.

    tokens: (B, T) integers. n_rows: of the table. before: (B,), the tokens before the
    first column; None = there are none. is_first: (B, T) booleans, the tokens without
    one before them in other columns; None = there are none.
    """
    previous = np.zeros(tokens.shape, np.uint64)  # 0 = no token
    previous[:, 1:] = tokens[:, :-1] + 1
    if before is not None:
        previous[:, 0] = before + 1
    if is_first is not None:
        previous[is_first] = 0
    pairs = (previous << HALF) + tokens.astype(np.uint64)
    return ((pairs * MULTIPLIER >> HALF) % np.uint64(n_rows)).astype(np.int32)
