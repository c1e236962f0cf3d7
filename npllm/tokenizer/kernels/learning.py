"""Counts of pieces, and the merges learnt from them: `bpe_training.py` over arrays.

The corpus is all distinct pieces, one after another, and a token's place is that of its
first byte. Each place belongs to the pair of the token there and its right neighbour.
The places of a pair form a doubly linked list, so its list and count are always exact.
They ascend, because one pass adds them all.

The heap is lazy, as in the plain version: an entry whose count is out of date is put in
order again when it comes first.
"""

import numpy as np

from npllm.kernels.jit import part, serial, unlocked
from npllm.tokenizer.kernels.piece_table import LENGTH, VALUE, find, has_room, insert
from npllm.tokenizer.kernels.scan import end_of_piece

NONE = -1  # no neighbour, no pair
BYTES = 256

# Columns of `places`, one row per byte of the pieces, (n, 6): the id of the token that
# starts here, the piece, where the left neighbour starts, the number of the pair of
# this token and the next, and the places before and after in the list of that pair.
TOKEN, PIECE, BEFORE, PAIR, PREVIOUS, NEXT = range(6)

# Columns of `tokens`, (256 + merges, 4): a place in the text where the token's bytes
# are, their number, and the pairs that the token forms with the product of the present
# merge as its right and as its left neighbour.
AT, SIZE, BEFORE_PRODUCT, AFTER_PRODUCT = range(4)

# Columns of `pairs`: the two ids, the count, and the two ends of the list of places.
LEFT, RIGHT, COUNT, FIRST, LAST = range(5)


@unlocked
def count_pieces(text, start, split, classes, table):
    """Count the pieces of text from `start` on.

    Returns the place and the end of the first piece that has no room in the table; both
    are the end of the text if all had.
    """
    slots, keys, used = table
    while start < text.size:
        end = end_of_piece(text, start, classes, split)
        slot, word = find(slots, keys, text, start, end)
        if slots[slot, LENGTH]:
            slots[slot, VALUE] += 1
        elif has_room(slots, keys, used, end - start):
            insert(slots, keys, used, slot, word, text, start, end, 1)
        else:
            return start, end
        start = end
    return start, start


@serial
def learn(text, places, counts, tokens, pairs, heap, state, merges):
    """Learn merges, and return whether this has ended; if not, `pairs` and `heap` have
    no room and the caller doubles them.

    text: all pieces, (n,) uint8. places: with TOKEN, PIECE and BEFORE filled in, int32
    or int64. counts: of the pieces, int64. tokens, pairs, heap: without content, int64,
    at least 256^2 rows. heap: the counts and numbers of pairs. state: the numbers of
    merges, of pairs and of heap entries, int64, 0 at first. merges: (n_merges, 2)
    int64, the result.
    """
    n, n_pairs, size = state[0], state[1], state[2]
    first_new = n_pairs
    if n_pairs == 0:
        n_pairs = _first_pairs(places, counts, tokens, pairs)
    while True:
        for pair in range(first_new, n_pairs):
            if pairs[pair, COUNT] > 0:
                heap[size, 0], heap[size, 1] = pairs[pair, COUNT], pair
                _sift_up(heap, size, pairs, tokens, text)
                size += 1
        first_new = n_pairs
        while size > 0 and heap[0, 0] != pairs[heap[0, 1], COUNT]:
            heap[0, 0] = pairs[heap[0, 1], COUNT]
            if heap[0, 0] == 0:
                size -= 1
                heap[0, 0], heap[0, 1] = heap[size, 0], heap[size, 1]
            _sift_down(heap, size, pairs, tokens, text)
        state[0], state[1], state[2] = n, n_pairs, size
        product = BYTES + n
        if size == 0 or n == merges.shape[0]:
            return True
        if n_pairs + 2 * product + 1 >= pairs.shape[0]:  # a merge makes at most these pairs
            return False
        pair = heap[0, 1]
        merges[n, 0], merges[n, 1] = pairs[pair, LEFT], pairs[pair, RIGHT]
        n_pairs = _merge(places, counts, tokens, pairs, n_pairs, pair, product)
        n += 1


@part
def _first_pairs(places, counts, tokens, pairs):
    """Make every byte a token, and every two bytes a pair. Returns the number of
    pairs."""
    n_pairs = 0
    for left in range(BYTES):
        for right in range(BYTES):
            n_pairs = _new_pair(pairs, n_pairs, left, right)
    for place in range(places.shape[0]):
        token = np.int64(places[place, TOKEN])
        tokens[token, AT], tokens[token, SIZE] = place, 1
        places[place, PAIR] = NONE
        if places[place, BEFORE] != NONE:
            _link(places, counts, pairs, BYTES * np.int64(places[place - 1, TOKEN]) + token, place - 1)
    return n_pairs


