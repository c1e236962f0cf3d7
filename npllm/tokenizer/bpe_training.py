"""Byte-pair encoding, first half: which pairs of tokens become new tokens.

Start with the bytes as tokens. Count every pair of neighbours, make the most frequent
pair a new token, replace the pair by it everywhere, count again, and so on. With
"aaabdaaabac" and three merges:

    a a a b d a a a b a c     (a, a) occurs 4 times         aa   = a + a
    aa a b d aa a b a c       (aa, a) and (a, b) occur      aaa  = aa + a
    aaa b d aaa b a c         twice each; see below         aaab = aaa + b
    aaab d aaab a c           5 tokens where there were 11

The order of the merges is all that encoding needs. Two details matter. A pair that
overlaps itself is counted at each place ("aaa" has (a, a) twice) but merged from the
left ("aaa" becomes aa + a). And ties need a rule, or two runs would differ: the pair
that is greatest as (bytes, bytes) wins, so (aa, a) precedes (a, b).

Counting everything again after every merge, as `naive_bpe.py` does, would cost (merges
x corpus). Here the corpus is one linked list of tokens, each pair knows its places, and
a merge changes only those places. A heap orders the pairs. A count in the heap may be
out of date, but only too high, because a merge adds pairs with the new token only. So
an entry that is out of date when it is popped is pushed again with its true count.

Source: Sennrich, Haddow & Birch, "Neural machine translation of rare words with subword
units", ACL 2016. Radford et al., "Language models are unsupervised multitask learners",
2019, for the bytes.
"""

from collections.abc import Mapping
from heapq import heapify, heappop, heappush

from npllm.tokenizer.byte_table import BYTE_TO_ID, ID_TO_BYTE

END = -1  # no neighbour on this side
MERGED = -1  # this place was joined to the one on its left

Pair = tuple[int, int]

REVERSED_BYTES = bytes(range(255, -1, -1))


def learn_merges(piece_counts: Mapping[bytes, int], n_merges: int) -> list[Pair]:
    """Return the first n_merges merges as (left id, right id).

    Merge r makes the id 256 + r.

    piece_counts: how often each piece of the corpus occurs. Ids 0 ... 255 are the bytes
    in GPT-2's order. There are fewer merges when every piece has become one token.
    """
    corpus = _LinkedCorpus(piece_counts)
    # Two different merges never make the same byte string: by itself, a byte string has
    # only one segmentation at a time. So ids and byte strings correspond one to one.
    order_keys = [_reversed_order_key(bytes([byte])) for byte in ID_TO_BYTE]
    tokens = [bytes([byte]) for byte in ID_TO_BYTE]

    def entry(pair: Pair) -> tuple[int, str, str, Pair]:
        return -corpus.pair_counts[pair], order_keys[pair[0]], order_keys[pair[1]], pair

    heap = [entry(pair) for pair in corpus.pair_counts]
    heapify(heap)
    merges: list[Pair] = []
    while heap and len(merges) < n_merges:
        negative_count, _, _, pair = heappop(heap)
        count = corpus.pair_counts[pair]
        if count != -negative_count:
            if count:
                heappush(heap, entry(pair))
            continue
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
        order_keys.append(_reversed_order_key(tokens[-1]))
        for new_pair in corpus.merge(pair, 256 + len(merges)):
            if corpus.pair_counts[new_pair]:
                heappush(heap, entry(new_pair))
        merges.append(pair)
    return merges


def _reversed_order_key(token: bytes) -> str:
    """A string that sorts first when the token sorts last.

    The heap pops its smallest entry.

    Each byte b becomes 255 - b. A character above all of them ends the string, because
    the order of "ab" < "abc" must be reversed too.
    """
    return token.translate(REVERSED_BYTES).decode("latin-1") + "\u0100"


class _LinkedCorpus:
    """All distinct pieces in one doubly linked list of tokens.

    It holds the count and the places of every pair.
    """

    def __init__(self, piece_counts: Mapping[bytes, int]):
        self.token: list[int] = []  # id at each place, or MERGED
        self.before: list[int] = []  # the place on the left in the same piece, or END
        self.after: list[int] = []  # the place on the right in the same piece, or END
        self.weight: list[int] = []  # how often the piece of this place occurs
        self.pair_counts: dict[Pair, int] = {}
        self.pair_places: dict[Pair, list[int]] = {}  # left places; some may be out of date
        for piece, count in piece_counts.items():
            self._append(piece, count)
        for place, right in enumerate(self.after):
            if right != END:
                self._count((self.token[place], self.token[right]), place)

    def _append(self, piece: bytes, count: int) -> None:
        start, length = len(self.token), len(piece)
        self.token += [BYTE_TO_ID[byte] for byte in piece]
        self.before += [END, *range(start, start + length - 1)]
        self.after += [*range(start + 1, start + length), END]
        self.weight += [count] * length

    def _count(self, pair: Pair, place: int) -> None:
        if pair in self.pair_counts:
            self.pair_counts[pair] += self.weight[place]
            self.pair_places[pair].append(place)
        else:
            self.pair_counts[pair] = self.weight[place]
            self.pair_places[pair] = [place]

    def merge(self, pair: Pair, product: int) -> set[Pair]:
        """Replace the pair by its product at every place, from the left.

        Returns the new pairs.
        """
        token, before, after, weight = self.token, self.before, self.after, self.weight
        left_id, right_id = pair
        new_pairs = set()
        # The places ascend: one pass, here or in __init__, adds them all.
        for place in self.pair_places.pop(pair):
            right = after[place]
            if token[place] != left_id or right == END or token[right] != right_id:
                continue  # an overlapping or earlier merge has taken a token of this pair
            outer_left, outer_right = before[place], after[right]
            token[place], token[right] = product, MERGED
            after[place] = outer_right
            if outer_left != END:
                self.pair_counts[token[outer_left], left_id] -= weight[place]
                self._count((token[outer_left], product), outer_left)
                new_pairs.add((token[outer_left], product))
            if outer_right != END:
                before[outer_right] = place
                self.pair_counts[right_id, token[outer_right]] -= weight[place]
                self._count((product, token[outer_right]), place)
                new_pairs.add((product, token[outer_right]))
        del self.pair_counts[pair]
        return new_pairs
