"""Byte-pair encoding in the plainest way, to compare with: recount everything for every merge."""

from collections import Counter

from npllm.tokenizer.byte_table import ID_TO_BYTE


def naive_merge(ids, pair, product):
    """Replace the pair by its product everywhere, from the left."""
    merged, place = [], 0
    while place < len(ids):
        if tuple(ids[place : place + 2]) == pair:
            merged.append(product)
            place += 2
        else:
            merged.append(ids[place])
            place += 1
    return merged


def naive_learn_merges(piece_counts, n_merges):
    tokens = [bytes([byte]) for byte in ID_TO_BYTE]
    pieces = [([tokens.index(bytes([byte])) for byte in piece], count) for piece, count in piece_counts.items()]
    merges = []
    while len(merges) < n_merges:
        counts = Counter()
        for ids, count in pieces:
            for pair in zip(ids, ids[1:], strict=False):
                counts[pair] += count
        if not counts:
            break
        pair = max(counts, key=lambda pair: (counts[pair], tokens[pair[0]], tokens[pair[1]]))
        merges.append(pair)
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
        pieces = [(naive_merge(ids, pair, len(tokens) - 1), count) for ids, count in pieces]
    return merges


def naive_encode(ids, ranks, products):
    """One merge at a time: lowest rank first, leftmost of equals."""
    ids = list(ids)
    while True:
        known = [(ranks[pair], place) for place, pair in enumerate(zip(ids, ids[1:], strict=False)) if pair in ranks]
        if not known:
            return ids
        rank, place = min(known)
        ids[place : place + 2] = [products[rank]]
