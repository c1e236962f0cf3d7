"""Counts of pieces, and the merges learnt from them: `bpe_training.py` over arrays.

The corpus is all distinct pieces, one after another, and a token's place is that of its
first byte. Each place belongs to the pair of the token there and its right neighbour.
The places of a pair form a doubly linked list, so its list and count are always exact.
They ascend, because one pass adds them all.

The heap is lazy, as in the plain version: an entry whose count is out of date is pushed
again when it is popped.
"""

from typing import NamedTuple

import numpy as np

from npllm.kernels.jit import part, serial, unlocked
from npllm.tokenizer.kernels.piece_table import LENGTH, VALUE, find, has_room, insert
from npllm.tokenizer.kernels.scan import end_of_piece

NONE = -1
LEFT, RIGHT, COUNT, FIRST, LAST = range(5)  # columns of pairs: the two ids, the count, the ends of the list of places
BYTES = 256


@unlocked
def count_pieces(text, start, split, classes, table):
    """Count the pieces of text from `start` on.

    Returns the place and the end of the first piece that has no room in the table; both
    are the end of the text if all had.
    """
    while start < text.size:
        end = end_of_piece(text, start, classes, split)
        slot, word = find(table, text, start, end)
        if table.slots[slot, LENGTH]:
            table.slots[slot, VALUE] += 1
        elif has_room(table, end - start):
            insert(table, slot, word, text, start, end, 1)
        else:
            return start, end
        start = end
    return start, start


class Corpus(NamedTuple):
    """Arrays with one element per byte of the pieces, (n,).

    text: uint8. weight: how often the piece of this place occurs, int64. token: the id
    of the token that starts here, int32. before: where its left neighbour starts. pair:
    the number of its pair. previous, next: the places of the same pair. The last four
    are NONE where there is none.
    """

    text: np.ndarray
    weight: np.ndarray
    token: np.ndarray
    before: np.ndarray
    pair: np.ndarray
    previous: np.ndarray
    next: np.ndarray


class Tokens(NamedTuple):
    """Arrays with one element per token, (256 + merges,) int64.

    at: a place in the text where the token's bytes are. length: their number.
    before_product, after_product: the number of the pair that the token forms with the
    product of the merge in hand, or NONE.
    """

    at: np.ndarray
    length: np.ndarray
    before_product: np.ndarray
    after_product: np.ndarray


@serial
def learn(corpus, ends, counts, byte_ids, tokens, merges):
    """Fill merges, (n_merges, 2) int32, and return how many there are.

    ends, counts: of each piece, (pieces,) int64. byte_ids: (256,) int64. The other
    arrays of corpus and tokens need no content.
    """
    pairs = np.empty((BYTES * BYTES, 5), np.int64)
    n_pairs = _first_pairs(corpus, ends, counts, byte_ids, tokens, pairs)
    heap = np.empty((BYTES * BYTES, 2), np.int64)  # count, pair
    size = 0
    for pair in range(n_pairs):
        size = _push(heap, size, pair, pairs, tokens, corpus.text)
    n = 0
    while size > 0 and n < merges.shape[0]:
        count, pair = heap[0, 0], heap[0, 1]
        size = _pop(heap, size, pairs, tokens, corpus.text)
        if count != pairs[pair, COUNT]:
            if pairs[pair, COUNT] > 0:
                size = _push(heap, size, pair, pairs, tokens, corpus.text)
            continue
        product = BYTES + n
        while n_pairs + 2 * product + 1 >= pairs.shape[0]:  # a merge makes at most these pairs
            pairs, heap = _doubled(pairs), _doubled(heap)
        merges[n, 0], merges[n, 1] = pairs[pair, LEFT], pairs[pair, RIGHT]
        before = n_pairs
        n_pairs = _merge(corpus, tokens, pairs, n_pairs, pair, product)
        for new in range(before, n_pairs):
            if pairs[new, COUNT] > 0:
                size = _push(heap, size, new, pairs, tokens, corpus.text)
        n += 1
    return n


@part
def _doubled(rows):
    larger = np.empty((2 * rows.shape[0], rows.shape[1]), np.int64)
    larger[: rows.shape[0]] = rows
    return larger


@part
def _first_pairs(corpus, ends, counts, byte_ids, tokens, pairs):
    """Make every byte a token, and link every pair. Returns the number of pairs."""
    number = np.full((BYTES, BYTES), NONE)
    n_pairs, place = 0, 0
    for piece in range(ends.size):
        start = place
        while place < ends[piece]:
            token = byte_ids[corpus.text[place]]
            tokens.at[token], tokens.length[token] = place, 1
            corpus.token[place], corpus.weight[place] = token, counts[piece]
            corpus.before[place] = place - 1 if place > start else NONE
            corpus.pair[place] = NONE
            if place > start:
                left = corpus.token[place - 1]
                if number[left, token] == NONE:
                    number[left, token] = n_pairs
                    n_pairs = _new_pair(pairs, n_pairs, left, token)
                _link(corpus, pairs, number[left, token], place - 1)
            place += 1
    return n_pairs


