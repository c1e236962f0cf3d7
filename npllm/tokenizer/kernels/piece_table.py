"""A hash table from pieces of text to numbers, with a bounded number of pieces.

A piece of up to PACKED bytes is compared as one integer. Of a longer one, the integer
is a hash, and the bytes are compared too.
"""

from typing import NamedTuple

import numpy as np

from npllm.kernels.jit import inlined, part

PACKED = 7  # bytes; an integer of 64 bits stays positive
WORD, LENGTH, AT, VALUE = range(4)  # columns: the integer, bytes of the piece (0 = no piece), their place in keys
PIECES, KEY_BYTES = range(2)  # in `used`


class PieceTable(NamedTuple):
    """slots: (a power of two, 4) int64, open addressing, at most half of them used.

    keys: the bytes of all pieces, uint8. used: (2,) int64, the number of pieces and of
    their bytes. A kernel takes the arrays out of the tuple once: Numba counts the
    references to an array at each access.
    """

    slots: np.ndarray
    keys: np.ndarray
    used: np.ndarray


def empty_table(n_slots: int, n_key_bytes: int) -> PieceTable:
    """Return a table without pieces."""
    return PieceTable(np.zeros((n_slots, 4), np.int64), np.empty(n_key_bytes, np.uint8), np.zeros(2, np.int64))


def clear(table: PieceTable) -> None:
    """Remove all pieces."""
    table.slots[:] = 0
    table.used[:] = 0


@inlined
def find(slots, keys, text, start, end):
    """Return the slot of the piece text[start:end], or the empty slot for it, and its
    word."""
    word, length = _word(text, start, end), end - start
    mask = slots.shape[0] - 1
    folded = (word ^ word >> 25) & 0x7FFFFFFF
    slot = (folded * 0x9E3779B1 >> 28) & mask
    while slots[slot, LENGTH]:
        if (
            slots[slot, WORD] == word
            and slots[slot, LENGTH] == length
            and (length <= PACKED or _are_equal(keys, slots[slot, AT], text, start, length))
        ):
            break
        slot = (slot + 1) & mask
    return slot, word


@inlined
def _word(text, start, end):
    word = np.int64(0)
    if end - start <= PACKED:
        for place in range(start, end):
            word = word << 8 | np.int64(text[place])
    else:
        for place in range(start, end):
            word = (word * 1000003 + np.int64(text[place])) & 0xFFFFFFFFFF
    return word


@inlined
def _are_equal(keys, at, text, start, length):
    i = 0
    while i < length and keys[at + i] == text[start + i]:
        i += 1
    return i == length


@inlined
def has_room(slots, keys, used, length):
    """Whether a piece of so many bytes can be added."""
    return 2 * used[PIECES] < slots.shape[0] and used[KEY_BYTES] + length <= keys.size


@part
def insert(slots, keys, used, slot, word, text, start, end, value):
    """Add a piece. slot, word: what `find` returned."""
    at = used[KEY_BYTES]
    for i in range(end - start):
        keys[at + i] = text[start + i]
    used[PIECES] += 1
    used[KEY_BYTES] += end - start
    slots[slot, WORD], slots[slot, LENGTH], slots[slot, AT], slots[slot, VALUE] = word, end - start, at, value
