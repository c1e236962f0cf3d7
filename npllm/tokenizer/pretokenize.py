r"""Cuts text into pieces before byte pairs are merged.

Merges never cross the edge of a piece. So "dog.", "dog!" and "dog?" share the token
"dog". And training and encoding need to handle equal pieces only once: in source code,
most pieces occur many times.

GPT-2's pieces are, tried in this order at each place:

    '(?:[sdmt]|ll|ve|re)      the English endings 's 'd 'm 't 'll 've 're
     ?\p{L}+                  letters, with at most one space before them
     ?\p{N}+                  digits, likewise
     ?[^\s\p{L}\p{N}]+        other signs, likewise
    \s+(?!\S)                 white space, without the last one before a word
    \s+                       other white space

GPT-4 and Llama 3 (one split with two names: "cl100k" and "llama3") take up to three
digits, let a word have any one sign before it, and keep newlines together:

    (?i:'s|'t|'re|'ve|'m|'ll|'d)     the English endings in any case
    [^\r\n\p{L}\p{N}]?\p{L}+         letters, with at most one other sign before them
    \p{N}{1,3}                       up to three digits
     ?[^\s\p{L}\p{N}]+[\r\n]*        other signs, and the newlines after them
    \s*[\r\n]+                       white space up to its last newline
    \s+(?!\S)|\s+                    as above

Source: Radford et al., "Language models are unsupervised multitask learners", 2019,
section 2.2 and released code. The tokenizer files of GPT-4 and of Llama 3.
"""

from collections.abc import Iterable, Iterator
from math import prod

import regex

from npllm.errors import ConfigError, DataError

CHARACTERS_AT_ONCE = 1 << 20  # characters
LARGEST_PATTERN = 20_000  # characters; those in use have up to 500, with a {1,3} among them
# A regular expression from an untrusted file may try exponentially many ways to match.
# Seconds of processor time, including what is done with the pieces; encoding takes
# about a hundredth of this per character.
LEAST_TIME, TIME_PER_CHARACTER = 10.0, 100e-6

GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CL100K_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
SPLITS = {"gpt2": GPT2_SPLIT, "cl100k": CL100K_SPLIT, "llama3": CL100K_SPLIT}  # no piece has a blank after another sign


def split_pattern(name: str) -> str:
    """Return the regular expression of a split.

    Raises ConfigError for an unknown name.
    """
    if name not in SPLITS:
        raise ConfigError(f"split is {name!r:.80}; choose one of {', '.join(SPLITS)}.")
    return SPLITS[name]


class Splitter:
    """Cuts text into pieces with a regular expression.

    Joined, the pieces are the text again.

    Text between two matches is a piece too. Raises regex.error for a pattern that does
    not compile, and ValueError for one with capture groups or with anything else that
    `_check_pattern` refuses.
    """

    def __init__(self, pattern: str):
        _check_pattern(pattern)
        if regex.compile(pattern).groups:
            raise ValueError("a split pattern must not have capture groups")
        # Splitting on a captured pattern gives, in turn, the text between two matches
        # and the match itself.
        self._pattern = regex.compile(f"({pattern})")
        self._is_known = pattern in SPLITS.values()

    def pieces(self, text: str) -> Iterator[str]:
        """Yield the pieces in order; memory does not grow with the length of the text.

        Raises DataError when a pattern other than SPLITS takes far more time than the
        length of the text explains.
        """
        return filter(None, self._pattern.splititer(text) if self._is_known else self._split_in_time(text))

    def _split_in_time(self, text: str) -> Iterator[str]:
        try:
            yield from self._pattern.splititer(text, timeout=LEAST_TIME + TIME_PER_CHARACTER * len(text))
        except TimeoutError:
            raise DataError(
                f"the tokenizer's split pattern takes too long on a text of {len(text)} characters; use a tokenizer "
                "with another pattern."
            ) from None


def _check_pattern(pattern: str) -> None:
    """Raise ValueError for a pattern that does more than cut text from left to right.

    The `regex` module also knows recursion, reversed search, and matches that start
    later than they seem to. A pattern that would compile into a very large program is
    refused too: repeat counts inside one another multiply.
    """
    bare = regex.sub(r"(?s)\\.", "", pattern)
    if regex.search(r"\((\*|\?(?!:|=|!|>|<=|<!|[ims]+:))", bare) or r"\K" in regex.findall(r"(?s)\\.", pattern):
        raise ValueError("it has a group or an escape of a kind that is not supported")
    copies = prod(max(1, int(digits[-9:])) for digits in regex.findall(r"(?<=[{,])\d+", bare))
    if len(pattern) * copies > LARGEST_PATTERN:
        raise ValueError(f"it multiplies out to more than {LARGEST_PATTERN:,} characters")


class SpecialSplitter:
    """Finds special tokens in text.

    Where one is the beginning of another, the longer one is found.
    """

    def __init__(self, special_tokens: Iterable[str]):
        longest_first = sorted(special_tokens, key=len, reverse=True)
        self._pattern = regex.compile("(" + "|".join(map(regex.escape, longest_first)) + ")") if longest_first else None

    def parts(self, text: str) -> Iterator[tuple[str, bool]]:
        """Return (part, whether it is a special token), in order.

        Parts are never empty.
        """
        alternating = self._pattern.splititer(text) if self._pattern else [text]
        return ((part, place % 2 == 1) for place, part in enumerate(alternating) if part)


def refuse_lone_surrogates(text: str) -> None:
    """Raise DataError when text holds a code point U+D800 ... U+DFFF.

    UTF-8 cannot encode these.

    Such text comes from a file that was read with errors="surrogateescape", or from a
    JSON string that was cut inside an emoji.
    """
    if text.isascii():  # known without looking
        return
    for start in range(0, len(text), CHARACTERS_AT_ONCE):  # in parts, because each of them is copied
        try:
            text[start : start + CHARACTERS_AT_ONCE].encode("utf-8")
        except UnicodeEncodeError as error:
            place = start + error.start
            raise DataError(
                f"the text has a lone surrogate (U+{ord(text[place]):04X}) at character {place}; "
                "read its file again as UTF-8 with errors='replace'."
            ) from None