@part
def _new_pair(pairs, n_pairs, left, right):
    pairs[n_pairs, LEFT], pairs[n_pairs, RIGHT], pairs[n_pairs, COUNT] = left, right, 0
    pairs[n_pairs, FIRST], pairs[n_pairs, LAST] = NONE, NONE
    return n_pairs + 1


@part
def _link(corpus, pairs, pair, place):
    """Add a place to a pair."""
    last = pairs[pair, LAST]
    corpus.pair[place], corpus.previous[place], corpus.next[place] = pair, last, NONE
    if last == NONE:
        pairs[pair, FIRST] = place
    else:
        corpus.next[last] = place
    pairs[pair, LAST] = place
    pairs[pair, COUNT] += corpus.weight[place]


@part
def _unlink(corpus, pairs, place):
    """Remove a place from its pair."""
    pair, previous, following = corpus.pair[place], corpus.previous[place], corpus.next[place]
    if previous == NONE:
        pairs[pair, FIRST] = following
    else:
        corpus.next[previous] = following
    if following == NONE:
        pairs[pair, LAST] = previous
    else:
        corpus.previous[following] = previous
    pairs[pair, COUNT] -= corpus.weight[place]
    corpus.pair[place] = NONE


@part
def _merge(corpus, tokens, pairs, n_pairs, pair, product):
    """Replace a pair by its product at every place, from the left.

    Returns the number of all pairs, with the new ones.
    """
    length_of_left = tokens.length[pairs[pair, LEFT]]
    tokens.length[product] = length_of_left + tokens.length[pairs[pair, RIGHT]]
    tokens.at[product] = pairs[pair, FIRST]
    tokens.before_product[: product + 1] = NONE
    tokens.after_product[: product + 1] = NONE
    while pairs[pair, FIRST] != NONE:
        place = pairs[pair, FIRST]
        right = place + length_of_left
        outer_left, outer_right = np.int64(corpus.before[place]), place + tokens.length[product]
        has_right = corpus.pair[right] != NONE
        _unlink(corpus, pairs, place)
        corpus.token[place] = product
        if outer_left != NONE:
            _unlink(corpus, pairs, outer_left)
            token = corpus.token[outer_left]
            if tokens.before_product[token] == NONE:
                tokens.before_product[token] = n_pairs
                n_pairs = _new_pair(pairs, n_pairs, token, product)
            _link(corpus, pairs, tokens.before_product[token], outer_left)
        if has_right:
            _unlink(corpus, pairs, right)
            corpus.before[outer_right] = place
            token = corpus.token[outer_right]
            if tokens.after_product[token] == NONE:
                tokens.after_product[token] = n_pairs
                n_pairs = _new_pair(pairs, n_pairs, product, token)
            _link(corpus, pairs, tokens.after_product[token], place)
    return n_pairs


@part
def _precedes(heap, i, j, pairs, tokens, text):
    """Whether the pair of heap[i] is merged before that of heap[j]: it is more
    frequent, or as frequent and greater as (bytes, bytes)."""
    if heap[i, 0] != heap[j, 0]:
        return heap[i, 0] > heap[j, 0]
    for side in (LEFT, RIGHT):
        a, b = pairs[heap[i, 1], side], pairs[heap[j, 1], side]
        if a != b:
            return _is_greater(text, tokens.at[a], tokens.length[a], tokens.at[b], tokens.length[b])
    return False


@part
def _is_greater(text, a, length_a, b, length_b):
    for i in range(min(length_a, length_b)):
        if text[a + i] != text[b + i]:
            return text[a + i] > text[b + i]
    return length_a > length_b


@part
def _push(heap, size, pair, pairs, tokens, text):
    """Add a pair with its count; return the new size."""
    heap[size, 0], heap[size, 1] = pairs[pair, COUNT], pair
    i = size
    while i > 0 and _precedes(heap, i, (i - 1) // 2, pairs, tokens, text):
        _swap(heap, i, (i - 1) // 2)
        i = (i - 1) // 2
    return size + 1


@part
def _pop(heap, size, pairs, tokens, text):
    """Remove the first entry; return the new size."""
    size -= 1
    heap[0, 0], heap[0, 1] = heap[size, 0], heap[size, 1]
    i = 0
    while 2 * i + 1 < size:
        child = 2 * i + 1
        if child + 1 < size and _precedes(heap, child + 1, child, pairs, tokens, text):
            child += 1
        if not _precedes(heap, child, i, pairs, tokens, text):
            break
        _swap(heap, i, child)
        i = child
    return size


@part
def _swap(heap, i, j):
    for column in range(2):
        heap[i, column], heap[j, column] = heap[j, column], heap[i, column]
