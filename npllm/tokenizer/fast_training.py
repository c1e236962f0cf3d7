"""Training on large texts: counts of pieces, and merges, by compiled loops."""

from collections import Counter
from collections.abc import Mapping

import numpy as np

from npllm.tokenizer.byte_table import BYTE_TO_ID
from npllm.tokenizer.code_points import code_point_classes
from npllm.tokenizer.fast_path import split_number
from npllm.tokenizer.kernels import learning
from npllm.tokenizer.kernels.piece_table import AT, LENGTH, VALUE, clear, empty_table

SLOTS = 1 << 18
KEY_BYTES = 1 << 22
FIRST_PAIRS = 1 << 17  # more than the pairs of two bytes


class CompiledCounter:
    """Counts the pieces of UTF-8 texts. pattern: one of pretokenize.SPLITS."""

    def __init__(self, pattern: str):
        self._split = split_number(pattern)
        self._classes = code_point_classes()
        self._table = empty_table(SLOTS, KEY_BYTES)
        self._counts: Counter[bytes] = Counter()  # of the pieces that are no longer in the table

    def count(self, text: bytes) -> None:
        """Count the pieces of a text."""
        signs, start = np.frombuffer(text, np.uint8), 0
        while start < len(text):
            start, end = learning.count_pieces(signs, start, self._split, self._classes, self._table)
            if start < len(text):  # the table is full, or the piece is larger than the table
                self._empty_table()
            if end - start > KEY_BYTES:
                self._counts[text[start:end]] += 1
                start = end

    def counts(self) -> Counter[bytes]:
        """Return piece -> how often it occurred."""
        self._empty_table()
        return self._counts

    def _empty_table(self) -> None:
        slots, keys = self._table.slots, self._table.keys.tobytes()
        for at, length, count in slots[slots[:, LENGTH] > 0][:, [AT, LENGTH, VALUE]].tolist():
            self._counts[keys[at : at + length]] += count
        clear(self._table)


def learn_merges_compiled(piece_counts: Mapping[bytes, int], n_merges: int) -> list[tuple[int, int]]:
    """Return what `bpe_training.learn_merges` returns."""
    text = np.frombuffer(b"".join(piece_counts), np.uint8)
    lengths = np.fromiter(map(len, piece_counts), np.int64, len(piece_counts))
    counts = np.fromiter(piece_counts.values(), np.int64, len(piece_counts))
    places = np.empty((len(text), 6), np.int32 if len(text) < 1 << 31 else np.int64)
    places[:, learning.TOKEN] = np.array(BYTE_TO_ID)[text]
    places[:, learning.PIECE] = np.repeat(np.arange(len(lengths)), lengths)
    places[:, learning.BEFORE] = np.arange(-1, len(text) - 1)
    places[np.cumsum(lengths) - lengths, learning.BEFORE] = learning.NONE
    tokens, merges = np.empty((256 + n_merges, 4), np.int64), np.empty((n_merges, 2), np.int64)
    pairs, heap = np.empty((FIRST_PAIRS, 5), np.int64), np.empty((FIRST_PAIRS, 2), np.int64)
    state = np.zeros(3, np.int64)
    while not learning.learn(text, places, counts, tokens, pairs, heap, state, merges):
        pairs, heap = (np.concatenate([rows, np.empty_like(rows)]) for rows in (pairs, heap))
    return list(map(tuple, merges[: state[0]].tolist()))
