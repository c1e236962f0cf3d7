r"""Where the next piece of a text ends: the splits of `pretokenize.py` without `regex`.

Every code point belongs to one class, and a table gives it. The regular expressions ask
for nothing else, apart from the English endings after an apostrophe. So each of them
becomes a loop over classes that never goes back more than one code point.
"""

import numpy as np

from npllm.kernels.jit import inlined, part

OTHER, LETTER, NUMBER, SPACE, NEWLINE = range(5)  # white space is SPACE or NEWLINE (\r, \n)
GPT2, CL100K = range(2)  # splits
APOSTROPHE, BLANK = ord("'"), ord(" ")
D, E, L, M, R, S, T, V = b"delmrstv"
LOWER = 0x20  # the bit by which a lower-case letter differs
LONG_S = (0xC5, 0xBF)  # "ſ", which equals "s" where upper and lower case do not differ


@inlined
def class_at(text, place, classes):
    """Return the class of the code point at a place, and the place after it.

    text: UTF-8, (bytes,) uint8. classes: code point -> class, uint8.
    """
    if text[place] < 0x80:
        return np.int64(classes[text[place]]), place + 1
    return _class_of_many_bytes(text, place, classes)


@part
def _class_of_many_bytes(text, place, classes):
    first, second = np.int64(text[place]), np.int64(text[place + 1]) & 0x3F
    if first < 0xE0:
        return np.int64(classes[(first & 0x1F) << 6 | second]), place + 2
    third = np.int64(text[place + 2]) & 0x3F
    if first < 0xF0:
        return np.int64(classes[(first & 0x0F) << 12 | second << 6 | third]), place + 3
    fourth = np.int64(text[place + 3]) & 0x3F
    return np.int64(classes[(first & 0x07) << 18 | second << 12 | third << 6 | fourth]), place + 4


@part
def end_of_piece(text, start, classes, split):
    """Return the place after the piece that starts at `start`."""
    if split == GPT2:
        return _end_of_gpt2_piece(text, start, classes)
    return _end_of_cl100k_piece(text, start, classes)


@part
def _end_of_gpt2_piece(text, start, classes):
    if text[start] == APOSTROPHE:
        length = _ending(text, start + 1, GPT2)
        if length:
            return start + 1 + length
    first = start + 1 if text[start] == BLANK and start + 1 < text.size else start
    kind, after = class_at(text, first, classes)
    if kind < SPACE:
        return _end_of_run(text, after, classes, kind, text.size)
    end, last, _ = _white_space(text, start, classes)
    return last if start < last and end < text.size else end


@part
def _end_of_cl100k_piece(text, start, classes):
    if text[start] == APOSTROPHE:
        length = _ending(text, start + 1, CL100K)
        if length:
            return start + 1 + length
    kind, after = class_at(text, start, classes)
    if kind == LETTER:
        return _end_of_run(text, after, classes, LETTER, text.size)
    if kind == NUMBER:
        return _end_of_run(text, after, classes, NUMBER, 2)
    if kind != NEWLINE and after < text.size:
        next_kind, after_next = class_at(text, after, classes)
        if next_kind == LETTER:
            return _end_of_run(text, after_next, classes, LETTER, text.size)
        if text[start] == BLANK and next_kind == OTHER:
            kind, after = next_kind, after_next
    if kind == OTHER:
        end = _end_of_run(text, after, classes, OTHER, text.size)
        while end < text.size and (text[end] == 10 or text[end] == 13):
            end += 1
        return end
    end, last, after_newline = _white_space(text, start, classes)
    if start < after_newline:
        return after_newline
    return last if start < last and end < text.size else end


@part
def _end_of_run(text, place, classes, kind, most):
    """Return the first place, from `place` on, of another class, or after `most` code
    points."""
    while place < text.size and most > 0:
        found, after = class_at(text, place, classes)
        if found != kind:
            break
        place = after
        most -= 1
    return place


@part
def _white_space(text, start, classes):
    """Return where the white space at `start` ends, where its last code point starts,
    and the place after its last newline (`start` if it has none)."""
    last, end, after_newline = start, start, start
    while end < text.size:
        kind, after = class_at(text, end, classes)
        if kind < SPACE:
            break
        last, end = end, after
        if kind == NEWLINE:
            after_newline = after
    return end, last, after_newline


@part
def _ending(text, place, split):
    """Return the bytes of s, d, m, t, ll, ve or re at a place; 0 if there is none.

    In a split other than GPT-2's, upper-case letters count too.
    """
    if place >= text.size:
        return 0
    fold = 0 if split == GPT2 else LOWER
    first = text[place] | fold
    if first in (S, D, M, T):
        return 1
    if place + 1 < text.size:
        second = text[place + 1] | fold
        if (first == L and second == L) or (first in (V, R) and second == E):
            return 2
        if split != GPT2 and text[place] == LONG_S[0] and text[place + 1] == LONG_S[1]:
            return 2
    return 0
