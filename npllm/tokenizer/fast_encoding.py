"""The encoder for large texts: `BytePairEncoder` with compiled loops."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from npllm.tokenizer.code_points import code_point_classes
from npllm.tokenizer.fast_path import split_number
from npllm.tokenizer.kernels import encoding
from npllm.tokenizer.kernels.piece_table import PieceTable, clear, empty_table
from npllm.tokenizer.vocabulary import Vocabulary

REMEMBERED_PIECES = 3 << 14
REMEMBERED_BYTES = 1 << 20  # of all these pieces together
REMEMBERED_IDS = 1 << 20
IDS_AT_ONCE = 1 << 18
NO_PAIRS = np.empty((0, 2), np.int64)


class Memory(NamedTuple):
    """What one thread needs: the last arguments of encoding.encode_pieces."""

    table: PieceTable
    remembered: np.ndarray
    ranks: np.ndarray
    ids: np.ndarray


class CompiledEncoder:
    """Encodes UTF-8 text without special tokens.

    byte_ids: byte -> id. products: rank -> id. encode_long: returns the ids of a piece
    that the kernel leaves to its caller.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        byte_ids: Sequence[int],
        products: Sequence[int],
        encode_long: Callable[[bytes], Sequence[int]],
    ):
        self._split = split_number(vocabulary.split_pattern)
        self._encode_long = encode_long
        self._classes = code_point_classes()
        whole = vocabulary.ordinary_ids() if vocabulary.ignore_merges else {}
        self._whole_pieces = (
            np.frombuffer(b"".join(whole), np.uint8),
            np.cumsum([len(token) for token in whole], dtype=np.int64),
            np.array(list(whole.values()), np.int64),
        )
        pairs = np.array(vocabulary.merges, np.int64).reshape(-1, 2)
        no_pairs = np.full((1 << (2 * len(pairs)).bit_length(), 2), -1)
        self._merges = encoding.Merges(no_pairs, np.array(products, np.int64), np.array(byte_ids, np.int64))
        self._idle = [self._new_memory(pairs)]  # each memory serves one text at a time

    def _new_memory(self, pairs: np.ndarray = NO_PAIRS) -> Memory:
        """pairs: of merges, which are also added to the table of all merges."""
        n_bytes, n_pieces = self._whole_pieces[0].size, self._whole_pieces[1].size
        memory = Memory(
            empty_table(1 << (2 * (REMEMBERED_PIECES + n_pieces) - 1).bit_length(), n_bytes + REMEMBERED_BYTES),
            np.empty(REMEMBERED_IDS, np.uint32),
            np.empty(encoding.LONGEST, np.int64),
            np.empty(IDS_AT_ONCE, np.uint32),
        )
        self._forget(memory, pairs)
        return memory

    def _forget(self, memory: Memory, pairs: np.ndarray = NO_PAIRS) -> None:
        """Forget all pieces but the whole tokens."""
        clear(memory.table)
        memory.remembered[0] = 1
        encoding.fill(self._merges, pairs, memory.table, *self._whole_pieces)

    def encode(self, text: bytes) -> np.ndarray:
        """Return the ids of UTF-8 text, (number of tokens,) uint32.

        Several threads may do this at the same time.
        """
        try:
            memory = self._idle.pop()
        except IndexError:
            memory = self._new_memory()
        parts = list(self._parts(text, memory))
        self._idle.append(memory)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _parts(self, text: bytes, memory: Memory) -> Iterator[np.ndarray]:
        signs, start = np.frombuffer(text, np.uint8), 0
        reason = encoding.NO_ROOM
        while reason != encoding.DONE:
            reason, start, n_ids, end = encoding.encode_pieces(
                signs, start, self._split, self._classes, self._merges, *memory
            )
            yield memory.ids[:n_ids].copy()
            if reason == encoding.LONG_PIECE:
                yield np.array(self._encode_long(text[start:end]), np.uint32)
                start = end
            elif reason == encoding.TABLE_FULL:
                self._forget(memory)
