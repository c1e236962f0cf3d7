"""Text to ids: the loops of `bpe_encoding.py` over arrays.

A piece that was met before is found in a table with its ids. The others are merged as
`merge_by_scanning` does. A kernel leaves to its caller what is rare: a piece of more
than LONGEST bytes, and a table or a result without room.
"""

from typing import NamedTuple

import numpy as np

from npllm.kernels.jit import inlined, part, serial, unlocked
from npllm.tokenizer.kernels.piece_table import LENGTH, VALUE, find, has_room, insert
from npllm.tokenizer.kernels.scan import end_of_piece

LONGEST = 255  # bytes of a piece that is merged and remembered here
COUNT_BITS = 8  # a value of the table: the number of ids in these bits; above, the id or the place of the ids
NO_MERGE = 1 << 31  # above every rank
DONE, NO_ROOM, TABLE_FULL, LONG_PIECE = range(4)


class Merges(NamedTuple):
    """slots: (a power of two, 2) int64, open addressing: a pair as one integer, and its
    rank, or -1 if there is no pair. products: rank -> id, int64. byte_ids: (256,)
    int64.
    """

    slots: np.ndarray
    products: np.ndarray
    byte_ids: np.ndarray


@serial
def fill(merges, pairs, table, token_bytes, token_ends, token_ids):
    """Add pairs (merges, 2) to a Merges, and whole tokens with their ids to a table.

    token_bytes: of all tokens, uint8. token_ends: where each of them ends there.
    """
    pair_slots, _, _ = merges
    for rank in range(pairs.shape[0]):
        key = np.int64(pairs[rank, 0]) << 31 | np.int64(pairs[rank, 1])
        slot = _slot_of_pair(pair_slots, key)
        pair_slots[slot, 0], pair_slots[slot, 1] = key, rank
    slots, keys, used = table
    start = 0
    for i in range(token_ends.size):
        end = token_ends[i]
        slot, word = find(slots, keys, token_bytes, start, end)
        insert(slots, keys, used, slot, word, token_bytes, start, end, np.int64(token_ids[i]) << COUNT_BITS | 1)
        start = end


@inlined
def _slot_of_pair(pair_slots, key):
    mask = pair_slots.shape[0] - 1
    folded = (key ^ key >> 28) & 0x7FFFFFFF
    slot = (folded * 0x9E3779B1 >> 28) & mask
    while pair_slots[slot, 1] >= 0 and pair_slots[slot, 0] != key:
        slot = (slot + 1) & mask
    return slot


@inlined
def _rank(pair_slots, left, right):
    rank = pair_slots[_slot_of_pair(pair_slots, np.int64(left) << 31 | np.int64(right)), 1]
    return rank if rank >= 0 else NO_MERGE


@unlocked
def encode_pieces(text, start, split, classes, merges, table, remembered, ranks, ids):
    """Encode text from `start` on.

    Returns why it ended, where, the number of ids written to `ids`, and the end of the
    piece at that place. remembered: the ids of pieces in the table that have several,
    uint32; its first element counts those in use. ranks: (LONGEST,) int64, scratch.
    """
    slots, keys, used = table
    pair_slots, products, byte_ids = merges
    n = np.int64(0)
    while start < text.size:
        end = end_of_piece(text, start, classes, split)
        if n + LONGEST > ids.size:
            return NO_ROOM, start, n, end
        slot, word = find(slots, keys, text, start, end)
        if slots[slot, LENGTH]:
            value = slots[slot, VALUE]
            count, first = value & ((1 << COUNT_BITS) - 1), value >> COUNT_BITS
            if count == 1:
                ids[n] = first
            else:
                for i in range(count):
                    ids[n + i] = remembered[first + i]
            n += count
        elif end - start > LONGEST:
            return LONG_PIECE, start, n, end
        elif not has_room(slots, keys, used, end - start) or np.int64(remembered[0]) + LONGEST > remembered.size:
            return TABLE_FULL, start, n, end
        else:
            count = _merge(text, start, end, pair_slots, products, byte_ids, ranks, ids, n)
            value = _remember(remembered, ids, n, count)
            insert(slots, keys, used, slot, word, text, start, end, value << COUNT_BITS | count)
            n += count
        start = end
    return DONE, start, n, start


@part
def _remember(remembered, ids, n, count):
    """Keep the ids of a piece, ids[n : n + count]. Returns their place, or the id."""
    if count == 1:
        return np.int64(ids[n])
    first = np.int64(remembered[0])
    for i in range(count):
        remembered[first + i] = ids[n + i]
    remembered[0] = first + count
    return first


@part
def _merge(text, start, end, pair_slots, products, byte_ids, ranks, ids, n):
    """Write the ids of text[start:end] to ids[n:], and return their number."""
    length = end - start
    for i in range(length):
        ids[n + i] = byte_ids[text[start + i]]
    for i in range(length - 1):
        ranks[i] = _rank(pair_slots, ids[n + i], ids[n + i + 1])
    while length > 1:
        place = 0
        for i in range(1, length - 1):
            if ranks[i] < ranks[place]:
                place = i
        if ranks[place] == NO_MERGE:
            break
        ids[n + place] = products[ranks[place]]
        length -= 1
        for i in range(place + 1, length):
            ids[n + i] = ids[n + i + 1]
            ranks[i - 1] = ranks[i]
        if place + 1 < length:
            ranks[place] = _rank(pair_slots, ids[n + place], ids[n + place + 1])
        if place > 0:
            ranks[place - 1] = _rank(pair_slots, ids[n + place - 1], ids[n + place])
    return length
