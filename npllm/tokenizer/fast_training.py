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
    ends = np.cumsum([len(piece) for piece in piece_counts], dtype=np.int64)
    counts = np.array(list(piece_counts.values()), np.int64)
    place = np.int32 if len(text) < 1 << 31 else np.int64
    corpus = learning.Corpus(
        text,
        weight=np.empty(len(text), np.int64),
        token=np.empty(len(text), np.int32),
        **{name: np.empty(len(text), place) for name in ("before", "pair", "previous", "next")},
    )
    tokens = learning.Tokens(*np.empty((4, 256 + n_merges), np.int64))
    merges = np.empty((n_merges, 2), np.int32)
    n_made = learning.learn(corpus, ends, counts, np.array(BYTE_TO_ID, np.int64), tokens, merges)
    return list(map(tuple, merges[:n_made].tolist()))
