"""Encoding by one table look-up per byte or character.

For tokenizers whose tokens are single bytes or single characters.
"""

import numpy as np

from npllm.errors import DataError
from npllm.tokenizer.vocabulary import Vocabulary

UNKNOWN = np.uint32(0xFFFFFFFF)
CHARACTERS_AT_ONCE = 1 << 20  # characters; their code points take four bytes each


class UnknownCharacter(DataError):
    """A text has a character that the tokenizer lacks.

    text: the text. place: of the character in it.
    """

    def __init__(self, text: str, place: int, n_known: int):
        super().__init__(
            f"the character {text[place]!r} (U+{ord(text[place]):04X}) at place {place} is not among the "
            f"{n_known} characters of this tokenizer; remove it, or train a byte or bpe tokenizer."
        )
        self.text, self.place = text, place

    def in_file(self, name: str, first_line: int = 1) -> DataError:
        """Return this error with the line of the character.

        name: of the file. first_line: of the file, where the text starts.
        """
        return DataError(f"{name}, line {first_line + self.text.count(chr(10), 0, self.place)}: {self}")


class ByteEncoder:
    """Encodes each byte of the UTF-8 text as one token.

    It works for any language, with three or four times as many tokens as BPE.
    """

    def __init__(self, vocabulary: Vocabulary):
        ids = vocabulary.ordinary_ids()
        self._table = np.array([ids[bytes([byte])] for byte in range(256)], np.uint32)

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of a text, (number of bytes,) uint32."""
        return self._table[np.frombuffer(text.encode("utf-8"), np.uint8)]


class CharacterEncoder:
    """Encodes each character as one token.

    Raises UnknownCharacter for one that the training text did not have.
    """

    def __init__(self, vocabulary: Vocabulary):
        ids = {ord(token.decode("utf-8")): i for token, i in vocabulary.ordinary_ids().items()}
        # The last entry stands for every code point above the highest known one.
        self._table = np.full(max(ids, default=-1) + 2, UNKNOWN, np.uint32)
        self._table[list(ids)] = list(ids.values())

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of a text, (number of characters,) uint32."""
        ids = np.empty(len(text), np.uint32)
        for start in range(0, len(text), CHARACTERS_AT_ONCE):
            code_points = np.frombuffer(text[start : start + CHARACTERS_AT_ONCE].encode("utf-32-le"), "<u4")
            part = ids[start : start + CHARACTERS_AT_ONCE]
            part[:] = self._table[np.minimum(code_points, len(self._table) - 1)]
            unknown = np.flatnonzero(part == UNKNOWN)
            if unknown.size:
                raise UnknownCharacter(text, start + int(unknown[0]), np.count_nonzero(self._table != UNKNOWN))
        return ids
