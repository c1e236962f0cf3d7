"""What is true of each token of a text: inside a string or comment, its indentation,
its brackets."""

import ast
import re
import warnings
from collections.abc import Sequence

import numpy as np

LARGEST_SOURCE = 1 << 20  # bytes of a document that is parsed
INDENTATIONS = 5  # levels of four columns; the last one stands for all deeper ones
UNKNOWN = -1  # a token without this label
BRACKETS = {ord(")"): ord("("), ord("]"): ord("["), ord("}"): ord("{")}
# A comment, or a string up to its end; what has no end reaches to the end of the text.
_QUOTED = re.compile(
    rb"#[^\n]*"
    rb"|(?:\b[bBfFrRuU]{1,2})?(?:"  # the prefix of a string
    rb'"{3}(?:\\.|.)*?(?:"{3}|\Z)'
    rb"|'{3}(?:\\.|.)*?(?:'{3}|\Z)"
    rb'|"(?:\\.|[^"\\\n])*"?'
    rb"|'(?:\\.|[^'\\\n])*'?)",
    re.DOTALL,
)
_LINE = re.compile(rb"([ \t]*)[^\n]*(?:\n|\Z)")


def is_python(source: bytes) -> bool:
    """Whether Python can parse a document of one line or more."""
    if not source.strip() or len(source) > LARGEST_SOURCE:
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the source, such as an invalid escape
        try:
            ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


def inside_quotes(source: bytes) -> np.ndarray:
    """Whether each byte of a Python source is in a string or a comment, (n,) bool.

    The signs that begin and end it are a part of it, and so is its prefix.
    """
    inside = np.zeros(len(source), bool)
    for found in _QUOTED.finditer(source):
        inside[found.start() : found.end()] = True
    return inside


def indentation(source: bytes) -> np.ndarray:
    """The indentation of the line of each byte, (n,) int64, in levels of four columns.

    It is UNKNOWN in the indentation itself and in lines without text.
    """
    levels = np.full(len(source), UNKNOWN)
    for found in _LINE.finditer(source):
        if found[0].strip():
            columns = len(found[1].expandtabs(4))
            levels[found.end(1) : found.end()] = min(columns // 4, INDENTATIONS - 1)
    return levels


def last_bytes(pieces: Sequence[bytes]) -> np.ndarray:
    """The place of the last byte of each token in the text, (n_tokens,).

    pieces: the bytes of the tokens. A token without bytes has the place before it.
    """
    return np.cumsum([len(piece) for piece in pieces]) - 1


def bracket_pairs(pieces: Sequence[bytes]) -> list[tuple[int, int]]:
    """The pairs (token of a closing bracket, token of the bracket that it closes).

    Pairs within one token are left out, and so are closing brackets that do not match
    the innermost open one.
    """
    pairs, open_ones = [], []
    for token, piece in enumerate(pieces):
        for byte in piece:
            if byte in BRACKETS.values():
                open_ones.append((byte, token))
            elif byte in BRACKETS and open_ones and open_ones[-1][0] == BRACKETS[byte]:
                _, opened = open_ones.pop()
                if opened < token:
                    pairs.append((token, opened))
    return pairs
