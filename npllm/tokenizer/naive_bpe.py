"""Byte-pair encoding in its plainest form: read this file first.

A tokenizer turns text into integers. Bytes alone would suffice: there are 256 of them,
and every text is a sequence of bytes, so nothing is ever unknown. But then a word has
as many tokens as it has letters. Byte-pair encoding gives frequent sequences of bytes a
token of their own.

Training. Start with the bytes as tokens. Count all pairs of neighbours, make the most
frequent pair a new token, replace it everywhere, and count again:

    l o w   l o w e r   l o w e s t      (l, o) and (o, w) occur 3 times each
    l ow    l ow e r    l ow e s t       ow is o and w, the greater of the two pairs
    low     low e r     low e s t        low is l and ow

The result of training is the list of merges, in this order.

Encoding. Start with the bytes of the new text, and apply the merges in the order in
which they were learnt: "slow" becomes s l o w, then s l ow, then s low.

Text is first cut into pieces, about one per word (`pretokenize.py`). A merge never
joins two pieces. Training needs only how often each piece occurs. Ids 0 to 255 are the
bytes, in GPT-2's order (`byte_table.py`), and merge number r makes the id 256 + r.

These functions count and search everything again for every merge. `bpe_training.py` and
`bpe_encoding.py` are fast and give the same ids; tests compare them with these
functions.

Source: Sennrich, Haddow & Birch, "Neural machine translation of rare words with subword
units", 2016; Radford et al., "Language models are unsupervised multitask learners",
2019, for the bytes.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from npllm.tokenizer.byte_table import BYTE_TO_ID, ID_TO_BYTE

Pair = tuple[int, int]


def naive_learn_merges(piece_counts: Mapping[bytes, int], n_merges: int) -> list[Pair]:
    """Return the first n_merges merges as (left id, right id).

    piece_counts: how often each piece occurs. Of pairs that occur equally often, the
    one that is greatest as (bytes, bytes) is merged first. There are fewer merges when
    every piece has become one token.
    """
    tokens = [bytes([byte]) for byte in ID_TO_BYTE]  # what each id stands for
    pieces = [([BYTE_TO_ID[byte] for byte in piece], count) for piece, count in piece_counts.items()]
    merges: list[Pair] = []
    while len(merges) < n_merges:
        counts: Counter[Pair] = Counter()
        for ids, count in pieces:
            for pair in pairs_of(ids):
                counts[pair] += count
        if not counts:
            break
        best = max(counts, key=lambda pair: (counts[pair], tokens[pair[0]], tokens[pair[1]]))
        product = len(tokens)
        tokens.append(tokens[best[0]] + tokens[best[1]])
        pieces = [(merge_everywhere(ids, best, product), count) for ids, count in pieces]
        merges.append(best)
    return merges


def naive_encode(ids: Sequence[int], ranks: Mapping[Pair, int], products: Sequence[int]) -> list[int]:
    """Return the token ids of one piece, given the ids of its bytes.

    ranks: the number of each merge. products: the id that each merge makes. The pair
    with the lowest rank is joined first, and the leftmost one where it occurs twice.
    """
    ids = list(ids)
    while known := [(ranks[pair], place) for place, pair in enumerate(pairs_of(ids)) if pair in ranks]:
        rank, place = min(known)
        ids[place : place + 2] = [products[rank]]
    return ids


def pairs_of(ids: Sequence[int]) -> list[Pair]:
    """Return every id with its right neighbour: [a, b, c] gives (a, b) and (b, c)."""
    return list(zip(ids, ids[1:], strict=False))


def merge_everywhere(ids: Sequence[int], pair: Pair, product: int) -> list[int]:
    """Replace the pair by its product, from the left: "aaa" becomes "aa" and "a"."""
    merged: list[int] = []
    place = 0
    while place < len(ids):
        if tuple(ids[place : place + 2]) == pair:
            merged.append(product)
            place += 2
        else:
            merged.append(ids[place])
            place += 1
    return merged