@part
def _new_pair(pairs, n_pairs, left, right):
    pairs[n_pairs, LEFT], pairs[n_pairs, RIGHT], pairs[n_pairs, COUNT] = left, right, 0
    pairs[n_pairs, FIRST], pairs[n_pairs, LAST] = NONE, NONE
    return n_pairs + 1


@part
def _link(places, counts, pairs, pair, place):
    """Add a place to a pair."""
    last = pairs[pair, LAST]
    places[place, PAIR], places[place, PREVIOUS], places[place, NEXT] = pair, last, NONE
    if last == NONE:
        pairs[pair, FIRST] = place
    else:
        places[last, NEXT] = place
    pairs[pair, LAST] = place
    pairs[pair, COUNT] += counts[places[place, PIECE]]


@part
def _unlink(places, counts, pairs, place):
    """Remove a place from its pair."""
    pair, previous, following = places[place, PAIR], places[place, PREVIOUS], places[place, NEXT]
    if previous == NONE:
        pairs[pair, FIRST] = following
    else:
        places[previous, NEXT] = following
    if following == NONE:
        pairs[pair, LAST] = previous
    else:
        places[following, PREVIOUS] = previous
    pairs[pair, COUNT] -= counts[places[place, PIECE]]
    places[place, PAIR] = NONE


@part
def _merge(places, counts, tokens, pairs, n_pairs, pair, product):
    """Replace a pair by its product at every place, from the left.

    Returns the number of all pairs, with the new ones.
    """
    size_of_left = tokens[pairs[pair, LEFT], SIZE]
    size = size_of_left + tokens[pairs[pair, RIGHT], SIZE]
    tokens[product, AT], tokens[product, SIZE] = pairs[pair, FIRST], size
    for token in range(product + 1):
        tokens[token, BEFORE_PRODUCT], tokens[token, AFTER_PRODUCT] = NONE, NONE
    while pairs[pair, FIRST] != NONE:
        place = pairs[pair, FIRST]
        right, outer_left, outer_right = place + size_of_left, np.int64(places[place, BEFORE]), place + size
        _unlink(places, counts, pairs, place)
        places[place, TOKEN] = product
        if outer_left != NONE:
            _unlink(places, counts, pairs, outer_left)
            token = np.int64(places[outer_left, TOKEN])
            if tokens[token, BEFORE_PRODUCT] == NONE:
                tokens[token, BEFORE_PRODUCT] = n_pairs
                n_pairs = _new_pair(pairs, n_pairs, token, product)
            _link(places, counts, pairs, tokens[token, BEFORE_PRODUCT], outer_left)
        if places[right, PAIR] != NONE:
            _unlink(places, counts, pairs, right)
            places[outer_right, BEFORE] = place
            token = np.int64(places[outer_right, TOKEN])
            if tokens[token, AFTER_PRODUCT] == NONE:
                tokens[token, AFTER_PRODUCT] = n_pairs
                n_pairs = _new_pair(pairs, n_pairs, product, token)
            _link(places, counts, pairs, tokens[token, AFTER_PRODUCT], place)
    return n_pairs


@part
def _precedes(heap, i, j, pairs, tokens, text):
    """Whether the pair of heap[i] is merged before that of heap[j]: it is more
    frequent, or as frequent and greater as (bytes, bytes)."""
    if heap[i, 0] != heap[j, 0]:
        return heap[i, 0] > heap[j, 0]
    side = LEFT if pairs[heap[i, 1], LEFT] != pairs[heap[j, 1], LEFT] else RIGHT
    a, b = pairs[heap[i, 1], side], pairs[heap[j, 1], side]
    k, shorter = 0, min(tokens[a, SIZE], tokens[b, SIZE])
    while k < shorter and text[tokens[a, AT] + k] == text[tokens[b, AT] + k]:
        k += 1
    if k < shorter:
        return text[tokens[a, AT] + k] > text[tokens[b, AT] + k]
    return tokens[a, SIZE] > tokens[b, SIZE]


@part
def _sift_up(heap, i, pairs, tokens, text):
    """Move heap[i] towards the front, past the entries that it precedes."""
    while i > 0 and _precedes(heap, i, (i - 1) // 2, pairs, tokens, text):
        for column in range(2):
            heap[i, column], heap[(i - 1) // 2, column] = heap[(i - 1) // 2, column], heap[i, column]
        i = (i - 1) // 2


@part
def _sift_down(heap, size, pairs, tokens, text):
    """Move the first entry back, past the entries that precede it."""
    i, child = np.int64(0), np.int64(1)
    while child < size:
        if child + 1 < size and _precedes(heap, child + 1, child, pairs, tokens, text):
            child += 1
        if not _precedes(heap, child, i, pairs, tokens, text):
            break
        for column in range(2):
            heap[i, column], heap[child, column] = heap[child, column], heap[i, column]
        i, child = child, 2 * child + 1
