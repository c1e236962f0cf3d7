r"""Cutting text into pieces before byte pairs are merged.

Merges never cross the edge of a piece. So "dog.", "dog!" and "dog?" share the token "dog", and both training and
encoding may treat equal pieces alike: 12 million characters of Python source hold 2.9 million pieces, of which only
51 thousand are distinct.

GPT-2's pieces are, tried in this order at each place:

    '(?:[sdmt]|ll|ve|re)      the English endings 's 'd 'm 't 'll 've 're
     ?\p{L}+                  letters, with one space before
     ?\p{N}+                  digits, likewise
     ?[^\s\p{L}\p{N}]+        other signs, likewise
    \s+(?!\S)                 white space, but for the last one before a word, which belongs to the word
    \s+                       other white space

Source: Radford et al., "Language models are unsupervised multitask learners", 2019, section 2.2 and released code.
"""

from collections.abc import Iterable, Iterator

import regex

from npllm.errors import DataError

GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


class Splitter:
    """Cuts text into pieces with a regular expression; joined, the pieces are the text again.

    What lies between two matches is a piece too. Raises regex.error for a pattern that does not compile, and
    ValueError for one with capture groups.
    """

    def __init__(self, pattern: str):
        if regex.compile(pattern).groups:
            raise ValueError("a split pattern must not have capture groups")
        # Splitting on a captured pattern gives, in turn, the text between two matches and the match itself.
        self._pattern = regex.compile(f"({pattern})")

    def pieces(self, text: str) -> Iterator[str]:
        """The pieces in order, one at a time: memory does not grow with the length of the text."""
        return filter(None, self._pattern.splititer(text))


class SpecialSplitter:
    """Finds special tokens in text. Where one is the beginning of another, the longer one wins."""

    def __init__(self, special_tokens: Iterable[str]):
        longest_first = sorted(special_tokens, key=len, reverse=True)
        self._pattern = regex.compile("(" + "|".join(map(regex.escape, longest_first)) + ")") if longest_first else None

    def parts(self, text: str) -> Iterator[tuple[str, bool]]:
        """(part, whether it is a special token), in order. Parts are never empty."""
        alternating = self._pattern.splititer(text) if self._pattern else [text]
        return ((part, place % 2 == 1) for place, part in enumerate(alternating) if part)


def refuse_lone_surrogates(text: str) -> None:
    """Raise DataError when text holds a code point U+D800 ... U+DFFF, which UTF-8 cannot write.

    Such text comes from a file read with errors="surrogateescape" or from a JSON string cut inside an emoji.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"the text has a lone surrogate (U+{ord(text[error.start]):04X}) at character {error.start}: "
            "read its file again as UTF-8 with errors='replace'"
        ) from None
