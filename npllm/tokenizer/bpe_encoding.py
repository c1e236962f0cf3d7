"""Byte-pair encoding, second half: apply learnt merges to new text.

A piece starts as bytes. The pair with the lowest rank (the merge that was learnt first)
is joined; where it occurs more than once, the leftmost one is. This is repeated until
no pair of neighbours is a known merge. For the merges 0: (a, a), 1: (aa, a), 2: (aaa,
b)

    a a a b d  ->  aa a b d  ->  aaa b d  ->  aaab d

There are two ways to find the next pair, with the same result. A scan of all ranks
costs (length x merges) and is faster for words, but takes hours for a line of a million
dashes. From LONG_PIECE bytes on, a heap of (rank, place) over a linked list costs
(length x log length). Equal pieces are encoded once and then remembered.

Source: Sennrich, Haddow & Birch, "Neural machine translation of rare words with subword
units", ACL 2016.
"""

from collections.abc import Mapping
from functools import cached_property
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from npllm.tokenizer import fast_path
from npllm.tokenizer.pretokenize import Splitter
from npllm.tokenizer.vocabulary import Vocabulary

if TYPE_CHECKING:
    from npllm.tokenizer.fast_encoding import CompiledEncoder

Pair = tuple[int, int]

LONG_PIECE = 100  # bytes
MAX_REMEMBERED_PIECES = 1 << 17  # about 25 MB of ordinary words; at most 150 MB with the limit below
MAX_REMEMBERED_CHARACTERS = 64
PIECES_AT_ONCE = 1 << 14

NO_MERGE = 1 << 62  # above every rank
END = -1  # no neighbour on this side
MERGED = -1  # this place was joined to the one on its left


class BytePairEncoder:
    """Encodes text without special tokens."""

    def __init__(self, vocabulary: Vocabulary):
        ids = vocabulary.ordinary_ids()
        tokens = vocabulary.tokens
        self._byte_ids = [ids[bytes([byte])] for byte in range(256)]
        self._whole_pieces = ids if vocabulary.ignore_merges else {}
        self._ranks = {pair: rank for rank, pair in enumerate(vocabulary.merges)}
        self._products = [ids[tokens[left] + tokens[right]] for left, right in vocabulary.merges]
        self._splitter = Splitter(vocabulary.split_pattern)
        self._remembered = _RememberedPieces(self)
        self.vocabulary = vocabulary

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of a text, (number of tokens,) uint32."""
        if fast_path.pays(len(text), self.vocabulary.split_pattern):
            return self.compiled.encode(text.encode("utf-8"))
        return self.encode_plainly(text)

    @cached_property
    def compiled(self) -> "CompiledEncoder":
        """The encoder with compiled loops."""
        from npllm.tokenizer.fast_encoding import CompiledEncoder  # imports Numba

        return CompiledEncoder(self.vocabulary, self._byte_ids, self._products, self.encode_piece)

    def encode_plainly(self, text: str) -> np.ndarray:
        """Return the same as `encode`, always by the loops of this file."""
        # Remembered pieces are the raw memory of their ids, so joining them makes the
        # array. Many are joined at once, which is fast; but not all, because join first
        # makes a list of them.
        memory, pieces = bytearray(), map(self._remembered.__getitem__, self._splitter.pieces(text))
        while some := b"".join(islice(pieces, PIECES_AT_ONCE)):
            memory += some
        return np.frombuffer(memory, np.uint32)

    def encode_piece(self, piece: bytes) -> list[int]:
        """Return the ids of one piece."""
        whole = self._whole_pieces.get(piece)
        if whole is not None:
            return [whole]
        ids = [self._byte_ids[byte] for byte in piece]
        merge = merge_by_scanning if len(ids) < LONG_PIECE else merge_by_heap
        return merge(ids, self._ranks, self._products)


class _RememberedPieces(dict):
    """piece -> its ids as raw uint32 memory. Empties itself when it is full."""

    def __init__(self, encoder: BytePairEncoder):
        super().__init__()
        self._encoder = encoder

    def __missing__(self, piece: str) -> bytes:
        memory = np.array(self._encoder.encode_piece(piece.encode("utf-8")), np.uint32).tobytes()
        if len(piece) <= MAX_REMEMBERED_CHARACTERS:
            if len(self) >= MAX_REMEMBERED_PIECES:
                self.clear()
            self[piece] = memory
        return memory


def merge_by_scanning(ids: list[int], ranks: Mapping[Pair, int], products: list[int]) -> list[int]:
    """Return the ids after all merges, found by scanning every pair before each merge.

    ranks: pair -> rank. products: rank -> id. Changes `ids`.
    """
    pair_ranks = [ranks.get(pair, NO_MERGE) for pair in zip(ids, ids[1:], strict=False)]
    while pair_ranks:
        rank = min(pair_ranks)
        if rank == NO_MERGE:
            break
        place = pair_ranks.index(rank)
        ids[place : place + 2] = [products[rank]]
        del pair_ranks[place]
        if place < len(pair_ranks):
            pair_ranks[place] = ranks.get((ids[place], ids[place + 1]), NO_MERGE)
        if place > 0:
            pair_ranks[place - 1] = ranks.get((ids[place - 1], ids[place]), NO_MERGE)
    return ids


def merge_by_heap(ids: list[int], ranks: Mapping[Pair, int], products: list[int]) -> list[int]:
    """Return the same as `merge_by_scanning`, with at most three look-ups per merge.

    Changes `ids` and returns another list.
    """
    length = len(ids)
    before = list(range(-1, length - 1))
    after = [*range(1, length), END]
    heap = [(ranks[pair], place) for place, pair in enumerate(zip(ids, ids[1:], strict=False)) if pair in ranks]
    heapify(heap)
    while heap:
        rank, place = heappop(heap)
        right = after[place]
        if ids[place] == MERGED or right == END or ranks.get((ids[place], ids[right])) != rank:
            continue  # a merge since then has taken a token of this pair
        ids[place], ids[right] = products[rank], MERGED
        after[place] = after[right]
        if after[place] != END:
            before[after[place]] = place
        for left in (before[place], place):
            if left != END and after[left] != END:
                rank = ranks.get((ids[left], ids[after[left]]))
                if rank is not None:
                    heappush(heap, (rank, left))
    return [i for i in ids if i != MERGED]
